package podnet

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// lookAgain and lookSeldom are the pauses between two looks at what the kernel's workers are about to finish.
const (
	lookAgain  = 200 * time.Microsecond
	lookSeldom = 20 * time.Millisecond
)

// waitRunning waits until the link takes packets. A link that is up and has its peer gets its queue from a worker that
// waits for the lock of all other ADDs; what is sent before is lost. Kernels from 6.8 do that work when they are asked
// about the link, older ones only tell.
func waitRunning(ctx context.Context, c *conn, name string) error {
	return await(ctx, func() (bool, error) {
		l, err := c.link(ctx, name)
		return l.flags&unix.IFF_RUNNING != 0, err
	}, "link "+name+" has no carrier")
}

// waitOwned waits until the pod takes packets to its IPv6 address. The kernel is done with an address without duplicate
// address detection at once, but not when it says so: the route to it, and the pod's answers to those who ask for its MAC
// address, come from a worker that waits for the lock of all other ADDs.
func waitOwned(ctx context.Context, inPod *conn, addr netip.Addr) error {
	return await(ctx, func() (bool, error) {
		own, err := inPod.owns(ctx, addr)
		return own.link != 0, err
	}, fmt.Sprintf("address %s is not finished", addr))
}

// await looks until it is done, fails, or ctx ends: then the error says what was not.
func await(ctx context.Context, done func() (bool, error), not string) error {
	for pause := lookAgain; ; pause = min(2*pause, lookSeldom) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s: %w", not, ctx.Err())
		case <-timer.C:
		}
	}
}
