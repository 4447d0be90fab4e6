package hostnet

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// requestTimeout bounds one netlink request. The kernel answers at once; a longer wait means that the rtnl lock is
// held by something that hangs.
const requestTimeout = 10 * time.Second

// ErrNoLink says that the kernel has no link with an ENI's MAC (yet).
var ErrNoLink = errors.New("no link with this MAC")

// Options say which host a Host is for.
type Options struct {
	// NetNS is the file descriptor of the network namespace; 0 is the process's own. It must stay open.
	NetNS int
	Log   *slog.Logger    // nil: slog.Default()
	Clock clockwork.Clock // nil: the real one
}

// Host writes to the network state of one network namespace. Its methods may be called concurrently; changes are made
// one Apply at a time.
type Host struct {
	netns int
	log   *slog.Logger
	clock clockwork.Clock

	mu     sync.Mutex // held by Apply and Cleanup
	handle *netlink.Handle
	strict *netlink.Handle // dumps are filtered by the kernel
	rtnl   *rtnl
	last   applied // of the last Apply

	scopeMu sync.Mutex
	scope   scope // what Watch looks at; of the last Apply
	doubts  doubts
}

// New opens the netlink sockets of the Host. Close releases them.
func New(o Options) (*Host, error) {
	h := &Host{netns: o.NetNS, log: o.Log, clock: o.Clock}
	if h.log == nil {
		h.log = slog.Default()
	}
	if h.clock == nil {
		h.clock = clockwork.NewRealClock()
	}
	var err error
	if h.handle, err = netlink.NewHandleAt(h.nsHandle(), unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	if err := h.handle.SetSocketTimeout(requestTimeout); err != nil {
		h.handle.Close()
		return nil, fmt.Errorf("set rtnetlink time-out: %w", err)
	}
	if h.strict, err = netlink.NewHandleAt(h.nsHandle(), unix.NETLINK_ROUTE); err != nil {
		h.handle.Close()
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	// Kernels before 4.20 do not know the option, and send more than they are asked for.
	_ = h.strict.SetStrictCheck(true)
	if err := h.strict.SetSocketTimeout(requestTimeout); err != nil {
		h.handle.Close()
		h.strict.Close()
		return nil, fmt.Errorf("set rtnetlink time-out: %w", err)
	}
	if h.rtnl, err = openRtnl(h.nsHandle()); err != nil {
		h.handle.Close()
		h.strict.Close()
		return nil, err
	}
	return h, nil
}

// Close releases the Host's sockets; nothing of what it wrote is changed.
func (h *Host) Close() {
	h.handle.Close()
	h.strict.Close()
	h.rtnl.close()
}

func (h *Host) nsHandle() netns.NsHandle {
	if h.netns == 0 {
		return netns.None()
	}
	return netns.NsHandle(h.netns)
}
