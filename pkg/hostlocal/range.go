package hostlocal

import (
	"fmt"
	"net/netip"
)

// Range is what addresses are taken from.
type Range struct {
	Subnet netip.Prefix
	// Gateway is never handed out.
	Gateway netip.Addr
	// First and Last are the ends of the range, both included.
	First, Last netip.Addr
}

// NewRange fills in what host-local does where its configuration is silent (the zero Addr): the gateway is the first
// address behind the subnet's own, the range begins there, too, and ends with the last one, in IPv4 with the last before the
// broadcast address.
func NewRange(subnet netip.Prefix, first, last, gateway netip.Addr) (Range, error) {
	if !subnet.IsValid() || subnet.Addr().Is4In6() || subnet.Bits() > subnet.Addr().BitLen()-2 {
		return Range{}, fmt.Errorf("%s is no subnet to take addresses from", subnet)
	}
	if subnet != subnet.Masked() {
		return Range{}, fmt.Errorf("subnet %s has bits behind its prefix", subnet)
	}
	r := Range{Subnet: subnet, Gateway: gateway, First: first, Last: last}
	if !gateway.IsValid() {
		r.Gateway = subnet.Addr().Next()
	}
	if !first.IsValid() {
		r.First = subnet.Addr().Next()
	}
	if !last.IsValid() {
		r.Last = lastOf(subnet)
		if subnet.Addr().Is4() {
			r.Last = r.Last.Prev()
		}
	}
	if !subnet.Contains(r.First) || !subnet.Contains(r.Last) || r.Last.Less(r.First) {
		return Range{}, fmt.Errorf("range %s-%s is not in subnet %s", r.First, r.Last, subnet)
	}
	return r, nil
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

func (r Range) contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && !a.Less(r.First) && !r.Last.Less(a)
}

// next returns the first free address behind last, around the end of the range if need be.
func (r Range) next(last netip.Addr, taken map[netip.Addr]bool) (netip.Addr, bool) {
	start := r.First
	if r.contains(last) && last != r.Last {
		start = last.Next()
	}
	for a := start; ; {
		if a != r.Gateway && !taken[a] {
			return a, true
		}
		if a == r.Last {
			a = r.First
		} else {
			a = a.Next()
		}
		if a == start {
			return netip.Addr{}, false
		}
	}
}
