package podnet

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// Egress is a pod's way out to the family that it has no address of the VPC in: one more veth, with an address that the
// node alone knows and for which the host does source NAT (hostnet.Egress).
type Egress struct {
	Netns       string
	ContainerID string
	// PodInterface is the pod's ordinary interface. Where the way out is IPv6, nothing else of IPv6 is left on it.
	PodInterface string
	Address      netip.Addr
	// Range is what Address is from; in IPv4 its first address is the gateway.
	Range netip.Prefix
	// MTU of both ends, in bytes.
	MTU int
}

// Name is the name of the interface in the pod.
func (e Egress) Name() string {
	if e.Address.Is6() {
		return names.EgressV6
	}
	return names.EgressV4
}

// HostVeth is the name of its host end.
func (e Egress) HostVeth() string { return EgressVeth(e.ContainerID) }

// EgressVeth is the name of the host end of a sandbox's egress interface. It follows from the sandbox, so that it can be
// found again, and cannot be that of an ordinary veth: these end in eleven hexadecimal digits.
func EgressVeth(containerID string) string {
	sum := sha1.Sum([]byte("egress/" + containerID))
	return names.EgressVethPrefix + hex.EncodeToString(sum[:5])
}

// MACs are the Ethernet addresses of the two ends, as text.
func (e Egress) MACs() (host, pod string) {
	macs := e.pod().macs(0)
	return text(macs.host), text(macs.pod)
}

func text(m mac) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

func (e Egress) pod() Pod {
	return Pod{Netns: e.Netns, ContainerID: e.ContainerID, Interfaces: []Interface{{
		Name: e.Name(), HostVeth: e.HostVeth(), Address: single(e.Address), MTU: e.MTU, SourceCheck: true,
	}}}
}

// gateway is the pod's next hop. That of IPv6 is nobody's address, as on ordinary interfaces; that of IPv4 is the host's,
// on every one of these links.
func (e Egress) gateway() netip.Addr {
	if e.Address.Is6() {
		return names.PodGateway(true, 0)
	}
	return e.Range.Addr().Next()
}

func (e Egress) validate() error {
	if !e.Range.IsValid() || !e.Range.Contains(e.Address) || e.Address.Is4In6() {
		return fmt.Errorf("%s is no address of the range %s", e.Address, e.Range)
	}
	if e.PodInterface == "" || len(e.PodInterface) >= unix.IFNAMSIZ || e.PodInterface == e.Name() {
		return fmt.Errorf("%q is no name for the pod's interface", e.PodInterface)
	}
	return nil
}

// SetupEgress wires the way out, or leaves nothing behind, under the same rules as Setup.
func SetupEgress(ctx context.Context, e Egress) (Wired, error) {
	forward, cancel := WithReserve(ctx, time.Now())
	defer cancel()
	return setupEgress(forward, ctx, e, dialer{})
}

func setupEgress(forward, back context.Context, e Egress, dial dialer) (Wired, error) {
	if err := e.validate(); err != nil {
		return Wired{}, err
	}
	return wire(back, e.Netns, dial, func(w *wiring) error {
		if err := w.addEgress(forward, e); err != nil {
			return fmt.Errorf("interface %s of the pod (host end %s): %w", e.Name(), e.HostVeth(), err)
		}
		return nil
	})
}

func (w *wiring) addEgress(ctx context.Context, e Egress) error {
	pod := e.pod()
	iface, macs := pod.Interfaces[0], pod.macs(0)
	veth, err := w.makeVeth(ctx, iface, macs)
	if err != nil {
		return err
	}
	v6 := e.Address.Is6()
	sysctls := hostSysctls(iface.HostVeth, v6)
	if v6 {
		// A host without IPv6 by default can have it on this link.
		sysctls = append(sysctls, sysctl{"net/ipv6/conf/" + iface.HostVeth + "/disable_ipv6", "0"})
	}
	if err := writeSysctls(ctx, sysctls); err != nil {
		return err
	}
	inside := podSysctls(iface.Name, v6)
	if v6 {
		inside = append(inside, sysctl{"net/ipv6/conf/" + e.PodInterface + "/disable_ipv6", "1"})
	}
	inPod, err := w.dial.openIn(ctx, w.netns, inside)
	if err != nil {
		return err
	}
	defer inPod.close()
	if err := inPod.all(ctx, e.podState(veth.pod, macs.host)); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if err := w.host.all(ctx, e.hostState(veth.host)); err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	var owned netip.Addr
	if v6 {
		owned = e.Address
	}
	return w.ready(ctx, inPod, iface.HostVeth, iface.Name, owned)
}

// podState is what the interface needs inside the pod. The neighbour is for ever in both families: nobody has to be asked.
func (e Egress) podState(index int32, gatewayMAC mac) []message {
	gateway := e.gateway()
	out := func(dst netip.Prefix, via netip.Addr) route {
		return route{dst: dst, via: via, link: index, table: names.TableMain, protocol: unix.RTPROT_BOOT}
	}
	everything := netip.PrefixFrom(unspecified(e.Address), 0)
	if e.Address.Is6() {
		return []message{
			linkUp(e.Name(), index),
			newAddress(e.Address, e.Name(), index),
			newRoute(out(single(gateway), netip.Addr{})),
			newRoute(out(everything, gateway)),
			newNeighbour(gateway, gatewayMAC, index),
		}
	}
	// All of the range is behind the gateway: its pods are on links of their own.
	return []message{
		linkUp(e.Name(), index),
		newAddressIn(netip.PrefixFrom(e.Address, e.Range.Bits()), e.Name(), index, unix.RT_SCOPE_UNIVERSE),
		preferring(newRoute(out(single(gateway), netip.Addr{})), e.Address),
		preferring(newRoute(out(e.Range, gateway)), e.Address),
		newRoute(out(everything, gateway)),
		newNeighbour(gateway, gatewayMAC, index),
	}
}

// hostState is what it needs on the host besides the veth.
func (e Egress) hostState(index int32) []message {
	up := vethUp(e.pod().Interfaces[0], index)
	route := newRoute(route{dst: single(e.Address), link: index, table: names.TableMain, protocol: unix.RTPROT_BOOT})
	if e.Address.Is6() {
		return []message{up, route}
	}
	return []message{up, newAddressIn(single(e.gateway()), e.HostVeth(), index, unix.RT_SCOPE_LINK), route}
}

// newAddressIn adds an IPv4 address with the length of its subnet, and no route to that.
func newAddressIn(p netip.Prefix, name string, index int32, scope uint8) message {
	const addressFlags = 8 // IFA_FLAGS of linux/if_addr.h: flags that do not fit the header
	m := newMessage(fmt.Sprintf("add address %s to %s", p, name), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	m.data = append(m.data, family(p.Addr()), uint8(p.Bits()), 0, scope)
	m.data = order.AppendUint32(m.data, uint32(index))
	m.bytes(unix.IFA_LOCAL, p.Addr().AsSlice())
	m.bytes(unix.IFA_ADDRESS, p.Addr().AsSlice())
	m.u32(addressFlags, unix.IFA_F_NOPREFIXROUTE)
	return m
}

// preferring has the kernel use an address for what leaves by the route.
func preferring(route message, source netip.Addr) message {
	route.bytes(unix.RTA_PREFSRC, source.AsSlice())
	return route
}

// CheckEgress reports what is wrong with the wiring, as Check does. hostVeth is the host end's name, which another version
// may have chosen.
func CheckEgress(ctx context.Context, e Egress, hostVeth string) error {
	if err := e.validate(); err != nil {
		return err
	}
	netns, err := os.Open(e.Netns)
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
	veth, err := host.link(ctx, hostVeth)
	if err != nil {
		return err
	}
	to, err := host.decision(ctx, e.Address, netip.Addr{})
	if err != nil {
		return err
	}
	if to.link != veth.index {
		return fmt.Errorf("the host sends %s to link %d, not to the pod's link %d", e.Address, to.link, veth.index)
	}
	inner, err := inPod.link(ctx, e.Name())
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if inner.index != veth.peer || inner.peer != veth.index {
		return fmt.Errorf("the host's link %d belongs to link %d in the pod, not to %d", veth.index, veth.peer, inner.index)
	}
	if own, err := inPod.owns(ctx, e.Address); err != nil || own.link != inner.index {
		return errors.Join(fmt.Errorf("the pod does not own %s on %s", e.Address, e.Name()), err)
	}
	out, err := inPod.decision(ctx, elsewhere(e.Address), netip.Addr{})
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if out.link != inner.index || !out.via.IsValid() {
		return fmt.Errorf("the pod's default route is via %s link %d, not by %s", out.via, out.link, e.Name())
	}
	return nil
}

// TeardownEgress removes the host's routes to addresses, whatever link they lead to, so that the next owner of an address
// finds none. The veth goes with its namespace.
func TeardownEgress(ctx context.Context, addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	host, err := dialer{}.open()
	if err != nil {
		return err
	}
	defer host.close()
	var messages []message
	for _, addr := range addrs {
		messages = append(messages, deleteRoute(route{dst: single(addr), table: names.TableMain}))
	}
	return host.all(ctx, messages)
}

// DeleteEgressVeth deletes the host end that SetupEgress has made for a sandbox, if it is there.
func DeleteEgressVeth(ctx context.Context, containerID string) error {
	host, err := dialer{}.open()
	if err != nil {
		return err
	}
	defer host.close()
	answer, err := host.ask(ctx, getLink(EgressVeth(containerID)))
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	veth, err := parseVeth(answer)
	if err != nil {
		return err
	}
	return host.all(ctx, []message{deleteLinkByIndex(veth.host)})
}

// EgressSandbox is an address that was given to a sandbox.
type EgressSandbox struct {
	ContainerID string
	Address     netip.Addr
}

// questions bounds how many answers wait in a socket's buffer at once.
const questions = 64

// EgressGone returns those of the sandboxes of which the host knows nothing: neither a route to the address nor the veth
// that SetupEgress makes.
func EgressGone(ctx context.Context, sandboxes []EgressSandbox) ([]EgressSandbox, error) {
	host, err := dialer{}.open()
	if err != nil {
		return nil, err
	}
	defer host.close()
	var gone []EgressSandbox
	for start := 0; start < len(sandboxes); start += questions / 2 {
		part := sandboxes[start:min(start+questions/2, len(sandboxes))]
		var messages []message
		for _, s := range part {
			messages = append(messages, getRoute(s.Address, netip.Addr{}), getLink(EgressVeth(s.ContainerID)))
		}
		replies, err := host.send(ctx, messages)
		if err != nil {
			return nil, err
		}
		for i, s := range part {
			route, link := replies[2*i], replies[2*i+1]
			routed := route.err == nil && len(route.payload) >= unix.SizeofRtMsg && int(route.payload[1]) == s.Address.BitLen()
			if !routed && errors.Is(link.err, unix.ENODEV) {
				gone = append(gone, s)
			}
		}
	}
	return gone, nil
}
