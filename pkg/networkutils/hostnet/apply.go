package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
	"vpccni/pkg/networkutils/names"
)

// Apply makes the host's state the one that the Config asks for and writes only what differs. What fails for one ENI
// leaves that ENI in Report.NotReady, and only there, as does a link that is not there or an ENI that Render left out;
// everything else is done. An error is for what concerns all: then no ENI can be relied on.
//
// The routes of running pods must be in table names.TablePods before the first Apply, unless the predecessor's rules
// lead to them: addresses without one are unreachable afterwards.
func (h *Host) Apply(ctx context.Context, cfg Config) (Report, error) {
	desired, err := Render(cfg)
	if err != nil {
		return Report{}, fmt.Errorf("render host network: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	a := &apply{h: h, desired: desired, report: Report{NotReady: map[string]error{}}}
	a.perPod.pods = map[*family]map[netip.Prefix]bool{}
	for id, err := range desired.Unfit {
		a.report.NotReady[id] = err
	}
	if err := a.run(ctx); err != nil {
		a.failAll(err)
	}
	h.setScope(desired, a.linkOf, a.localBehind)
	if a.report.Writes > 0 {
		h.log.Info("host network changed", "writes", a.report.Writes, "not_ready", len(a.report.NotReady))
	}
	return a.report, errors.Join(a.errs...)
}

// apply is one Apply.
type apply struct {
	h       *Host
	desired Desired
	linkOf  map[string]link // by ENI id
	report  Report
	errs    []error
	// localBehind tells that some family's rule for the host's own addresses is behind those of branch ENIs' pods.
	localBehind bool
	perPod      perPod
}

// run returns an error only for what makes every ENI unusable.
func (a *apply) run(ctx context.Context) error {
	if err := a.links(); err != nil {
		return err
	}
	var staleRoutes []route
	var staleRules []rule
	for _, f := range families {
		if err := ctx.Err(); err != nil {
			return err
		}
		stale, err := a.routes(ctx, f)
		if err != nil {
			return err
		}
		staleRoutes = append(staleRoutes, stale...)
		rules, err := a.rules(f)
		if err != nil {
			return err
		}
		staleRules = append(staleRules, rules...)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := a.filter(ctx); err != nil {
		return err
	}
	// Deletes come last: until here every packet found either the old state or the new one.
	for _, r := range staleRules {
		a.write("delete rule "+r.String(), "", r.delete(a.h.rtnl))
	}
	if err := a.settlePodRules(); err != nil {
		return err
	}
	for _, r := range staleRoutes {
		a.write(fmt.Sprintf("delete route %s table %d", r.dst, r.table), "", deleteRoute(a.h.handle, r))
	}
	return nil
}

// write counts a change that was made, or keeps the error of one that was not: the ENI that it was for is not ready
// without it. The id is empty for changes that are for none in particular.
func (a *apply) write(what, eni string, err error) {
	if err == nil {
		a.report.Writes++
		a.h.log.Debug("host network write", "what", what)
		return
	}
	err = fmt.Errorf("%s: %w", what, err)
	if eni == "" {
		a.failAll(err)
		return
	}
	a.notReady(eni, err)
}

// notReady keeps the first reason, from which the others mostly follow.
func (a *apply) notReady(eni string, err error) {
	if _, ok := a.report.NotReady[eni]; !ok {
		a.report.NotReady[eni] = err
	}
}

func (a *apply) failAll(err error) {
	a.errs = append(a.errs, err)
	for _, l := range a.desired.Links {
		a.notReady(l.ENI, err)
	}
}

// links brings the links and their addresses into order.
func (a *apply) links() error {
	links, err := a.h.rtnl.links()
	if err != nil {
		return err
	}
	nics := byMAC(links)
	a.linkOf = make(map[string]link)
	for _, want := range a.desired.Links {
		l, ok := nics[want.MAC]
		if !ok {
			a.notReady(want.ENI, fmt.Errorf("%w: %s", ErrNoLink, want.MAC))
			continue
		}
		a.linkOf[want.ENI] = l
		// Strict reverse-path filtering looks replies up without the mark and drops them; the larger of conf.all's
		// value and this one counts. It is set before the link can bring in anything.
		if want.Loose && l.rpFilter != rpFilterLoose {
			a.write("set rp_filter of "+l.name, want.ENI, a.h.rtnl.setRPFilter(l.index, rpFilterLoose))
		}
		if want.MTU != 0 && l.mtu != want.MTU {
			a.write(fmt.Sprintf("set MTU of %s to %d", l.name, want.MTU), want.ENI,
				a.h.handle.LinkSetMTU(linkRef(l), want.MTU))
		}
	}
	if err := a.addresses(); err != nil {
		return err
	}
	for _, want := range a.desired.Links {
		if l, ok := a.linkOf[want.ENI]; ok && !want.Primary && !l.up {
			a.write(fmt.Sprintf("set %s up", l.name), want.ENI, a.h.handle.LinkSetUp(linkRef(l)))
		}
	}
	return nil
}

// addresses gives every secondary ENI its own primary address: without one it asks for its neighbours in the name of
// another link, and its rp_filter is strict whatever the setting.
func (a *apply) addresses() error {
	list, err := dump(func() ([]netlink.Addr, error) { return a.h.handle.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, want := range a.desired.Addresses {
		l, ok := a.linkOf[want.ENI]
		if !ok {
			continue
		}
		present := false
		for i := range list {
			if list[i].LinkIndex != l.index {
				continue
			}
			addr := prefixOf(list[i].IPNet).Addr()
			present = present || addr == want.Prefix.Addr()
			if contains(want.Pool, addr) {
				a.write(fmt.Sprintf("delete pods' address %s from %s", addr, l.name), want.ENI,
					a.h.handle.AddrDel(linkRef(l), &list[i]))
			}
		}
		if !present {
			err := a.h.handle.AddrAdd(linkRef(l), &netlink.Addr{
				IPNet: ipNet(want.Prefix), Flags: familyOf(want.Prefix.Addr()).addressFlags,
			})
			if errors.Is(err, unix.EEXIST) { // since the list was made
				err = nil
			}
			a.write(fmt.Sprintf("add address %s to %s", want.Prefix, l.name), want.ENI, err)
		}
	}
	return nil
}

// routes writes the routes that are missing and returns those to delete later.
func (a *apply) routes(ctx context.Context, f *family) ([]route, error) {
	have, err := listRoutes(a.h.handle, f)
	if err != nil {
		return nil, err
	}
	a.perPod.pods[f] = podsOf(have)
	var want []route
	eniOf := make(map[route]string)
	for _, r := range a.desired.Routes {
		l, ok := a.linkOf[r.ENI]
		if familyOf(r.Dst.Addr()) != f || !r.Unreachable && !ok {
			continue
		}
		b := r.bind(l.index)
		want = append(want, b)
		eniOf[b] = r.ENI
	}
	add, stale := diffRoutes(have, want)
	for _, r := range add {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		a.write(fmt.Sprintf("write route %s table %d", r.dst, r.table), eniOf[r], a.h.handle.RouteReplace(r.toNetlink()))
	}
	return append(stale, a.strays(f, have)...), nil
}

// strays are routes in main by which pods of the primary ENI, and the host, would reach others by an ENI that is not
// theirs. The kernel makes a connected one for an address that somebody else gave a secondary ENI, and again whenever the
// link comes up; the VPC's router advertisements make a default route for every link that accepts them.
func (a *apply) strays(f *family, have []route) []route {
	subnets := make(map[string]netip.Prefix)
	for _, want := range a.desired.Addresses {
		if familyOf(want.Prefix.Addr()) == f {
			subnets[want.ENI] = want.Prefix.Masked()
		}
	}
	routers := make(map[string]bool)
	for _, r := range a.desired.Routes {
		routers[r.ENI] = routers[r.ENI] || r.Gateway.IsValid() && familyOf(r.Gateway) == f
	}
	var list []route
	for _, want := range a.desired.Links {
		l, ok := a.linkOf[want.ENI]
		if !ok || want.Primary {
			continue
		}
		for _, r := range have {
			if r.table == names.TableMain && r.link == l.index &&
				(r.protocol == unix.RTPROT_KERNEL && r.dst == subnets[want.ENI] || r.protocol == unix.RTPROT_RA && routers[want.ENI]) {
				list = append(list, r)
			}
		}
	}
	return list
}

// rules adds the rules that are missing and returns those to delete later.
func (a *apply) rules(f *family) ([]rule, error) {
	have, err := listRules(a.h.handle, f)
	if err != nil {
		return nil, err
	}
	eniOf := make(map[int]string)
	for _, r := range a.desired.Routes {
		if isENITable(r.Table) {
			eniOf[r.Table] = r.ENI
		}
	}
	want := slices.DeleteFunc(slices.Clone(a.desired.Rules), func(r Rule) bool { return r.family() != f })
	add, stale := diffRules(have, want)
	for _, r := range add {
		a.write("add rule "+r.String(), eniOf[r.Table], r.add(a.h.rtnl))
	}
	behind, err := a.h.moveLocal(f, have, slices.Contains(a.desired.LocalBehind, f), func(what string) { a.write(what, "", nil) })
	a.localBehind = a.localBehind || behind
	if err != nil {
		a.failAll(err)
	}
	if !a.podRules(f, have) {
		// The rule for all pods may still be needed.
		stale = slices.DeleteFunc(stale, func(r rule) bool { return r.Priority == names.PriorityPods })
	}
	return stale, nil
}

// filter brings the nftables tables into order.
func (a *apply) filter(ctx context.Context) error {
	conn, err := nfttable.Open(ctx, a.h.netns)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	wanted := make(map[nfttable.Family]bool)
	for _, filter := range a.desired.Filters {
		want := filter.bind(func(eni string) string { return a.linkOf[eni].name })
		wanted[want.Family] = true
		have, err := conn.Read(want.Family, want.Name)
		if err != nil {
			return err
		}
		if err := a.keepEgress(have, &want); err != nil {
			return err
		}
		change, err := nfttable.Diff(have, &want)
		if err != nil {
			return err
		}
		if err := conn.Write(change); err != nil {
			return err
		}
		a.report.Writes += change.Writes()
	}
	for _, f := range families {
		if wanted[f.nft] {
			continue
		}
		have, err := conn.Read(f.nft, names.NFTable)
		if err != nil {
			return err
		}
		want := nfttable.Table{Family: f.nft, Name: names.NFTable}
		if err := a.keepEgress(have, &want); err != nil {
			return err
		}
		switch {
		case have != nil && len(want.Chains) > 0:
			change, err := nfttable.Diff(have, &want)
			if err != nil {
				return err
			}
			if err := conn.Write(change); err != nil {
				return err
			}
			a.report.Writes += change.Writes()
		case have != nil:
			a.write("delete nftables table of "+f.name, "", conn.Delete(f.nft, names.NFTable))
		}
	}
	return nil
}

// Cleanup removes the rules, routes and nftables table that are ours. Links and the ENIs' own addresses stay as they
// are: they were not there for us alone, and what the settings were before is not known.
func (h *Host) Cleanup(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	conn, err := nfttable.Open(ctx, h.netns)
	if err != nil {
		return err
	}
	errs := []error{}
	for _, f := range families {
		errs = append(errs, h.cleanup(conn, f))
	}
	return errors.Join(append(errs, conn.Close())...)
}

func (h *Host) cleanup(conn *nfttable.Conn, f *family) error {
	var errs []error
	rules, err := listRules(h.handle, f)
	errs = append(errs, err)
	var stale []rule
	for _, r := range rules {
		if r.protocol == names.RuleProtocol && r.ours(nil) {
			stale = append(stale, r)
		}
	}
	_, err = h.moveLocal(f, rules, false, func(string) {})
	errs = append(errs, err)
	for _, r := range stale {
		errs = append(errs, r.delete(h.rtnl))
	}
	there, err := conn.Exists(f.nft, names.NFTable)
	errs = append(errs, err)
	if there {
		errs = append(errs, conn.Delete(f.nft, names.NFTable))
	}
	routes, err := listRoutes(h.handle, f)
	errs = append(errs, err)
	for _, r := range routes {
		if r.ours() {
			errs = append(errs, deleteRoute(h.handle, r))
		}
	}
	return errors.Join(errs...)
}

func linkRef(l link) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: l.name}}
}

func contains(pool []netip.Prefix, a netip.Addr) bool {
	for _, p := range pool {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
