package ipamd

import (
	"cmp"
	"net/netip"
	"slices"
)

// Of a subnet's range EC2 keeps the first four addresses and the last one.
const reservedHead = 4

// beside picks up to n addresses of a subnet that lie in the same /28s as others of this node, the fullest first: a
// /28 of which one address is used is lost for prefixes anyway. Whether somebody else has one of them is not known.
func beside(subnet netip.Prefix, own []netip.Addr, n int) []netip.Addr {
	held := map[netip.Addr]bool{}
	used := map[netip.Prefix]int{}
	for _, ip := range own {
		if held[ip] || !subnet.Contains(ip) {
			continue
		}
		held[ip] = true
		used[blockOf(ip)]++
	}
	blocks := make([]netip.Prefix, 0, len(used))
	for b := range used {
		blocks = append(blocks, b)
	}
	slices.SortFunc(blocks, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(used[b], used[a]), a.Addr().Compare(b.Addr()))
	})
	first := subnet.Masked().Addr()
	for range reservedHead {
		first = first.Next()
	}
	var out []netip.Addr
	for _, b := range blocks {
		for ip := b.Addr(); b.Contains(ip) && len(out) < n; ip = ip.Next() {
			last := !subnet.Contains(ip.Next())
			if !held[ip] && !ip.Less(first) && !last {
				out = append(out, ip)
			}
		}
	}
	return out
}

func blockOf(ip netip.Addr) netip.Prefix {
	return netip.PrefixFrom(ip, prefixBits).Masked()
}

// prefixBits is the length of the prefixes that EC2 delegates.
const prefixBits = 28

// besides picks the addresses for an ENI as beside does, out of what the node holds or has asked for. What a pod holds is
// never among them, wherever the ledger has it.
func (c *controller) besides(e *iface, n int) []netip.Addr {
	var own []netip.Addr
	taken := map[netip.Prefix]bool{}
	for _, x := range c.enis {
		own = append(own, x.Primary)
		for _, p := range c.store.Pool(x.ID) {
			if p.IsSingleIP() {
				own = append(own, p.Addr())
			} else {
				taken[p] = true
			}
		}
	}
	for _, op := range c.ops {
		own = append(own, op.want...)
	}
	for _, a := range c.store.Allocations() {
		if !taken[blockOf(a.Address)] {
			own = append(own, a.Address)
		}
	}
	return beside(e.cidr, own, n)
}
