package hostnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
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
//
// While Watch runs, an Apply that follows one with an equal Config reads only what the kernel's events cast doubt on.
func (h *Host) Apply(ctx context.Context, cfg Config) (Report, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	a := &apply{h: h, report: Report{NotReady: map[string]error{}, Changes: map[Kind]int{}}}
	a.perPod.pods = map[*family]map[netip.Prefix]bool{}
	a.look, a.report.By = h.takeDoubts()
	a.repair = h.last.complete && h.last.cfg.equal(cfg)
	if a.repair {
		a.desired = h.last.desired
		if a.desired.RuleLayout == LayoutPerPod && a.look&lookRules != 0 {
			a.look |= lookRoutes // they say which pods there are
		}
	} else {
		var err error
		if a.desired, err = Render(cfg); err != nil {
			h.doubt(a.look, "")
			return Report{}, fmt.Errorf("render host network: %w", err)
		}
		a.look = lookAll
	}
	for id, err := range a.desired.Unfit {
		a.report.NotReady[id] = err
	}
	if err := a.run(ctx); err != nil {
		a.failAll(err)
	}
	a.mend(ctx, cfg)
	h.setScope(a.desired, a.linkOf, a.localBehind)
	h.last = applied{
		cfg: cfg.clone(), desired: a.desired, linkOf: a.linkOf, tables: a.desired.tables(), localBehind: a.localBehind,
		complete: len(a.errs) == 0 && len(a.report.NotReady) == 0,
	}
	if a.report.Writes > 0 {
		h.log.Info("host network changed", "writes", a.report.Writes, "not_ready", len(a.report.NotReady))
	}
	return a.report, errors.Join(a.errs...)
}

// apply is one Apply.
type apply struct {
	h       *Host
	desired Desired
	look    look
	repair  bool            // the Config is the same as last time, and the state was as it should be
	bare    bool            // there was no table before the first Apply: what began until then had no source NAT
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
		a.write(KindRule, "delete rule "+r.String(), "", r.delete(a.h.rtnl))
	}
	if err := a.settlePodRules(); err != nil {
		return err
	}
	for _, r := range staleRoutes {
		a.write(KindRoute, fmt.Sprintf("delete route %s table %d", r.dst, r.table), "", deleteRoute(a.h.handle, r))
	}
	return nil
}

// write counts a change that was made, or keeps the error of one that was not: the ENI that it was for is not ready
// without it. The id is empty for changes that are for none in particular.
func (a *apply) write(kind Kind, what, eni string, err error) {
	if err == nil {
		a.changed(kind, 1)
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

func (a *apply) changed(kind Kind, n int) {
	if n > 0 {
		a.report.Writes += n
		a.report.Changes[kind] += n
	}
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
	if a.look&lookLinks == 0 {
		a.linkOf = a.h.last.linkOf
	} else if err := a.findLinks(); err != nil {
		return err
	}
	if a.look&lookAddresses != 0 {
		if err := a.addresses(); err != nil {
			return err
		}
	}
	for _, want := range a.desired.Links {
		if l, ok := a.linkOf[want.ENI]; ok && !want.Primary && !l.up {
			err := a.h.handle.LinkSetUp(linkRef(l))
			a.write(KindLink, fmt.Sprintf("set %s up", l.name), want.ENI, err)
			if l.up = err == nil; l.up {
				a.linkOf[want.ENI] = l
			}
		}
	}
	return nil
}

// findLinks finds the ENIs' links and sets what links have.
func (a *apply) findLinks() error {
	var err error
	if a.linkOf, err = a.h.knownLinks(a.desired.Links); err != nil {
		return err
	}
	if a.linkOf == nil {
		links, err := a.h.rtnl.links()
		if err != nil {
			return err
		}
		a.linkOf = a.identify(links)
	}
	if !maps.EqualFunc(a.linkOf, a.h.last.linkOf, link.same) {
		a.look |= lookAddresses | lookRoutes | lookFilter
	}
	for _, want := range a.desired.Links {
		l, ok := a.linkOf[want.ENI]
		if !ok {
			a.notReady(want.ENI, fmt.Errorf("%w: %s", ErrNoLink, want.MAC))
			continue
		}
		// Strict reverse-path filtering looks replies up without the mark and drops them; the larger of conf.all's
		// value and this one counts. It is set before the link can bring in anything.
		if want.Loose && l.rpFilter != rpFilterLoose {
			a.write(KindLink, "set rp_filter of "+l.name, want.ENI, a.h.rtnl.setRPFilter(l.index, rpFilterLoose))
		}
		if want.MTU != 0 && l.mtu != want.MTU {
			a.write(KindLink, fmt.Sprintf("set MTU of %s to %d", l.name, want.MTU), want.ENI,
				a.h.handle.LinkSetMTU(linkRef(l), want.MTU))
		}
	}
	return nil
}

// identify finds each ENI's link by its MAC. A link that was an ENI's before and shows a MAC that is nobody's gets the
// ENI's back: the VPC drops what comes from any other.
func (a *apply) identify(links []link) map[string]link {
	nics := byMAC(links)
	wanted, byIndex := make(map[string]bool), make(map[int]link)
	for _, w := range a.desired.Links {
		wanted[w.MAC] = true
	}
	for _, l := range links {
		byIndex[l.index] = l
	}
	out := make(map[string]link)
	for _, w := range a.desired.Links {
		if l, ok := nics[w.MAC]; ok {
			out[w.ENI] = l
			continue
		}
		last, known := a.h.last.linkOf[w.ENI]
		l, there := byIndex[last.index]
		mac, err := net.ParseMAC(w.MAC)
		if !known || !there || !l.isNIC() || wanted[l.mac.String()] || last.mac.String() != w.MAC || err != nil {
			continue
		}
		err = a.h.handle.LinkSetHardwareAddr(linkRef(l), mac)
		a.write(KindLink, "set MAC of "+l.name, w.ENI, err)
		if err == nil {
			l.mac = mac
			out[w.ENI] = l
		}
	}
	return out
}

// addresses gives every secondary ENI its own primary address: without one it asks for its neighbours in the name of
// another link, and its rp_filter is strict whatever the setting.
func (a *apply) addresses() error {
	have := make(map[string][]netip.Prefix)
	for _, want := range a.desired.Addresses {
		l, ok := a.linkOf[want.ENI]
		if !ok {
			continue
		}
		if _, read := have[want.ENI]; !read {
			list, err := a.h.addressesOf(l.index)
			if err != nil {
				return err
			}
			have[want.ENI] = list
		}
		present := false
		for _, p := range have[want.ENI] {
			present = present || p.Addr() == want.Prefix.Addr()
			if contains(want.Pool, p.Addr()) {
				err := a.h.handle.AddrDel(linkRef(l), &netlink.Addr{IPNet: ipNet(p)})
				if errors.Is(err, unix.EADDRNOTAVAIL) {
					err = nil
				}
				a.write(KindAddress, fmt.Sprintf("delete pods' address %s from %s", p.Addr(), l.name), want.ENI, err)
			}
		}
		if !present {
			err := a.h.handle.AddrAdd(linkRef(l), &netlink.Addr{
				IPNet: ipNet(want.Prefix), Flags: familyOf(want.Prefix.Addr()).addressFlags,
			})
			switch {
			case errors.Is(err, unix.EEXIST): // since the list was made
				err = nil
			case errors.Is(err, unix.EACCES) && want.Prefix.Addr().Is6():
				err = fmt.Errorf("IPv6 is off, see net.ipv6.conf.%s.disable_ipv6, which the init container sets: %w", l.name, err)
			}
			a.write(KindAddress, fmt.Sprintf("add address %s to %s", want.Prefix, l.name), want.ENI, err)
		}
	}
	return nil
}

// routes writes the routes that are missing and returns those to delete later.
func (a *apply) routes(ctx context.Context, f *family) ([]route, error) {
	if a.look&lookRoutes == 0 {
		return nil, nil
	}
	have, err := a.haveRoutes(f)
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
		a.write(KindRoute, fmt.Sprintf("write route %s table %d", r.dst, r.table), eniOf[r], a.h.handle.RouteReplace(r.toNetlink()))
	}
	return append(stale, a.strays(f, have)...), nil
}

// haveRoutes lists the routes of our tables, and those of main that leave by secondary ENIs. The first time it lists all
// there are: what is left from before is in tables that are not known.
func (a *apply) haveRoutes(f *family) ([]route, error) {
	if a.h.last.tables == nil {
		return listRoutes(a.h.handle, f)
	}
	var list []route
	tables := a.desired.tables()
	maps.Copy(tables, a.h.last.tables)
	if a.desired.RuleLayout == LayoutPerPod {
		tables[names.TablePods] = true
	}
	for _, t := range slices.Sorted(maps.Keys(tables)) {
		part, err := a.h.routesOf(f, t, 0)
		if err != nil {
			return nil, err
		}
		list = append(list, part...)
	}
	for _, want := range a.desired.Links {
		l, ok := a.linkOf[want.ENI]
		if !ok || want.Primary {
			continue
		}
		part, err := a.h.routesOf(f, names.TableMain, l.index)
		if err != nil {
			return nil, err
		}
		list = append(list, part...)
	}
	return list, nil
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
	if a.look&lookRules == 0 {
		a.localBehind = a.h.last.localBehind
		return nil, nil
	}
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
		a.write(KindRule, "add rule "+r.String(), eniOf[r.Table], r.add(a.h.rtnl))
	}
	behind, err := a.h.moveLocal(f, have, slices.Contains(a.desired.LocalBehind, f), func(what string) { a.write(KindRule, what, "", nil) })
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
	if a.look&lookFilter == 0 {
		return nil
	}
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
		a.bare = a.bare || have == nil && a.h.last.tables == nil
		change, err := nfttable.Diff(have, &want)
		if err != nil {
			return err
		}
		if err := conn.Write(change); err != nil {
			return err
		}
		a.changed(KindNFTables, change.Writes())
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
			a.changed(KindNFTables, change.Writes())
		case have != nil:
			a.write(KindNFTables, "delete nftables table of "+f.name, "", conn.Delete(f.nft, names.NFTable))
		}
	}
	return nil
}

// Cleanup removes the rules, routes and nftables table that are ours. Links and the ENIs' own addresses stay as they
// are: they were not there for us alone, and what the settings were before is not known.
func (h *Host) Cleanup(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last.complete = false
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
