package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"vpccni/pkg/networkutils/names"

	"golang.org/x/sys/unix"
)

// Check reports what is wrong with the pod's wiring. It asks the kernel where packets would go rather than which
// objects exist: the host must send the pod's address into its veth, whose other end must be the pod's interface; the
// pod must own its address there, send the rest of the world to its gateway, and know the gateway's MAC address.
func Check(ctx context.Context, pod Pod) error {
	if err := pod.validate(); err != nil {
		return err
	}
	netns, err := os.Open(pod.Netns)
	if err != nil {
		return fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer netns.Close()
	host, err := dialer{}.open()
	if err != nil {
		return err
	}
	defer host.close()
	inPod, err := dialer{}.openIn(ctx, int(netns.Fd()), nil)
	if err != nil {
		return err
	}
	defer inPod.close()
	for i, iface := range pod.Interfaces {
		for _, addr := range iface.addrs() {
			if err := checkInterface(ctx, host, inPod, iface, i, addr); err != nil {
				return fmt.Errorf("interface %s of the pod (host end %s): %w", iface.Name, iface.HostVeth, err)
			}
		}
	}
	return nil
}

// checkInterface looks at the way from and to one address of an interface.
func checkInterface(ctx context.Context, host, inPod *conn, iface Interface, i int, addr netip.Addr) error {
	gateway := names.PodGateway(addr.Is6(), i)
	veth, err := host.link(ctx, iface.HostVeth)
	if err != nil {
		return err
	}
	if iface.Branch != nil {
		err = checkBranch(ctx, host, iface, veth)
	} else {
		err = checkTo(ctx, host, addr, veth)
	}
	if err != nil {
		return err
	}

	inner, err := inPod.link(ctx, iface.Name)
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if inner.index != veth.peer || inner.peer != veth.index {
		return fmt.Errorf("the host's link %d belongs to link %d in the pod, not to %d", veth.index, veth.peer, inner.index)
	}
	if own, err := inPod.owns(ctx, addr); err != nil || own.link != inner.index {
		return errors.Join(fmt.Errorf("the pod does not own %s on its interface", addr), err)
	}
	// The source selects the table of interfaces beyond the first.
	out, err := inPod.decision(ctx, elsewhere(addr), addr)
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if out.via != gateway || out.link != inner.index {
		return fmt.Errorf("the pod's default route is via %s link %d, not via %s link %d", out.via, out.link, gateway, inner.index)
	}
	answer, err := inPod.ask(ctx, getNeighbour(gateway, inner.index))
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if at, permanent := parseNeighbour(answer); at != veth.mac || !permanent {
		return fmt.Errorf("the pod's gateway %s is at %x, not for ever at %x", gateway, at, veth.mac)
	}
	return nil
}

// owns asks how packets to an address are delivered here; the zero decision if they are not.
func (c *conn) owns(ctx context.Context, addr netip.Addr) (decision, error) {
	own, err := c.decision(ctx, addr, netip.Addr{})
	if err != nil || own.typ != unix.RTN_LOCAL {
		return decision{}, err
	}
	return own, nil
}

func checkTo(ctx context.Context, host *conn, addr netip.Addr, veth link) error {
	to, err := host.decision(ctx, addr, netip.Addr{})
	if err == nil && to.link != veth.index {
		err = fmt.Errorf("the host sends %s to link %d, not to the pod's link %d", addr, to.link, veth.index)
	}
	return err
}

// link asks for an end of a veth, which must be up.
func (c *conn) link(ctx context.Context, name string) (link, error) {
	answer, err := c.ask(ctx, getLink(name))
	if err != nil {
		return link{}, err
	}
	l, err := parseLink(answer)
	if err == nil && l.flags&unix.IFF_UP == 0 {
		err = fmt.Errorf("link %s is down", name)
	}
	return l, err
}

// decision asks where a packet would go.
func (c *conn) decision(ctx context.Context, dst, src netip.Addr) (decision, error) {
	answer, err := c.ask(ctx, getRoute(dst, src))
	return parseRoute(answer), err
}

// ask sends one request.
func (c *conn) ask(ctx context.Context, m message) ([]byte, error) {
	replies, err := c.send(ctx, []message{m})
	if err != nil {
		return nil, err
	}
	return replies[0].payload, replies[0].err
}

// elsewhere is a destination that no pod has a route of its own for (from the documentation ranges).
func elsewhere(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		return netip.MustParseAddr("3fff::1")
	}
	return netip.MustParseAddr("192.0.2.1")
}

// getRoute asks for the route that a packet would take, as it is in the table; nothing is sent.
func getRoute(dst, src netip.Addr) message {
	m := newMessage(fmt.Sprintf("get route to %s", dst), unix.RTM_GETROUTE, 0)
	var srcBits uint8
	if src.IsValid() {
		srcBits = uint8(src.BitLen())
	}
	m.data = append(m.data, family(dst), uint8(dst.BitLen()), srcBits, 0, 0, 0, 0, 0)
	m.data = order.AppendUint32(m.data, unix.RTM_F_FIB_MATCH)
	m.bytes(unix.RTA_DST, dst.AsSlice())
	if src.IsValid() {
		m.bytes(unix.RTA_SRC, src.AsSlice())
	}
	return m
}

// getNeighbour asks for one entry of a link's neighbour table.
func getNeighbour(addr netip.Addr, index int32) message {
	m := newMessage(fmt.Sprintf("get neighbour %s", addr), unix.RTM_GETNEIGH, 0)
	m.data = append(m.data, family(addr), 0, 0, 0)
	m.data = order.AppendUint32(m.data, uint32(index))
	m.data = append(m.data, 0, 0, 0, 0)
	m.bytes(unix.NDA_DST, addr.AsSlice())
	return m
}

func parseNeighbour(payload []byte) (at mac, permanent bool) {
	const header = 12 // struct ndmsg
	if len(payload) < header {
		return mac{}, false
	}
	for typ, value := range attributes(payload[header:]) {
		if typ == unix.NDA_LLADDR {
			copy(at[:], value)
		}
	}
	return at, order.Uint16(payload[8:])&unix.NUD_PERMANENT != 0
}

// link is what Check wants to know of a veth's end.
type link struct {
	index, peer int32
	flags       uint32
	mac         mac
}

func parseLink(payload []byte) (link, error) {
	veth, err := parseVeth(payload)
	if err != nil {
		return link{}, err
	}
	l := link{index: veth.host, peer: veth.pod, flags: order.Uint32(payload[8:])}
	for typ, value := range attributes(payload[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_ADDRESS {
			copy(l.mac[:], value)
		}
	}
	return l, nil
}

// decision is where the kernel would send a packet.
type decision struct {
	typ  uint8
	link int32
	via  netip.Addr
}

func parseRoute(payload []byte) decision {
	if len(payload) < unix.SizeofRtMsg {
		return decision{}
	}
	d := decision{typ: payload[7]}
	for typ, value := range attributes(payload[unix.SizeofRtMsg:]) {
		switch {
		case typ == unix.RTA_OIF && len(value) == 4:
			d.link = int32(order.Uint32(value))
		case typ == unix.RTA_GATEWAY:
			d.via, _ = netip.AddrFromSlice(value)
		}
	}
	return d
}
