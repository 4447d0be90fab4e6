package hostnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"vpccni/pkg/networkutils/hostnet/nfttable"
	"vpccni/pkg/networkutils/names"
)

// Desired is the host's network state as it shall be, before any name or index of a link is known: links are meant by
// the ids of their ENIs. It is ordered, so equal Configs give equal values.
type Desired struct {
	Links     []Link
	Addresses []Address
	Routes    []Route
	Rules     []Rule
	Filters   []Filter // one per family that pods have, or reach by an egress range
	// LocalBehind are the families whose rule for the host's own addresses comes after those of branch ENIs' pods.
	LocalBehind []*family
	// RuleLayout and, with LayoutPerPod, PodTables say which rules pods have of their own.
	RuleLayout RuleLayout
	PodTables  []podTable
	// Unfit has the reason for each ENI (by id) that is left out of the rest because it contradicts itself, another
	// ENI or the marks.
	Unfit map[string]error
}

// Link is what is wanted of an ENI's link.
type Link struct {
	ENI     string
	MAC     string
	Primary bool // never set up or down, never addressed
	MTU     int  // bytes; 0 leaves it alone
	// Loose asks for loose reverse-path filtering, which is a matter of IPv4.
	Loose bool
}

// Address is an address on an ENI's link, without a connected route.
type Address struct {
	ENI    string
	Prefix netip.Prefix // the address with the length of its subnet
	// Pool are the addresses that pods may have; a host that claimed one itself would keep the pod's packets.
	Pool []netip.Prefix
}

// Route is a route in a table of ours.
type Route struct {
	Table       int
	Dst         netip.Prefix
	Metric      uint32
	Unreachable bool
	ENI         string     // whose route it is, and whose link it leaves by unless it is unreachable
	Gateway     netip.Addr // invalid for a destination on the link
}

// Rule is an ip rule: packets that match Src, Dst and Mark look into Table. A zero field matches everything.
type Rule struct {
	V6         bool
	Priority   int
	Src, Dst   netip.Prefix
	Mark, Mask uint32
	Protocol   int // of the packet: unix.IPPROTO_*
	Table      int
}

// Filter is a family's nftables table, but for the names of links.
type Filter struct {
	Table nfttable.Table
	// Primary and Secondary say which set (by name) and which maps hold names of links; see bind.
	Primary   string            // ENI id
	Secondary []secondaryFilter // by index
}

type secondaryFilter struct {
	ENI   string
	Stick nfttable.Verdict // for what arrives by the ENI; zero when replies do not stick to it
}

// String is the state in the notation of ip and nft, for people.
func (d Desired) String() string {
	var b strings.Builder
	for _, l := range d.Links {
		fmt.Fprintf(&b, "link %s %s", l.ENI, l.MAC)
		if l.MTU > 0 {
			fmt.Fprintf(&b, " mtu %d", l.MTU)
		}
		if l.Loose {
			fmt.Fprintf(&b, " rp_filter %d", rpFilterLoose)
		}
		if !l.Primary {
			b.WriteString(" up")
		}
		b.WriteByte('\n')
	}
	for _, a := range d.Addresses {
		fmt.Fprintf(&b, "address %s dev %s noprefixroute\n", a.Prefix, a.ENI)
	}
	for _, r := range d.Rules {
		fmt.Fprintf(&b, "rule %s\n", r)
	}
	for _, t := range d.PodTables {
		fmt.Fprintf(&b, "pods %s rules 512, 1536 lookup %d\n", t.Pool, t.Table)
	}
	for _, r := range d.Routes {
		fmt.Fprintf(&b, "route %s\n", r)
	}
	for _, f := range d.Filters {
		for _, s := range f.Table.Sets {
			for _, e := range s.Elements {
				fmt.Fprintf(&b, "nft %s %s\n", s.Name, elementText(s, e))
			}
		}
	}
	return b.String()
}

func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", r.Priority)
	switch {
	case r.Src.IsValid():
		fmt.Fprintf(&b, " from %s", r.Src)
	default:
		b.WriteString(" from all")
	}
	if r.Dst.IsValid() {
		fmt.Fprintf(&b, " to %s", r.Dst)
	}
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.Protocol != 0 {
		fmt.Fprintf(&b, " ipproto %d", r.Protocol)
	}
	fmt.Fprintf(&b, " lookup %s", tableName(r.Table))
	return b.String()
}

func (r Route) String() string {
	var b strings.Builder
	if r.Unreachable {
		b.WriteString("unreachable ")
	}
	b.WriteString(r.Dst.String())
	if r.Gateway.IsValid() {
		fmt.Fprintf(&b, " via %s", r.Gateway)
	}
	if !r.Unreachable {
		fmt.Fprintf(&b, " dev %s", r.ENI)
	}
	fmt.Fprintf(&b, " table %s", tableName(r.Table))
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	return b.String()
}

func tableName(t int) string {
	switch t {
	case names.TableMain:
		return "main"
	case names.TableLocal:
		return "local"
	}
	return fmt.Sprint(t)
}

func elementText(s nfttable.Set, e nfttable.Element) string {
	var b strings.Builder
	switch first, ok := netip.AddrFromSlice([]byte(e.Key)); {
	case s.Key == nfttable.KeyMark && len(e.Key) == 4:
		fmt.Fprintf(&b, "%#x", binary.NativeEndian.Uint32([]byte(e.Key)))
	case !ok:
		b.WriteString(strings.TrimRight(e.Key, "\x00"))
	default:
		b.WriteString(first.String())
		if end, ok := netip.AddrFromSlice([]byte(e.End)); ok && end.Prev() != first {
			fmt.Fprintf(&b, "-%s", end.Prev())
		}
	}
	if e.Verdict.Chain != "" {
		how := "jump"
		if e.Verdict.Goto {
			how = "goto"
		}
		fmt.Fprintf(&b, " : %s %s", how, e.Verdict.Chain)
	}
	return b.String()
}
