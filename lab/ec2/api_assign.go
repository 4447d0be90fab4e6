package ec2

import "net/netip"

type xmlAssignedIP struct {
	Addr string `xml:"privateIpAddress"`
}

type assignReply struct {
	reply
	ENI      string                `xml:"networkInterfaceId"`
	Addrs    xmlSet[xmlAssignedIP] `xml:"assignedPrivateIpAddressesSet"`
	Prefixes xmlSet[xmlIPv4Prefix] `xml:"assignedIpv4PrefixSet"`
	Return   bool                  `xml:"return"`
}

// onENI carries out a change of one ENI.
func (c *Cloud) onENI(id string, fn func(*change, *ENI) error) error {
	return c.change(func(ch *change) error {
		if _, ok := ch.eni(id); !ok {
			return kindENI.notFound(id)
		}
		return fn(ch, ref(ch.c.enis[id].clone()))
	})
}

func (c *Cloud) assignPrivateIPAddresses(q *call) (response, error) {
	id, w, reassign := q.id("NetworkInterfaceId", kindENI), q.want4(q.prefixes), q.boolean("AllowReassignment")
	w.addrs = q.addrs("PrivateIpAddress", netip.Addr.Is4)
	if w.count > 0 && len(w.addrs) > 0 || w.prefixCount > 0 && len(w.addrs) > 0 {
		q.fail(invalidCombination("A count of addresses or prefixes cannot be used with the parameter privateIpAddresses"))
	}
	if w.slots() == 0 {
		q.fail(missing("secondaryPrivateIpAddressCount or privateIpAddresses"))
	}
	if err := q.finish(); err != nil {
		return nil, err
	}
	var g got
	err := c.onENI(id, func(ch *change, e *ENI) (err error) {
		g, err = ch.assign4(e, w, reassign, errNoCIDR)
		ch.put(e) // after those that lose an address to it
		return err
	})
	return &assignReply{
		ENI: id, Return: true,
		Addrs:    setOf(g.addrs, func(a netip.Addr) xmlAssignedIP { return xmlAssignedIP{a.String()} }),
		Prefixes: setOf(g.prefixes, func(p netip.Prefix) xmlIPv4Prefix { return xmlIPv4Prefix{p.String()} }),
	}, err
}

func (c *Cloud) unassignPrivateIPAddresses(q *call) (response, error) {
	id := q.id("NetworkInterfaceId", kindENI)
	addrs, prefixes := q.addrs("PrivateIpAddress", netip.Addr.Is4), q.prefixes("Ipv4Prefix", netip.Addr.Is4)
	if len(addrs)+len(prefixes) == 0 {
		q.fail(missing("privateIpAddresses"))
	}
	if err := q.finish(); err != nil {
		return nil, err
	}
	return &done{Return: true}, c.onENI(id, func(ch *change, e *ENI) error {
		ch.put(e)
		return ch.unassign4(e, addrs, prefixes)
	})
}

type assign6Reply struct {
	reply
	ENI      string         `xml:"networkInterfaceId"`
	Addrs    xmlSet[string] `xml:"assignedIpv6Addresses"`
	Prefixes xmlSet[string] `xml:"assignedIpv6PrefixSet"`
}

func (c *Cloud) assignIPv6Addresses(q *call) (response, error) {
	id, w := q.id("NetworkInterfaceId", kindENI), q.want6(q.addrs, q.prefixes)
	if w.slots() == 0 {
		q.fail(missing("ipv6AddressCount or ipv6Addresses"))
	}
	if err := q.finish(); err != nil {
		return nil, err
	}
	var g got
	err := c.onENI(id, func(ch *change, e *ENI) (err error) {
		ch.put(e)
		g, err = ch.assign6(e, w)
		return err
	})
	return &assign6Reply{
		ENI: id, Addrs: setOf(g.addrs, netip.Addr.String), Prefixes: setOf(g.prefixes, netip.Prefix.String),
	}, err
}

type unassign6Reply struct {
	reply
	ENI      string         `xml:"networkInterfaceId"`
	Addrs    xmlSet[string] `xml:"unassignedIpv6Addresses"`
	Prefixes xmlSet[string] `xml:"unassignedIpv6PrefixSet"`
}

func (c *Cloud) unassignIPv6Addresses(q *call) (response, error) {
	id := q.id("NetworkInterfaceId", kindENI)
	addrs, prefixes := q.addrs("Ipv6Addresses", netip.Addr.Is6), q.prefixes("Ipv6Prefix", netip.Addr.Is6)
	if len(addrs)+len(prefixes) == 0 {
		q.fail(missing("ipv6Addresses"))
	}
	if err := q.finish(); err != nil {
		return nil, err
	}
	err := c.onENI(id, func(ch *change, e *ENI) error {
		ch.put(e)
		return ch.unassign6(e, addrs, prefixes)
	})
	return &unassign6Reply{
		ENI: id, Addrs: setOf(addrs, netip.Addr.String), Prefixes: setOf(prefixes, netip.Prefix.String),
	}, err
}
