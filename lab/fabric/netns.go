package fabric

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/nftables"
	nfnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// kernelTimeout bounds a single netlink request. The kernel answers in microseconds; a request that takes this long
// waits for a lock that will not come free.
const kernelTimeout = 10 * time.Second

// namespace is a network namespace that the fabric holds open, with a netlink socket in it.
type namespace struct {
	file *os.File
	*netlink.Handle
}

// newNamespace makes an empty network namespace with its loopback up.
func newNamespace() (*namespace, error) {
	var file *os.File
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		var err error
		file, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return err
	})
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(file)
	if err != nil {
		return nil, err
	}
	lo, err := ns.LinkByName("lo")
	if err == nil {
		err = ns.LinkSetUp(lo)
	}
	if err != nil {
		ns.close()
		return nil, fmt.Errorf("bring loopback up: %w", err)
	}
	return ns, nil
}

// openNamespace takes over file, also when it fails.
func openNamespace(file *os.File) (*namespace, error) {
	handle, err := netlink.NewHandleAt(netns.NsHandle(file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open netlink in network namespace: %w", err)
	}
	if err := handle.SetSocketTimeout(kernelTimeout); err != nil {
		handle.Close()
		_ = file.Close()
		return nil, fmt.Errorf("bound netlink requests: %w", err)
	}
	return &namespace{file: file, Handle: handle}, nil
}

// nftables returns a client that opens a socket in the namespace for each transaction or reading.
func (n *namespace) nftables() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(int(n.file.Fd())), nftables.WithSockOptions(func(c *nfnetlink.Conn) error {
		return c.SetDeadline(time.Now().Add(kernelTimeout))
	}))
}

// dup returns a descriptor of its own for the same namespace.
func dup(file *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate namespace descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

func (n *namespace) close() {
	n.Handle.Close()
	_ = n.file.Close()
}

// do runs fn on a thread inside the namespace. Sockets that fn opens stay in it.
func (n *namespace) do(fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return fn()
	})
}

// onThread runs fn on a thread that ends with it, for fn leaves the thread in another namespace. The main thread
// does not end, and its namespace is what /proc shows as the process's: it is kept busy while another one works.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn()
	}()
	return <-done
}

// sysctl is a setting below /proc/sys/net.
type sysctl struct{ key, value string }

// set writes settings in order. /proc/sys/net shows the namespace of the thread that opens it.
func (n *namespace) set(settings []sysctl) error {
	return n.do(func() error {
		for _, s := range settings {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", s.key), []byte(s.value), 0o644); err != nil {
				return fmt.Errorf("set %s: %w", s.key, err)
			}
		}
		return nil
	})
}

// answerARPAtOnce takes away the random delay, up to 0.8 s, with which a proxy answers for others. It goes over
// netlink because a user namespace has no /proc/sys/net/ipv4/neigh.
func (n *namespace) answerARPAtOnce(link int) error {
	const (
		ndtaName        = 1
		ndtaParms       = 6
		ndtpaIfindex    = 1
		ndtpaProxyDelay = 13
	)
	return n.do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_SETNEIGHTBL, unix.NLM_F_ACK)
		req.AddData(neighTableHeader{})
		req.AddData(nl.NewRtAttr(ndtaName, nl.ZeroTerminated("arp_cache")))
		parms := nl.NewRtAttr(ndtaParms|unix.NLA_F_NESTED, nil)
		parms.AddRtAttr(ndtpaIfindex, nl.Uint32Attr(uint32(link)))
		parms.AddRtAttr(ndtpaProxyDelay, nl.Uint64Attr(0))
		req.AddData(parms)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// neighTableHeader is struct ndtmsg for IPv4.
type neighTableHeader struct{}

func (neighTableHeader) Len() int          { return 4 }
func (neighTableHeader) Serialize() []byte { return []byte{unix.AF_INET, 0, 0, 0} }

// settle makes a link ready to send once the other end of its pair is up. The kernel sees to that in its own time,
// and drops what the link is to send until then, unless somebody asks for the link's state. It is a matter of
// milliseconds, so an error is not worth reporting.
func (n *namespace) settle(link int) { _, _ = n.LinkByIndex(link) }

// addAddr gives a link an address that is usable at once, without duplicate address detection.
func (n *namespace) addAddr(link netlink.Link, addr netip.Prefix, scope netlink.Scope) error {
	a := &netlink.Addr{IPNet: ipNet(addr), Scope: int(scope)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	return nil
}

// ipNet keeps the host bits of p, as an interface's address needs; a route's destination is masked by its caller.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
