package podnet

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/nstest"
)

// TestPodsAreReadyWhenSetupReturns wires pods of both families side by side: the kernel finishes links and IPv6 addresses
// in its own time, which other writers draw out, and whoever looks after Setup finds them finished.
func TestPodsAreReadyWhenSetupReturns(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	const pods = 32
	var wg sync.WaitGroup
	for i := range pods {
		address := fmt.Sprintf("10.0.1.%d/32", i+1)
		if i%2 == 0 {
			address = fmt.Sprintf("2001:db8:1::%x/128", i+1)
		}
		netns := nstest.New(t)
		pod := podOf(netns, fmt.Sprintf("c%d", i), fmt.Sprintf("web-%d", i), address)
		wg.Go(func() {
			err := in(t, host, func(ctx context.Context) error {
				if _, err := Setup(ctx, pod); err != nil {
					return err
				}
				// Before Check, whose questions to the kernel could finish the link.
				if err := running(pod.Interfaces[0].HostVeth); err != nil {
					return err
				}
				return Check(ctx, pod)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// running fails if the link does not take packets yet. It asks in the one way that leaves things as they are.
func running(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ask, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ask); err != nil {
		return err
	}
	if ask.Uint16()&unix.IFF_RUNNING == 0 {
		return fmt.Errorf("link %s has no carrier", name)
	}
	return nil
}
