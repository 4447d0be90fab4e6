package hostnet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"vpccni/pkg/networkutils/names"
)

// unreachableMetric is the last metric there is: a pod's own route in the same table wins over the unreachable one.
const unreachableMetric = math.MaxUint32

// eni is a secondary ENI that passed every check, with the numbers that follow from where it is attached.
type eni struct {
	ENI
	index int
	mark  uint32
	table int
}

// Render computes the state that the Config asks for. It fails when there can be no state at all: no or several
// primary ENIs, no VPC range to exempt from source NAT, marks that overlap. What is wrong with one ENI is in Unfit and
// leaves only that ENI out.
func Render(cfg Config) (Desired, error) {
	m, err := newMarks(cfg.PrimaryMark, cfg.ENIMask)
	if err != nil {
		return Desired{}, err
	}
	if cfg.BranchPods != BranchOff && cfg.VethPrefix == "" {
		return Desired{}, errors.New("branch pods need the veth prefix: without one every link would be a pod's")
	}
	active := cfg.families()
	if slices.Contains(active, ipv4) && len(ipv4.of(cfg.VPCCIDRs)) == 0 && !cfg.ExternalSNAT {
		// Source NAT for traffic inside the VPC would be worse than no change at all.
		return Desired{}, errors.New("no IPv4 range of the VPC is known")
	}
	primary, secondary, unfit, err := vet(cfg, m)
	if err != nil {
		return Desired{}, err
	}

	d := Desired{Unfit: unfit}
	loose := slices.Contains(active, ipv4)
	d.Links = append(d.Links, Link{ENI: primary.ID, MAC: primary.MAC.String(), Primary: true, MTU: cfg.MTU, Loose: loose})
	for _, e := range secondary {
		d.Links = append(d.Links, Link{ENI: e.ID, MAC: e.MAC.String(), MTU: cfg.MTU, Loose: loose})
	}
	for _, f := range active {
		d.Routes = append(d.Routes, f.unreachable(primary)...)
		secondary := slices.DeleteFunc(slices.Clone(secondary), func(e eni) bool { return !f.on(e.ENI) })
		for _, e := range secondary {
			if own := f.address(e.ENI); own.IsValid() {
				d.Addresses = append(d.Addresses, Address{ENI: e.ID, Prefix: own, Pool: f.of(e.Pool)})
			}
			router := f.router(e.ENI)
			d.Routes = append(d.Routes,
				Route{Table: e.table, Dst: host(router), Metric: f.metric, ENI: e.ID},
				Route{Table: e.table, Dst: f.everything, Metric: f.metric, ENI: e.ID, Gateway: router})
			d.Routes = append(d.Routes, f.unreachable(e.ENI)...)
		}
		d.Rules = append(d.Rules, f.rules(cfg, m, secondary)...)
		d.Filters = append(d.Filters, f.filter(cfg, m, primary, secondary))
		if cfg.BranchPods == BranchStrict {
			d.LocalBehind = append(d.LocalBehind, f)
		}
	}
	if d.RuleLayout = cfg.RuleLayout; d.RuleLayout == LayoutPerPod {
		d.PodTables = podTables(primary, secondary)
	}
	if d.Filters, err = withEgress(d.Filters, cfg); err != nil {
		return Desired{}, err
	}
	return d, nil
}

// vet sorts the ENIs and keeps those that can be part of one state.
func vet(cfg Config, m marks) (ENI, []eni, map[string]error, error) {
	list := slices.Clone(cfg.ENIs)
	slices.SortStableFunc(list, func(a, b ENI) int {
		return cmp.Or(cmp.Compare(a.Card, b.Card), cmp.Compare(a.Device, b.Device), cmp.Compare(a.ID, b.ID))
	})
	var (
		primary   *ENI
		secondary []eni
		unfit     = map[string]error{}
		taken     claims
	)
	for i := range list {
		if !list[i].Primary {
			continue
		}
		if primary != nil {
			return ENI{}, nil, nil, fmt.Errorf("two primary ENIs: %s and %s", primary.ID, list[i].ID)
		}
		primary = &list[i]
		if err := cfg.check(primary); err != nil {
			return ENI{}, nil, nil, fmt.Errorf("primary ENI %s: %w", primary.ID, err)
		}
		if err := taken.claim(eni{ENI: *primary, table: names.TableMain}); err != nil {
			return ENI{}, nil, nil, fmt.Errorf("primary ENI %s: %w", primary.ID, err)
		}
	}
	if primary == nil {
		return ENI{}, nil, nil, errors.New("no primary ENI")
	}
	for i := range list {
		e := eni{ENI: list[i]}
		if e.Primary {
			continue
		}
		err := cfg.check(&e.ENI)
		if err == nil {
			e.index, e.table = eniIndex(e.Card, e.Device), names.RouteTable(e.Card, e.Device)
			e.mark, err = m.value(e.index)
		}
		if err == nil {
			err = taken.claim(e)
		}
		if err != nil {
			unfit[e.ID] = err
			continue
		}
		secondary = append(secondary, e)
	}
	return *primary, secondary, unfit, nil
}

// check says whether the ENI makes sense by itself. It also brings its pool into canonical form.
func (c Config) check(e *ENI) error {
	switch {
	case e.ID == "":
		return errors.New("no id")
	case len(e.MAC) != 6:
		return fmt.Errorf("%q is no Ethernet address", e.MAC)
	case e.Device < 0 || e.Card < 0:
		return fmt.Errorf("device %d of card %d", e.Device, e.Card)
	}
	active := c.families()
	if slices.Contains(active, ipv4) {
		switch {
		case !e.Address.Is4():
			return fmt.Errorf("primary address %s is not IPv4", e.Address)
		case !e.Primary && !e.SubnetCIDR.Contains(e.Address):
			return fmt.Errorf("primary address %s is not in subnet %s", e.Address, e.SubnetCIDR)
		}
	}
	// In IPv6 an ENI need not have an address of its own: its router is asked for from the link's.
	if slices.Contains(active, ipv6) && e.Address6.IsValid() {
		switch {
		case familyOf(e.Address6) != ipv6 || !e.Address6.IsGlobalUnicast() || e.Address6.Zone() != "":
			return fmt.Errorf("primary address %s is not global IPv6", e.Address6)
		case !e.Primary && !e.SubnetCIDR6.Contains(e.Address6):
			return fmt.Errorf("primary address %s is not in subnet %s", e.Address6, e.SubnetCIDR6)
		}
	}
	for _, p := range e.Pool {
		if !p.IsValid() || !slices.Contains(active, familyOf(p.Addr())) {
			return fmt.Errorf("pool entry %s is not of a family that pods have", p)
		}
		for _, own := range []netip.Addr{e.Address, e.Address6} {
			if p.Contains(own) {
				// It would be unreachable, or taken from the host.
				return fmt.Errorf("pool entry %s contains the ENI's own address %s", p, own)
			}
		}
	}
	e.Pool = merge(e.Pool)
	return nil
}

// claims are the things that only one ENI can have.
type claims struct {
	enis []eni
	// ranges are pools and own addresses: ordered, and no two of them overlap.
	ranges []ownedRange
}

type ownedRange struct {
	netip.Prefix
	owner string
}

func (c *claims) claim(e eni) error {
	for _, o := range c.enis {
		switch {
		case o.ID == e.ID:
			return errors.New("listed twice")
		case bytes.Equal(o.MAC, e.MAC):
			return fmt.Errorf("same MAC %s as %s", e.MAC, o.ID)
		case o.table == e.table:
			return fmt.Errorf("same route table %d as %s", e.table, o.ID)
		case !o.Primary && o.index == e.index:
			return fmt.Errorf("same number %d in the mark as %s", e.index, o.ID)
		}
	}
	mine := slices.Clone(e.Pool)
	for _, own := range []netip.Addr{e.Address, e.Address6} {
		if own.IsValid() {
			mine = append(mine, host(own))
		}
	}
	for _, p := range mine {
		if o, ok := c.overlap(p); ok {
			return fmt.Errorf("%s overlaps %s of %s", p, o.Prefix, o.owner)
		}
	}
	for _, p := range mine {
		c.ranges = append(c.ranges, ownedRange{p, e.ID})
	}
	slices.SortFunc(c.ranges, func(a, b ownedRange) int { return a.Addr().Compare(b.Addr()) })
	c.enis = append(c.enis, e)
	return nil
}

// overlap returns the range that shares addresses with p. As ranges do not overlap each other, it can only be a
// neighbour of where p would be inserted.
func (c *claims) overlap(p netip.Prefix) (ownedRange, bool) {
	i, found := slices.BinarySearchFunc(c.ranges, p.Addr(), func(o ownedRange, a netip.Addr) int { return o.Addr().Compare(a) })
	if found {
		return c.ranges[i], true
	}
	if i > 0 && c.ranges[i-1].Overlaps(p) {
		return c.ranges[i-1], true
	}
	if i < len(c.ranges) && c.ranges[i].Overlaps(p) {
		return c.ranges[i], true
	}
	return ownedRange{}, false
}

// unreachable ends packets to addresses of the node that no pod has: without it they go back to the VPC router, which
// sends them here again until their TTL is used up. Unreachable and not blackhole, so that the client of a pod that is
// gone learns it at once.
func (f *family) unreachable(e ENI) []Route {
	var list []Route
	for _, p := range f.of(e.Pool) {
		list = append(list, Route{
			Table: names.TableUnassigned, Dst: p, Metric: unreachableMetric, Unreachable: true, ENI: e.ID,
		})
	}
	return list
}

func (f *family) rules(cfg Config, m marks, secondary []eni) []Rule {
	list := []Rule{{Priority: names.PriorityUnassigned, Table: names.TableUnassigned}}
	if cfg.RuleLayout == LayoutTables {
		list = append([]Rule{{Priority: names.PriorityPods, Table: names.TablePods}}, list...)
	}
	if cfg.NodePort || !cfg.ExternalSNAT {
		list = append(list, Rule{
			Priority: names.PriorityPrimaryMark, Mark: m.primary, Mask: m.primary, Table: names.TableMain,
		})
	}
	for _, p := range merge(f.of(cfg.ExternalServiceCIDRs)) {
		list = append(list, Rule{Priority: names.PriorityExternalService, Dst: p, Table: names.TableMain})
	}
	for _, e := range secondary {
		list = append(list, Rule{Priority: names.PriorityENI, Mark: e.mark, Mask: m.eni, Table: e.table})
	}
	for _, e := range secondary {
		// The host does not speak from a trunk's address.
		if own := f.address(e.ENI); own.IsValid() && !e.Trunk {
			list = append(list, Rule{Priority: names.PriorityENIAddress, Src: host(own.Addr()), Table: e.table})
		}
	}
	for i := range list {
		list[i].V6 = f.v6
	}
	return list
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// merge returns the prefixes in order and without those that another one contains: the kernel refuses ranges that
// overlap.
func merge(list []netip.Prefix) []netip.Prefix {
	sorted := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		sorted = append(sorted, p.Masked())
	}
	slices.SortFunc(sorted, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range sorted {
		if n := len(out); n > 0 && out[n-1].Contains(p.Addr()) {
			continue
		}
		out = append(out, p)
	}
	return out
}
