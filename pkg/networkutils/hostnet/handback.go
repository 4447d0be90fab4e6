package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
	"vpccni/pkg/networkutils/names"
)

// HandedBack says what a HandBack did.
type HandedBack struct {
	Pods int // that have rules of their own now
	// Marks tells that the nftables table is there still: it does the source NAT until the other CNI does.
	Marks bool
}

// HandBack turns the host's state into what amazon-vpc-cni-k8s expects to find when it starts: each pod gets rules of
// its own, and ours go, but for those that have the same form in both. The routes of ENIs stay. The nftables table, without
// which pods reach nobody outside of the VPC, goes only if marks is false: when the other CNI has laid its own down.
// Nothing may call Apply on the host any more. HandBack can be repeated.
func (h *Host) HandBack(ctx context.Context, marks bool) (HandedBack, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var done HandedBack
	conn, err := nfttable.Open(ctx, h.netns)
	if err != nil {
		return done, err
	}
	defer func() { _ = conn.Close() }()
	var errs []error
	links := make(map[int]bool) // of pods, which may have addresses of both families
	for _, f := range families {
		there, err := h.handBack(conn, f, marks, links)
		done.Marks = done.Marks || marks && there
		errs = append(errs, err)
	}
	done.Pods = len(links)
	return done, errors.Join(errs...)
}

// handBack does it for one family. It notes the links of the pods, and reports whether there was a table.
func (h *Host) handBack(conn *nfttable.Conn, f *family, marks bool, links map[int]bool) (bool, error) {
	table, err := conn.Read(f.nft, names.NFTable)
	if err != nil {
		return false, err
	}
	routes, err := listRoutes(h.handle, f)
	if err != nil {
		return false, err
	}
	rules, err := listRules(h.handle, f)
	if err != nil {
		return false, err
	}
	tableOf, err := sources(table)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, r := range routes {
		if r.table != names.TablePods || r.typ != unix.RTN_UNICAST || !r.dst.IsSingleIP() {
			continue
		}
		if err := h.podRules(r, tableOf(r.dst.Addr())); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", r.dst.Addr(), err))
			continue
		}
		links[r.link] = true
	}
	if len(errs) > 0 {
		return false, errors.Join(errs...) // what pods need stays
	}
	for _, r := range rules {
		if r.protocol != names.RuleProtocol || !r.ours(nil) && !r.ofLocal() {
			continue
		}
		// The kernel tells rules apart by their protocol too: the other CNI would add a second one.
		if r.shared() {
			if err := (rule{Rule: r.Rule}).add(h.rtnl); err != nil {
				errs = append(errs, fmt.Errorf("rule %s: %w", r, err))
				continue
			}
		}
		errs = append(errs, r.delete(h.rtnl))
	}
	for _, r := range routes {
		if r.table == names.TableUnassigned && r.ours() || r.table == names.TablePods {
			errs = append(errs, deleteRoute(h.handle, r))
		}
	}
	if !marks && table != nil {
		errs = append(errs, handBackTable(conn, table))
	}
	return table != nil, errors.Join(errs...)
}

// handBackTable removes the table but for the rules of egress ranges: the other CNI makes its own for pods that come later
// and none for those that are there.
func handBackTable(conn *nfttable.Conn, table *nfttable.Table) error {
	rest := egressOf(table)
	if rest == nil {
		return conn.Delete(table.Family, table.Name)
	}
	change, err := nfttable.Diff(table, rest)
	if err != nil {
		return err
	}
	return conn.Write(change)
}

// shared reports whether a rule of ours has the form in which the predecessor writes it.
func (r rule) shared() bool {
	switch r.Priority {
	case names.PriorityPrimaryMark, names.PriorityExternalService, names.PriorityENIAddress:
		return true
	}
	return r.ofLocal()
}

// podRules gives a pod what the predecessor's ADD would have: its route in main, and rules.
func (h *Host) podRules(r route, table int) error {
	pod := r.dst
	f := familyOf(pod.Addr())
	err := h.handle.RouteReplace(&netlink.Route{Table: names.TableMain, Dst: ipNet(pod), LinkIndex: r.link,
		Scope: netlink.Scope(f.linkScope), Protocol: unix.RTPROT_BOOT})
	if err != nil {
		return fmt.Errorf("route in main: %w", err)
	}
	for _, r := range podRules(pod, table) {
		if err := (rule{Rule: r}).add(h.rtnl); err != nil {
			return fmt.Errorf("rule %s: %w", r, err)
		}
	}
	return nil
}

// sources returns the function that says by which ENI's table a pod's packets leave, as the nftables table has it.
func sources(t *nfttable.Table) (func(netip.Addr) int, error) {
	type span struct {
		first, end netip.Addr // end is the first one behind
		table      int
	}
	var spans []span
	if t != nil {
		for _, s := range t.Sets {
			if s.Name != mapSource {
				continue
			}
			for _, e := range s.Elements {
				index, err := strconv.Atoi(strings.TrimPrefix(e.Verdict.Chain, eniChain))
				first, ok := netip.AddrFromSlice([]byte(e.Key))
				if err != nil || !ok {
					return nil, fmt.Errorf("element of %s leads to chain %q", s.Name, e.Verdict.Chain)
				}
				end, _ := netip.AddrFromSlice([]byte(e.End))
				spans = append(spans, span{first, end, names.RouteTable(index/devicesPerCard, index%devicesPerCard)})
			}
		}
	}
	return func(a netip.Addr) int {
		for _, s := range spans {
			if a == s.first || s.first.Less(a) && (!s.end.IsValid() || a.Less(s.end)) {
				return s.table
			}
		}
		return names.TableMain
	}, nil
}
