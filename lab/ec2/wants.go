package ec2

import "net/netip"

// privateAddresses reads PrivateIpAddress, or PrivateIpAddresses with the primary one marked.
func (p *params) privateAddresses() (primary netip.Addr, secondary []netip.Addr) {
	primary = p.addr("PrivateIpAddress", p.text("PrivateIpAddress"), netip.Addr.Is4)
	for _, g := range p.groups("PrivateIpAddresses") {
		a := g.addr("PrivateIpAddress", g.required("PrivateIpAddress"), netip.Addr.Is4)
		switch isPrimary := g.boolean("Primary"); {
		case isPrimary && primary.IsValid():
			p.fail(invalidCombination("Only one primary private IP address can be specified"))
		case isPrimary:
			primary = a
		default:
			secondary = append(secondary, a)
		}
	}
	return primary, secondary
}

// family says whether an address is of the family that is asked for.
type family = func(netip.Addr) bool

// CreateNetworkInterface takes explicit addresses and prefixes as lists of structures, Assign… takes them as plain
// lists: addrSpecs and prefixSpecs read the former, addrs and prefixes the latter.

func (p *params) addrSpecs(name string, is family) (all []netip.Addr) {
	for _, g := range p.groups(name) {
		all = append(all, p.addr(name, g.required("Ipv6Address"), is))
	}
	return all
}

// prefixSpecs reads Name.1.Name, Name.2.Name and so on.
func (p *params) prefixSpecs(name string, is family) (all []netip.Prefix) {
	for _, g := range p.groups(name) {
		all = append(all, p.prefix(g.required(name), is))
	}
	return all
}

// want4 reads what CreateNetworkInterface and AssignPrivateIpAddresses call alike.
func (p *params) want4(prefixes func(string, family) []netip.Prefix) want {
	w := want{
		count:       p.integer("SecondaryPrivateIpAddressCount", 0, 1<<16),
		prefixes:    prefixes("Ipv4Prefix", netip.Addr.Is4),
		prefixCount: p.integer("Ipv4PrefixCount", 0, 1<<12),
	}
	if w.prefixCount > 0 && (w.count > 0 || len(w.prefixes) > 0) {
		p.fail(invalidCombination("The parameter ipv4PrefixCount cannot be used with ipv4Prefixes or secondaryPrivateIpAddressCount"))
	}
	return w
}

// want6 is want4 for IPv6.
func (p *params) want6(addrs func(string, family) []netip.Addr, prefixes func(string, family) []netip.Prefix) want {
	w := want{
		addrs:       addrs("Ipv6Addresses", netip.Addr.Is6),
		count:       p.integer("Ipv6AddressCount", 0, 1<<12),
		prefixes:    prefixes("Ipv6Prefix", netip.Addr.Is6),
		prefixCount: p.integer("Ipv6PrefixCount", 0, 1<<12),
	}
	if w.count > 0 && len(w.addrs) > 0 || w.prefixCount > 0 && len(w.prefixes) > 0 {
		p.fail(invalidCombination("A count of IPv6 addresses or prefixes cannot be used with explicit ones"))
	}
	return w
}

func (p *params) connTrack() ConnectionTracking {
	g := p.group("ConnectionTrackingSpecification")
	return ConnectionTracking{
		TCPEstablished: int32(g.integer("TcpEstablishedTimeout", 60, 432000)),
		UDPStream:      int32(g.integer("UdpStreamTimeout", 60, 180)),
		UDP:            int32(g.integer("UdpTimeout", 30, 60)),
	}
}
