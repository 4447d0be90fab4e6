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
// objects exist: the host must send the pod's address into its veth, and the pod must own its address and send the
// rest of the world to its gateway through its interface.
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
		if err := checkInterface(ctx, host, inPod, iface, i); err != nil {
			return fmt.Errorf("interface %s of the pod (host end %s): %w", iface.Name, iface.HostVeth, err)
		}
	}
	return nil
}

func checkInterface(ctx context.Context, host, inPod *conn, iface Interface, i int) error {
	addr := iface.Address.Addr()
	replies, err := host.send(ctx, []message{getLink(iface.HostVeth), getRoute(addr, netip.Addr{})})
	if err != nil {
		return err
	}
	if err := errors.Join(replies[0].err, replies[1].err); err != nil {
		return err
	}
	veth, err := parseVeth(replies[0].payload)
	if err != nil {
		return err
	}
	if to := parseRoute(replies[1].payload); to.link != veth.host {
		return fmt.Errorf("the host sends %s to link %d, not to the pod's link %d", addr, to.link, veth.host)
	}
	// The source selects the table of interfaces beyond the first.
	replies, err = inPod.send(ctx, []message{getRoute(addr, netip.Addr{}), getRoute(elsewhere(addr), addr)})
	if err != nil {
		return err
	}
	if err := errors.Join(replies[0].err, replies[1].err); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if own := parseRoute(replies[0].payload); own.typ != unix.RTN_LOCAL {
		return fmt.Errorf("the pod does not own %s", addr)
	}
	gateway := names.PodGateway(addr.Is6(), i)
	if out := parseRoute(replies[1].payload); out.via != gateway || out.link != veth.pod {
		return fmt.Errorf("the pod's default route is via %s link %d, not via %s link %d", out.via, out.link, gateway, veth.pod)
	}
	return nil
}

// elsewhere is a destination that no pod has a route of its own for (from the documentation ranges).
func elsewhere(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		return netip.MustParseAddr("2001:db8::1")
	}
	return netip.MustParseAddr("192.0.2.1")
}

// getRoute asks for the route that a packet would take; nothing is sent.
func getRoute(dst, src netip.Addr) message {
	m := newMessage(fmt.Sprintf("get route to %s", dst), unix.RTM_GETROUTE, 0)
	var srcBits uint8
	if src.IsValid() {
		srcBits = uint8(src.BitLen())
	}
	m.data = append(m.data, family(dst), uint8(dst.BitLen()), srcBits, 0, 0, 0, 0, 0)
	m.data = order.AppendUint32(m.data, 0)
	m.bytes(unix.RTA_DST, dst.AsSlice())
	if src.IsValid() {
		m.bytes(unix.RTA_SRC, src.AsSlice())
	}
	return m
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
