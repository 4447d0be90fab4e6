package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

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
	for id, err := range desired.Unfit {
		a.report.NotReady[id] = err
	}
	if err := a.run(ctx); err != nil {
		a.failAll(err)
	}
	h.setScope(desired, a.linkOf)
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
}

// run returns an error only for what makes every ENI unusable.
func (a *apply) run(ctx context.Context) error {
	if err := a.links(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	staleRoutes, err := a.routes(ctx)
	if err != nil {
		return err
	}
	staleRules, err := a.rules()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := a.filter(ctx); err != nil {
		return err
	}
	// Deletes come last: until here every packet found either the old state or the new one.
	for _, r := range staleRules {
		a.write("delete rule "+r.String(), "", deleteRule(a.h.handle, r))
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
		if l.rpFilter != rpFilterLoose {
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
	list, err := dump(func() ([]netlink.Addr, error) { return a.h.handle.AddrList(nil, netlink.FAMILY_V4) })
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
				IPNet: ipNet(want.Prefix), Flags: unix.IFA_F_NOPREFIXROUTE,
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
func (a *apply) routes(ctx context.Context) ([]route, error) {
	have, err := listRoutes(a.h.handle)
	if err != nil {
		return nil, err
	}
	var want []route
	eniOf := make(map[route]string)
	for _, r := range a.desired.Routes {
		l, ok := a.linkOf[r.ENI]
		if !r.Unreachable && !ok {
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
	// The kernel makes a connected route in main for an address that somebody else gave the ENI, and again whenever the
	// link comes up. Pods of the primary ENI, and the host, would reach the subnet by an ENI that is not theirs.
	for _, want := range a.desired.Addresses {
		l, ok := a.linkOf[want.ENI]
		if !ok {
			continue
		}
		for _, r := range have {
			if r.table == names.TableMain && r.link == l.index && r.protocol == unix.RTPROT_KERNEL &&
				r.dst == want.Prefix.Masked() {
				stale = append(stale, r)
			}
		}
	}
	return stale, nil
}

// rules adds the rules that are missing and returns those to delete later.
func (a *apply) rules() ([]rule, error) {
	have, err := listRules(a.h.handle)
	if err != nil {
		return nil, err
	}
	eniOf := make(map[int]string)
	for _, r := range a.desired.Routes {
		if isENITable(r.Table) {
			eniOf[r.Table] = r.ENI
		}
	}
	add, stale := diffRules(have, a.desired.Rules)
	for _, r := range add {
		a.write("add rule "+r.String(), eniOf[r.Table], addRule(a.h.handle, r))
	}
	return stale, nil
}

// filter brings the nftables table into order.
func (a *apply) filter(ctx context.Context) error {
	conn, err := nfttable.Open(ctx, a.h.netns)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	want := a.desired.Filter.bind(func(eni string) string { return a.linkOf[eni].name })
	have, err := conn.Read(want.Family, want.Name)
	if err != nil {
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
	return nil
}

// Cleanup removes the rules, routes and nftables table that are ours. Links and the ENIs' own addresses stay as they
// are: they were not there for us alone, and what the settings were before is not known.
func (h *Host) Cleanup(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	rules, err := listRules(h.handle)
	errs = append(errs, err)
	for _, r := range rules {
		if r.protocol == names.RuleProtocol && r.ours(nil) {
			errs = append(errs, deleteRule(h.handle, r))
		}
	}
	conn, err := nfttable.Open(ctx, h.netns)
	if err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, conn.Delete(nfttable.IPv4, names.NFTable), conn.Close())
	}
	routes, err := listRoutes(h.handle)
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
