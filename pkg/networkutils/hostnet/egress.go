package hostnet

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
	"vpccni/pkg/networkutils/names"
)

// Egress is a range that the egress plugin gives pods addresses of, by which they reach the family that they have no
// address of the VPC in. Nobody outside of the node knows the range: what leaves has the source To.
type Egress struct {
	Range netip.Prefix
	To    netip.Addr
}

// The rules for egress ranges have base chains of their own, so that they are the same beside a family's other rules and
// without. Source NAT comes before everybody else's: also before that of single pods that the predecessor has left.
const (
	priorityEgress = prioritySNAT - 1
	priorityFilter = 0
	chainEgress    = "egress_snat"
	chainIsolate   = "egress_isolation"
)

func (e Egress) check() error {
	if !e.Range.IsValid() || e.Range.Addr().Is4In6() || e.To.BitLen() != e.Range.Addr().BitLen() || e.To.Zone() != "" ||
		e.Range.Contains(e.To) {
		return fmt.Errorf("egress range %s cannot have the source %s", e.Range, e.To)
	}
	return nil
}

// withEgress adds the rules for the ranges to the tables, and a table where their family has none.
func withEgress(filters []Filter, cfg Config) ([]Filter, error) {
	for _, f := range families {
		set := nfttable.Set{Name: names.NFEgressSet, Key: f.key, Interval: true}
		var ranges []netip.Prefix
		var translate []nfttable.Rule
		for _, e := range cfg.Egress {
			if err := e.check(); err != nil {
				return nil, err
			}
			if familyOf(e.To) != f {
				continue
			}
			ranges = append(ranges, e.Range)
			translate = append(translate, f.egressRule(e, cfg.SNATRandom))
		}
		if len(ranges) == 0 {
			continue
		}
		for _, p := range merge(ranges) {
			set.Elements = append(set.Elements, rangeElement(p))
		}
		at := -1
		for i := range filters {
			if filters[i].Table.Family == f.nft {
				at = i
			}
		}
		if at < 0 {
			filters = append(filters, Filter{Table: nfttable.Table{Family: f.nft, Name: names.NFTable}})
			at = len(filters) - 1
			if f.groupCheck {
				filters[at].Table.Chains = []nfttable.Chain{sourceCheck()}
			}
		}
		t := &filters[at].Table
		t.Sets = append(t.Sets, set)
		t.Chains = append(t.Chains,
			nfttable.Chain{
				Name: chainEgress, Rules: translate,
				Base: &nfttable.Base{Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: priorityEgress},
			},
			nfttable.Chain{
				Name: chainIsolate, Rules: []nfttable.Rule{f.isolateRule()},
				Base: &nfttable.Base{Type: "filter", Hook: unix.NF_INET_FORWARD, Priority: priorityFilter},
			})
		t.Normalize()
	}
	return filters, nil
}

// egressRule is the source NAT of one range, for all of its pods.
func (f *family) egressRule(e Egress, random SNATRandom) nfttable.Rule {
	multicast := netip.MustParsePrefix("224.0.0.0/4")
	if f.v6 {
		multicast = netip.MustParsePrefix("ff00::/8")
	}
	return join(inside(f.src, e.Range.Masked()), outside(f.dst, multicast), snat(e.To, random))
}

// isolateRule refuses connections to pods by their egress addresses: these are no way around network policies, and the
// node itself is the only one that knows them.
func (f *family) isolateRule() nfttable.Rule {
	refuse := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3} // port unreachable, as iptables' REJECT
	if f.v6 {
		refuse.Code = 4
	}
	return join(in(f.dst, names.NFEgressSet), ctStateNew, counter, nfttable.Rule{refuse})
}

var ctStateNew = nfttable.Rule{
	&expr.Ct{Key: expr.CtKeySTATE, Register: register}, bitwise(expr.CtStateBitNEW, 0), notEquals(native(0)),
}

// egressOf is the part of a table that is for egress ranges; nil if it has none.
func egressOf(t *nfttable.Table) *nfttable.Table {
	out := &nfttable.Table{Family: t.Family, Name: t.Name}
	for _, s := range t.Sets {
		if s.Name == names.NFEgressSet {
			out.Sets = append(out.Sets, s)
		}
	}
	for _, c := range t.Chains {
		if c.Name == chainEgress || c.Name == chainIsolate {
			out.Chains = append(out.Chains, c)
		}
	}
	if len(out.Sets) == 0 || len(out.Chains) == 0 {
		return nil
	}
	return out
}

// keepEgress leaves the rules for ranges that are not wanted any more in the table for as long as there are pods with
// addresses of them: their connections would break, and new ones leave with addresses that nobody can answer to.
func (a *apply) keepEgress(have, want *nfttable.Table) error {
	if have == nil || slices.ContainsFunc(want.Sets, func(s nfttable.Set) bool { return s.Name == names.NFEgressSet }) {
		return nil
	}
	rest := egressOf(have)
	if rest == nil {
		return nil
	}
	f := ipv4
	if have.Family == nfttable.IPv6 {
		f = ipv6
	}
	routes, err := listRoutes(a.h.handle, f)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.table == names.TableMain && r.dst.IsSingleIP() && covers(rest.Sets[0], r.dst.Addr()) {
			want.Sets = append(want.Sets, rest.Sets...)
			want.Chains = append(want.Chains, rest.Chains...)
			want.Normalize()
			return nil
		}
	}
	return nil
}

// covers reports whether an address is in one of the ranges of a set.
func covers(s nfttable.Set, a netip.Addr) bool {
	key := string(a.AsSlice())
	return slices.ContainsFunc(s.Elements, func(e nfttable.Element) bool {
		return len(e.Key) == len(key) && e.Key <= key && (e.End == "" || key < e.End)
	})
}
