package ec2

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// want is a wish for IPv4 addresses or prefixes, or for IPv6 ones: explicit ones, or a number of any.
type want struct {
	addrs       []netip.Addr
	count       int
	prefixes    []netip.Prefix
	prefixCount int
}

func (w want) slots() int { return len(w.addrs) + w.count + len(w.prefixes) + w.prefixCount }

// got is what a wish brought.
type got struct {
	addrs    []netip.Addr
	prefixes []netip.Prefix
}

// The two shapes of "no /28 is left": EC2 reports it with another code when it creates an ENI.
var (
	errNoCIDR         = errorf("InsufficientCidrBlocks", "The specified subnet does not have enough free cidr blocks to satisfy the request.")
	errNoCIDRCreating = errorf("InvalidParameterValue", "There aren't sufficient free Ipv4 addresses or prefixes")
	errNoAddress      = errorf("InsufficientFreeAddressesInSubnet", "The specified subnet does not have enough free addresses to satisfy the request.")
	errTooMany        = errorf("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")
)

// checkAddr says whether the address may be asked for in the subnet.
func (p *pool) checkAddr(a netip.Addr) error {
	switch {
	case !a.Is4() || !p.cidr.Contains(a):
		return invalidValue("Address %s does not fall within the subnet's address range", a)
	case p.isReserved(a):
		return invalidValue("Address %s is in subnet's reserved address range", a)
	}
	return nil
}

func errInUse(at any) *Error { return errorf("InvalidIPAddress.InUse", "Address %v is in use.", at) }

// choose takes one address: the given one, or any if it is the zero Addr.
func (ch *change) choose(subnetID string, a netip.Addr) (netip.Addr, error) {
	p := ch.pool(subnetID)
	if a.IsValid() {
		if err := p.checkAddr(a); err != nil {
			return a, err
		}
		if !p.take(a) {
			return a, errInUse(a)
		}
		return a, nil
	}
	a, ok := p.takeFree(ch.c.source.from(p.size()))
	if !ok {
		return a, errNoAddress
	}
	return a, nil
}

// assign4 gives the ENI more secondary addresses and prefixes. noCIDR is the error when no /28 is left.
func (ch *change) assign4(e *ENI, w want, reassign bool, noCIDR error) (got, error) {
	var g got
	p := ch.pool(e.SubnetID)
	for _, a := range w.addrs {
		moved, err := ch.freeForReassignment(e, a, reassign)
		if err != nil {
			return g, err
		}
		if moved {
			continue
		}
		if _, err := ch.choose(e.SubnetID, a); err != nil {
			return g, err
		}
		g.addrs = append(g.addrs, a)
	}
	for _, at := range w.prefixes {
		if at.Bits() != prefixBits || at != at.Masked() || !p.cidr.Contains(at.Addr()) {
			return g, invalidValue("The prefix %s is not a /%d of the subnet", at, prefixBits)
		}
		if !p.takePrefix(at) {
			return g, errInUse(at)
		}
		g.prefixes = append(g.prefixes, at)
	}
	if w.count > p.free {
		return g, errNoAddress
	}
	for range w.count {
		a, err := ch.choose(e.SubnetID, netip.Addr{})
		if err != nil {
			return g, err
		}
		g.addrs = append(g.addrs, a)
	}
	for range w.prefixCount {
		at, ok := p.takeFreePrefix(ch.c.source.from(p.size() / prefixSize))
		if !ok {
			return g, noCIDR
		}
		g.prefixes = append(g.prefixes, at)
	}
	slices.SortFunc(g.addrs, netip.Addr.Compare)
	slices.SortFunc(g.prefixes, netip.Prefix.Compare)
	e.Secondary = append(e.Secondary, g.addrs...)
	e.Prefixes = append(e.Prefixes, g.prefixes...)
	return g, ch.checkSlots(e)
}

// freeForReassignment takes the address away from the ENI that has it as a secondary one, if it may. It is true if
// the ENI that it is for has it already.
func (ch *change) freeForReassignment(e *ENI, a netip.Addr, allowed bool) (already bool, err error) {
	id := ch.c.index.owner(e.VPCID, a)
	owner, ok := ch.eni(id)
	if !ok || !allowed {
		return false, nil // whoever takes it now finds it free or in use
	}
	if owner.ID == e.ID && slices.Contains(e.Secondary, a) {
		return true, nil
	}
	if !slices.Contains(owner.Secondary, a) {
		return false, nil
	}
	owner = ch.edit(id)
	owner.Secondary = slices.DeleteFunc(owner.Secondary, func(o netip.Addr) bool { return o == a })
	ch.pool(owner.SubnetID).give(a)
	return false, nil
}

// assign6 gives the ENI IPv6 addresses and prefixes of its subnet.
func (ch *change) assign6(e *ENI, w want) (got, error) {
	var g got
	if w.slots() == 0 {
		return g, nil
	}
	s, ok := ch.subnet(e.SubnetID)
	if !ok || !s.IPv6.IsValid() {
		return g, invalidValue("The subnet '%s' has no IPv6 CIDR block", e.SubnetID)
	}
	for range w.count {
		w.addrs = append(w.addrs, ch.free6(e.VPCID, s.IPv6, 128).Addr())
		ch.fresh[claim{e.VPCID, single(w.addrs[len(w.addrs)-1])}] = true
	}
	explicit := len(w.addrs) - w.count
	for i, a := range w.addrs {
		if !s.IPv6.Contains(a) {
			return g, invalidValue("Address %s does not fall within the subnet's address range", a)
		}
		if i < explicit && ch.hasIPv6(e.VPCID, single(a)) {
			return g, errInUse(a)
		}
		ch.fresh[claim{e.VPCID, single(a)}] = true
		g.addrs = append(g.addrs, a)
	}
	for _, at := range w.prefixes {
		if at.Bits() != ipv6PrefixBits || at != at.Masked() || !s.IPv6.Contains(at.Addr()) {
			return g, invalidValue("The prefix %s is not a /%d of the subnet", at, ipv6PrefixBits)
		}
		if ch.hasIPv6(e.VPCID, at) {
			return g, errInUse(at)
		}
		ch.fresh[claim{e.VPCID, at}] = true
		g.prefixes = append(g.prefixes, at)
	}
	for range w.prefixCount {
		at := ch.free6(e.VPCID, s.IPv6, ipv6PrefixBits)
		ch.fresh[claim{e.VPCID, at}] = true
		g.prefixes = append(g.prefixes, at)
	}
	e.IPv6 = append(e.IPv6, g.addrs...)
	e.IPv6Prefixes = append(e.IPv6Prefixes, g.prefixes...)
	return g, ch.checkSlots(e)
}

// free6 draws a free address or prefix of a /64. The first /80 is left out: the VPC's router and the other reserved
// addresses are in it. A /64 holds 65,535 prefixes and far more addresses than any lab assigns, so that a few draws
// find one.
func (ch *change) free6(vpcID string, subnet netip.Prefix, bits int) netip.Prefix {
	for {
		b := subnet.Addr().As16()
		host := ch.c.source.rng.Uint64()
		if host>>48 == 0 {
			continue
		}
		binary.BigEndian.PutUint64(b[8:], host)
		at := netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked()
		if !ch.hasIPv6(vpcID, at) {
			return at
		}
	}
}

// checkSlots holds the ENI to the limits of the instance that it is on: addresses and prefixes alike take a slot.
func (ch *change) checkSlots(e *ENI) error {
	if e.Attachment == nil {
		return nil
	}
	i, ok := ch.instance(e.Attachment.InstanceID)
	if !ok {
		return nil
	}
	return fits(e, i.Type)
}

// fits says whether an ENI with these addresses can be on an instance of the type.
func fits(e *ENI, instanceType string) error {
	l, ok := limitsOf(instanceType)
	if !ok {
		return nil
	}
	switch {
	case 1+len(e.Secondary)+len(e.Prefixes) > l.IPv4PerInterface, len(e.IPv6)+len(e.IPv6Prefixes) > l.IPv4PerInterface:
		return errTooMany
	case l.Hypervisor == "xen" && len(e.Prefixes)+len(e.IPv6Prefixes) > 0:
		return errorf("UnsupportedOperation", "Prefixes are not supported on instance type '%s'", instanceType)
	}
	return nil
}

// unassign4 takes secondary addresses and prefixes off the ENI and frees them.
func (ch *change) unassign4(e *ENI, addrs []netip.Addr, prefixes []netip.Prefix) error {
	p := ch.pool(e.SubnetID)
	var err error
	if e.Secondary, err = without(e.ID, e.Secondary, addrs); err != nil {
		return err
	}
	if e.Prefixes, err = without(e.ID, e.Prefixes, prefixes); err != nil {
		return err
	}
	for _, a := range addrs {
		p.give(a)
	}
	for _, at := range prefixes {
		p.givePrefix(at)
	}
	return nil
}

// unassign6 takes IPv6 addresses and prefixes off the ENI.
func (ch *change) unassign6(e *ENI, addrs []netip.Addr, prefixes []netip.Prefix) (err error) {
	if e.IPv6, err = without(e.ID, e.IPv6, addrs); err != nil {
		return err
	}
	e.IPv6Prefixes, err = without(e.ID, e.IPv6Prefixes, prefixes)
	return err
}

// without gives the list without the items, all of which must be in it.
func without[T comparable](eniID string, list, items []T) ([]T, error) {
	rest := slices.Clone(list)
	for n, item := range items {
		i := slices.Index(rest, item)
		if i < 0 && slices.Contains(items[:n], item) {
			continue // named twice
		}
		if i < 0 {
			return nil, invalidValue("Some of the specified addresses are not assigned to interface %s: %v", eniID, item)
		}
		rest = slices.Delete(rest, i, i+1)
	}
	return rest, nil
}
