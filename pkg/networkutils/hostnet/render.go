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
	if cfg.Antispoof && cfg.VethPrefix == "" {
		return Desired{}, errors.New("antispoof needs the veth prefix: without one it would match every link")
	}
	exempt := merge(append(v4(cfg.VPCCIDRs), v4(cfg.ExcludeSNATCIDRs)...))
	if len(v4(cfg.VPCCIDRs)) == 0 && !cfg.ExternalSNAT {
		// Source NAT for traffic inside the VPC would be worse than no change at all.
		return Desired{}, errors.New("no IPv4 range of the VPC is known")
	}
	primary, secondary, unfit, err := vet(cfg, m)
	if err != nil {
		return Desired{}, err
	}

	d := Desired{Unfit: unfit}
	d.Links = append(d.Links, Link{ENI: primary.ID, MAC: primary.MAC.String(), Primary: true, MTU: cfg.MTU})
	d.Routes = append(d.Routes, unreachable(primary)...)
	for _, e := range secondary {
		d.Links = append(d.Links, Link{ENI: e.ID, MAC: e.MAC.String(), MTU: cfg.MTU})
		d.Addresses = append(d.Addresses, Address{
			ENI:    e.ID,
			Prefix: netip.PrefixFrom(e.Address, e.SubnetCIDR.Bits()),
			Pool:   e.Pool,
		})
		router := e.SubnetCIDR.Masked().Addr().Next() // the VPC router of every subnet
		d.Routes = append(d.Routes,
			Route{Table: e.table, Dst: host(router), ENI: e.ID},
			Route{Table: e.table, Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), ENI: e.ID, Gateway: router})
		d.Routes = append(d.Routes, unreachable(e.ENI)...)
	}
	d.Rules = rules(cfg, m, secondary)
	d.Filter = filter(cfg, m, primary, secondary, exempt)
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
		if err := check(primary); err != nil {
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
		err := check(&e.ENI)
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
func check(e *ENI) error {
	switch {
	case e.ID == "":
		return errors.New("no id")
	case len(e.MAC) != 6:
		return fmt.Errorf("%q is no Ethernet address", e.MAC)
	case e.Device < 0 || e.Card < 0:
		return fmt.Errorf("device %d of card %d", e.Device, e.Card)
	case !e.Address.Is4():
		return fmt.Errorf("primary address %s is not IPv4", e.Address)
	case !e.Primary && !e.SubnetCIDR.Contains(e.Address):
		return fmt.Errorf("primary address %s is not in subnet %s", e.Address, e.SubnetCIDR)
	}
	for _, p := range e.Pool {
		switch {
		case !p.IsValid() || !p.Addr().Is4():
			return fmt.Errorf("pool entry %s is not IPv4", p)
		case p.Contains(e.Address):
			// It would be unreachable, or taken from the host.
			return fmt.Errorf("pool entry %s contains the ENI's own address %s", p, e.Address)
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
	mine := append(slices.Clone(e.Pool), host(e.Address))
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
func unreachable(e ENI) []Route {
	var list []Route
	for _, p := range e.Pool {
		list = append(list, Route{
			Table: names.TableUnassigned, Dst: p, Metric: unreachableMetric, Unreachable: true, ENI: e.ID,
		})
	}
	return list
}

func rules(cfg Config, m marks, secondary []eni) []Rule {
	list := []Rule{
		{Priority: names.PriorityPods, Table: names.TablePods},
		{Priority: names.PriorityUnassigned, Table: names.TableUnassigned},
	}
	if cfg.NodePort || !cfg.ExternalSNAT {
		list = append(list, Rule{
			Priority: names.PriorityPrimaryMark, Mark: m.primary, Mask: m.primary, Table: names.TableMain,
		})
	}
	for _, p := range merge(v4(cfg.ExternalServiceCIDRs)) {
		list = append(list, Rule{Priority: names.PriorityExternalService, Dst: p, Table: names.TableMain})
	}
	for _, e := range secondary {
		list = append(list, Rule{Priority: names.PriorityENI, Mark: e.mark, Mask: m.eni, Table: e.table})
	}
	for _, e := range secondary {
		list = append(list, Rule{Priority: names.PriorityENIAddress, Src: host(e.Address), Table: e.table})
	}
	return list
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func v4(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if p.IsValid() && p.Addr().Is4() {
			out = append(out, p)
		}
	}
	return out
}

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
