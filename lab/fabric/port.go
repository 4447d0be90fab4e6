package fabric

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nameTries bounds the search for a free interface name in a node.
const nameTries = 100

// port is the router's end of a plugged ENI.
type port struct {
	name   string
	index  int
	spec   portSpec
	routes map[netip.Prefix]bool // in the kernel
}

// plug makes the interface of an ENI in its node, and the router's end of it, without any route yet.
func (f *Fabric) plug(id string, spec portSpec) (*port, error) {
	mac, err := net.ParseMAC(spec.mac)
	if err != nil {
		return nil, err
	}
	node := f.nodes[spec.instance]
	link, err := f.addPair(node, spec, mac)
	if err != nil {
		return nil, err
	}
	p := &port{name: link.Name, index: link.Index, routes: map[netip.Prefix]bool{}}
	f.links[p.name] = owner{eni: id, instance: spec.instance}
	if err := f.preparePort(link, id, spec, mac); err != nil {
		return nil, errors.Join(err, f.deleteLink(p.name))
	}
	// Nobody configures what is attached later: that is for a CNI to do. The primary interface is configured by
	// the operating system before anything else runs.
	if spec.card == 0 && spec.device == 0 {
		if err := boot(node, link.PeerName, spec, f.v6); err != nil {
			return nil, errors.Join(fmt.Errorf("configure %s as at boot: %w", link.PeerName, err), f.deleteLink(p.name))
		}
	}
	f.vpc.settle(p.index)
	f.ports[id] = p
	f.log.Info("eni plugged", "eni", id, "instance", spec.instance, "interface", link.PeerName, "port", p.name)
	return p, nil
}

// addPair makes the veth pair with each end in its namespace from the start: no link ever moves, and none is ever
// seen without its MAC.
func (f *Fabric) addPair(node *namespace, spec portSpec, mac net.HardwareAddr) (*netlink.Veth, error) {
	f.numbers.link++
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("port%d", f.numbers.link)
	attrs.MTU = f.mtu
	attrs.Group = spec.vpc
	attrs.Flags = net.FlagUp
	for i := range nameTries {
		link := netlink.NewVeth(attrs)
		link.PeerName = linkName(spec.card, spec.device, i)
		link.PeerHardwareAddr = mac
		link.PeerNamespace = netlink.NsFd(node.file.Fd())
		switch err := f.vpc.LinkAdd(link); {
		case errors.Is(err, unix.EEXIST):
			continue
		case err != nil:
			return nil, fmt.Errorf("make interface %s: %w", link.PeerName, err)
		}
		return link, nil
	}
	return nil, fmt.Errorf("no free interface name from %s on", linkName(spec.card, spec.device, 0))
}

// preparePort makes the router's end answer for the subnet and know the MAC at its other end without asking.
func (f *Fabric) preparePort(link *netlink.Veth, id string, spec portSpec, mac net.HardwareAddr) error {
	if err := f.vpc.LinkSetAlias(link, id); err != nil {
		return fmt.Errorf("label port: %w", err)
	}
	if err := f.vpc.answerARPAtOnce(link.Index); err != nil {
		return fmt.Errorf("take away the delay of arp answers: %w", err)
	}
	hops := []netip.Addr{spec.primary}
	if f.v6 {
		hops = append(hops, linkLocal(mac))
		if err := f.vpc.addAddr(link, netip.PrefixFrom(RouterAddr6, 64), netlink.SCOPE_LINK); err != nil {
			return err
		}
	}
	for _, hop := range hops {
		err := f.vpc.NeighSet(&netlink.Neigh{LinkIndex: link.Index, State: netlink.NUD_PERMANENT, IP: hop.AsSlice(), HardwareAddr: mac})
		if err != nil {
			return fmt.Errorf("set neighbour %s: %w", hop, err)
		}
	}
	return nil
}

// forward brings the routes of a port to what its spec wants.
func (f *Fabric) forward(p *port) error {
	add, remove := diff(p.routes, setOf(p.spec.routes), comparePrefix)
	for _, dst := range add {
		if dst.Addr().Is6() && !f.v6 {
			continue
		}
		route, err := p.route(dst)
		if err == nil {
			// Replace: an address can come here before it has left another ENI.
			err = f.vpc.RouteReplace(route)
		}
		if err != nil {
			return fmt.Errorf("forward %s: %w", dst, err)
		}
		p.routes[dst] = true
	}
	for _, dst := range remove {
		route, err := p.route(dst)
		if err == nil {
			err = f.vpc.RouteDel(route)
		}
		// Gone if it has moved to another ENI since.
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop forwarding %s: %w", dst, err)
		}
		delete(p.routes, dst)
	}
	return nil
}

// route sends dst to the ENI's MAC: by one neighbour for all of the ENI's addresses.
func (p *port) route(dst netip.Prefix) (*netlink.Route, error) {
	r := &netlink.Route{LinkIndex: p.index, Dst: ipNet(dst), Protocol: unix.RTPROT_STATIC}
	switch {
	case dst == single(p.spec.primary):
		r.Scope = netlink.SCOPE_LINK
	case dst.Addr().Is4():
		r.Gw, r.Flags = p.spec.primary.AsSlice(), int(netlink.FLAG_ONLINK)
	default:
		mac, err := net.ParseMAC(p.spec.mac)
		if err != nil {
			return nil, err
		}
		r.Gw = linkLocal(mac).AsSlice()
	}
	return r, nil
}

// unplug takes an ENI's interface away from its node, and all of its routes with it.
func (f *Fabric) unplug(id string) error {
	p := f.ports[id]
	if p == nil {
		return nil
	}
	if err := f.deleteLink(p.name); err != nil {
		return fmt.Errorf("unplug eni %s: %w", id, err)
	}
	delete(f.ports, id)
	f.log.Info("eni unplugged", "eni", id, "instance", p.spec.instance, "port", p.name)
	return nil
}

// deleteLink deletes a veth pair by the router's end, which works whatever became of the other end's namespace.
func (f *Fabric) deleteLink(name string) error {
	link, err := f.vpc.LinkByName(name)
	if err == nil {
		err = f.vpc.LinkDel(link)
	}
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// present says whether the pair is still there: it goes when the node's namespace does.
func (f *Fabric) present(p *port) bool {
	_, err := f.vpc.LinkByIndex(p.index)
	return err == nil
}

// boot configures a primary interface as an instance's DHCP client does. Routes are laid in the order given, since
// the later ones need the earlier.
func boot(node *namespace, name string, spec portSpec, v6 bool) error {
	link, err := node.LinkByName(name)
	if err != nil {
		return err
	}
	if err := node.LinkSetUp(link); err != nil {
		return err
	}
	if err := node.addAddr(link, netip.PrefixFrom(spec.primary, spec.subnet.Bits()), netlink.SCOPE_UNIVERSE); err != nil {
		return err
	}
	gateway := GatewayAddr(spec.subnet).AsSlice()
	index := link.Attrs().Index
	routes := []netlink.Route{
		{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: gateway, Protocol: unix.RTPROT_DHCP},
		{Dst: ipNet(single(spec.resolver)), Gw: gateway, Protocol: unix.RTPROT_DHCP},
		{Dst: ipNet(single(IMDSAddr)), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_DHCP},
		{Dst: ipNet(single(ResolverAddr)), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_DHCP},
	}
	if len(spec.ipv6) > 0 && v6 {
		for _, a := range spec.ipv6 {
			if err := node.addAddr(link, single(a), netlink.SCOPE_UNIVERSE); err != nil {
				return err
			}
		}
		routes = append(routes, netlink.Route{Dst: ipNet(netip.MustParsePrefix("::/0")), Gw: RouterAddr6.AsSlice(),
			Flags: int(netlink.FLAG_ONLINK), Protocol: unix.RTPROT_RA})
	}
	for _, r := range routes {
		r.LinkIndex = index
		// Replace: the resolver is the gateway's neighbour in the subnet that starts the VPC.
		if err := node.RouteReplace(&r); err != nil {
			return fmt.Errorf("route to %s: %w", r.Dst, err)
		}
	}
	return nil
}
