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

// want4 reads what CreateNetworkInterface and AssignPrivateIpAddresses call alike.
func (p *params) want4() want {
	w := want{
		count:       p.integer("SecondaryPrivateIpAddressCount", 0, 1<<16),
		prefixCount: p.integer("Ipv4PrefixCount", 0, 1<<12),
	}
	// The one takes a list of prefixes, the other a list of structures with a prefix.
	for _, g := range p.groups("Ipv4Prefix") {
		if v, ok := g.get("Ipv4Prefix"); ok {
			w.prefixes = append(w.prefixes, p.prefix(v, netip.Addr.Is4))
		}
	}
	w.prefixes = append(w.prefixes, p.prefixes("Ipv4Prefix", netip.Addr.Is4)...)
	if w.prefixCount > 0 && (w.count > 0 || len(w.prefixes) > 0) {
		p.fail(invalidCombination("The parameter ipv4PrefixCount cannot be used with ipv4Prefixes or secondaryPrivateIpAddressCount"))
	}
	return w
}

// want6 is want4 for IPv6.
func (p *params) want6() want {
	w := want{
		count:       p.integer("Ipv6AddressCount", 0, 1<<12),
		prefixCount: p.integer("Ipv6PrefixCount", 0, 1<<12),
	}
	for _, g := range p.groups("Ipv6Addresses") {
		if v, ok := g.get("Ipv6Address"); ok {
			w.addrs = append(w.addrs, p.addr("Ipv6Address", v, netip.Addr.Is6))
		}
	}
	w.addrs = append(w.addrs, p.addrs("Ipv6Addresses", netip.Addr.Is6)...)
	for _, g := range p.groups("Ipv6Prefix") {
		if v, ok := g.get("Ipv6Prefix"); ok {
			w.prefixes = append(w.prefixes, p.prefix(v, netip.Addr.Is6))
		}
	}
	w.prefixes = append(w.prefixes, p.prefixes("Ipv6Prefix", netip.Addr.Is6)...)
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
