package hostnet

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
	"vpccni/pkg/networkutils/names"
)

// Priorities of the base chains. Marks are set after every DNAT (nat hooks run at -100), so that a Service is judged
// by its endpoint; in a filter-type chain, because nat-type ones see the first packet of a connection only.
const (
	priorityMarks       = -90
	prioritySNAT        = 100
	prioritySourceCheck = -300
	priorityZone        = -300 // before connection tracking, at -200
)

// Names of the sets and maps.
const (
	setExempt    = "exempt"       // destinations that pods reach with their own address
	setPrimary   = "primary"      // link of the primary ENI
	setSecondary = "secondary"    // links of the other managed ENIs
	mapSource    = "eni_src"      // pods' addresses → the ENI they leave by
	mapReply     = "reply_by"     // ENI number in the connection's mark → the ENI it came in by
	mapArrived   = "arrived_by"   // link → the ENI it came in by
	chainPre     = "prerouting"   // base chain: marks
	chainPrimary = "from_primary" // came in by the primary ENI
	chainPodOut  = "pod_out"      // leaves a pod of a secondary ENI
	chainPost    = "postrouting"  // base chain: source NAT
	chainZone    = "zone"         // base chain: strict pods' connections are tracked apart
	chainSource  = "source_check" // base chain: pods send from their own addresses
	eniChain     = "eni_"         // and the ENI's number: came from a pod of this ENI
)

// strictZone is the conntrack zone of what comes in by the links of strict branch ENIs' pods. Packets between the node
// and such a pod pass conntrack twice: on their way out by the node's ENI, and again when the VPC brings them back by the
// branch ENI. In one zone the second passage is a connection of its own with the addresses that the first one has put on
// the wire; a connection of the node that happens to have the same ones is then taken for it, and both hang. A Service's
// source NAT and a probe of the kubelet meet like that.
const strictZone = 1

// filter renders the family's table. Its rules mention no link and no address but the primary one: those are elements
// of named sets, so that an ENI or an address that comes or goes changes elements and its own three chains only.
func (f *family) filter(cfg Config, m marks, primary ENI, secondary []eni) Filter {
	out := Filter{Primary: primary.ID}
	src := nfttable.Set{Name: mapSource, Key: f.key, Interval: true, Map: true}
	reply := nfttable.Set{Name: mapReply, Key: nfttable.KeyMark, Map: true}
	chains := []nfttable.Chain{
		{
			Name:  chainPre,
			Base:  &nfttable.Base{Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: priorityMarks},
			Rules: f.preroutingRules(cfg, m),
		},
		{Name: chainPodOut, Rules: f.podOutRules(cfg, m)},
	}
	for _, e := range secondary {
		chain := fmt.Sprintf(eniChain+"%d", e.index)
		for _, p := range f.of(e.Pool) {
			el := rangeElement(p)
			el.Verdict.Chain = chain
			src.Elements = append(src.Elements, el)
		}
		s := secondaryFilter{ENI: e.ID}
		chains = append(chains, nfttable.Chain{
			Name: chain, Rules: []nfttable.Rule{setMark(metaMark, m.eni, e.mark), {gotoChain(chainPodOut)}},
		})
		// Replies stick to the ENI that the connection came in by, which only matters for what kube-proxy and its like
		// send on from an ENI's own address.
		if cfg.NodePort {
			set, stick := fmt.Sprintf("set_%d", e.index), fmt.Sprintf("stick_%d", e.index)
			chains = append(chains,
				nfttable.Chain{Name: set, Rules: []nfttable.Rule{setMark(metaMark, m.eni, e.mark)}},
				nfttable.Chain{Name: stick, Rules: []nfttable.Rule{setMark(ctMark, e.mark, e.mark)}})
			reply.Elements = append(reply.Elements, nfttable.Element{
				Key: string(native(e.mark)), Verdict: nfttable.Verdict{Goto: true, Chain: set},
			})
			s.Stick = nfttable.Verdict{Chain: stick}
		}
		out.Secondary = append(out.Secondary, s)
	}
	if cfg.NodePort {
		chains = append(chains, nfttable.Chain{Name: chainPrimary, Rules: fromPrimaryRules(m)})
	}
	sets := []nfttable.Set{
		src, reply,
		{Name: setPrimary, Key: nfttable.KeyIfname},
		{Name: mapArrived, Key: nfttable.KeyIfname, Map: true},
	}
	if f.snat {
		exempt := nfttable.Set{Name: setExempt, Key: f.key, Interval: true}
		for _, p := range merge(append(f.of(cfg.VPCCIDRs), f.of(cfg.ExcludeSNATCIDRs)...)) {
			exempt.Elements = append(exempt.Elements, rangeElement(p))
		}
		sets = append(sets, exempt, nfttable.Set{Name: setSecondary, Key: nfttable.KeyIfname})
	}
	if f.snat && !cfg.ExternalSNAT {
		chains = append(chains, nfttable.Chain{
			Name:  chainPost,
			Base:  &nfttable.Base{Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: prioritySNAT},
			Rules: postroutingRules(cfg, primary.Address),
		})
	}
	if cfg.BranchPods != BranchOff {
		chains = append(chains, nfttable.Chain{
			Name:  chainZone,
			Base:  &nfttable.Base{Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: priorityZone},
			Rules: []nfttable.Rule{join(groupIs(iifgroup, names.GroupStrictPod), setZone(strictZone))},
		})
	}
	if f.groupCheck {
		chains = append(chains, sourceCheck())
	}
	out.Table = nfttable.Table{Family: f.nft, Name: names.NFTable, Sets: sets, Chains: chains}
	out.Table.Normalize()
	return out
}

func (f *family) preroutingRules(cfg Config, m marks) []nfttable.Rule {
	var list []nfttable.Rule
	if cfg.NodePort {
		list = append(list,
			join(direction(reply), marked(ctMark, m.eni), vmap(mapReply)),
			join(direction(original), dnatted, markIs(ctMark, m.own(), 0), load(iifname), vmap(mapArrived)),
			join(linkIn(iifname, setPrimary), direction(original), markUnset(ctMark, m.primary), jump(chainPrimary)))
	}
	list = append(list, join(load(f.src), vmap(mapSource)))
	if cfg.BranchPods != BranchOff {
		// What branch ENIs' pods send is sorted by their own rules; what must leave by the primary ENI all the same has its
		// mark before those, as any other pod's.
		list = append(list, join(linkPrefix(iifname, cfg.VethPrefix), jump(chainPodOut)))
	}
	return list
}

// fromPrimaryRules mark connections whose replies must leave by the primary ENI. After DNAT the destination is a pod
// already; what is still local is for the host itself, or for IPVS.
func fromPrimaryRules(m marks) []nfttable.Rule {
	return []nfttable.Rule{
		join(dnatted, setMark(ctMark, m.primary, m.primary), verdict(returns)),
		join(fibLocalHere, setMark(ctMark, m.primary, m.primary)),
	}
}

// podOutRules decide by which ENI a packet of a pod on a secondary ENI leaves. The decision is made on packets in the
// connection's original direction only: a reply to on-prem or to a load balancer leaves as it came.
func (f *family) podOutRules(cfg Config, m marks) []nfttable.Rule {
	var list []nfttable.Rule
	snat := f.snat && !cfg.ExternalSNAT
	if snat {
		list = append(list, join(direction(original), markUnset(ctMark, m.primary), notIn(f.dst, setExempt),
			fibType(notLocal), setMark(ctMark, m.primary, m.primary)))
	}
	if cfg.NodePort || snat {
		list = append(list, join(markSet(ctMark, m.primary), setMark(metaMark, m.primary, m.primary)))
	}
	return list
}

// postroutingRules give what leaves the VPC the primary address. Branch ENIs' pods and whatever leaves by a secondary
// ENI keep theirs: the VPC drops the primary address there. What has the primary address already is left alone: a
// connection of the host that is older than these rules is new to conntrack, and a random source port in its middle
// would reset it. Ports still cannot clash, for conntrack gives a connection without a rule another port where its own
// is taken.
func postroutingRules(cfg Config, primary netip.Addr) []nfttable.Rule {
	return []nfttable.Rule{
		join(linkPrefix(oifname, "vlan"), verdict(returns)),
		join(linkIn(oifname, setSecondary), verdict(returns)),
		join(addressIs(saddr, primary), verdict(returns)),
		join(in(daddr, setExempt), verdict(returns)),
		join(fibType(local), verdict(returns)),
		snat(primary, cfg.SNATRandom),
	}
}

// sourceCheck is the chain that drops what a pod sends from an address that is not routed back to it: a neighbour's, the
// node's, anybody's. It comes before connection tracking, so that nothing of it is left. Link-local addresses, and none at all,
// are how neighbours find each other, and go no further than the node.
func sourceCheck() nfttable.Chain {
	return nfttable.Chain{
		Name: chainSource,
		Base: &nfttable.Base{Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: prioritySourceCheck},
		Rules: []nfttable.Rule{join(groupIs(iifgroup, names.GroupSourceCheck), outside(saddr6, netip.MustParsePrefix("fe80::/10")),
			outside(saddr6, host(netip.IPv6Unspecified())), fibSourceUnroutable, counter, verdict(drop))},
	}
}

// rangeElement is the range of a prefix.
func rangeElement(p netip.Prefix) nfttable.Element {
	first := p.Addr().AsSlice()
	end := append([]byte(nil), first...)
	for i := range end {
		if host := 8*(i+1) - p.Bits(); host > 0 {
			end[i] |= byte(0xff >> max(0, 8-host))
		}
	}
	el := nfttable.Element{Key: string(first)}
	if last, _ := netip.AddrFromSlice(end); last.Next().IsValid() {
		el.End = string(last.Next().AsSlice())
	}
	return el
}

// linkElement is the name of a link.
func linkElement(name string) nfttable.Element {
	var key [unix.IFNAMSIZ]byte
	copy(key[:], name)
	return nfttable.Element{Key: string(key[:])}
}

// bind returns the table with the links' names in it. A link that is not there has no elements.
func (f Filter) bind(linkOf func(eni string) string) nfttable.Table {
	t := f.Table
	t.Sets = append([]nfttable.Set(nil), t.Sets...)
	for i := range t.Sets {
		switch t.Sets[i].Name {
		case setPrimary:
			if name := linkOf(f.Primary); name != "" {
				t.Sets[i].Elements = []nfttable.Element{linkElement(name)}
			}
		case setSecondary, mapArrived:
			for _, s := range f.Secondary {
				name := linkOf(s.ENI)
				if name == "" || t.Sets[i].Map && s.Stick.Chain == "" {
					continue
				}
				el := linkElement(name)
				if t.Sets[i].Map {
					el.Verdict = s.Stick
				}
				t.Sets[i].Elements = append(t.Sets[i].Elements, el)
			}
		}
	}
	t.Normalize()
	return t
}
