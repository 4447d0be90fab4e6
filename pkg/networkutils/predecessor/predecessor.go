// Package predecessor takes over what amazon-vpc-cni-k8s (v1.19 to v1.23) left in the network of a node whose pods are
// running, without a packet lost: first Adopt gives its pods routes of ours, then the host's own state is laid down
// (package hostnet), and when that stands, Sweep takes away the rules, nftables table and iptables chains that it makes
// superfluous. Both do nothing on a node that has nothing of the kind, and can be repeated.
//
// What the predecessor wrote carries no sign of its own (its rules have protocol unspec, its pods' routes boot); it is
// known by priority and shape, by name, or by comment.
package predecessor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

const (
	requestTimeout = 10 * time.Second
	dumpTries      = 5
)

// Options say where. The zero value means the network namespace of the process.
type Options struct {
	NetNS int          // file descriptor of the namespace; 0 is the process's own
	Log   *slog.Logger // none if nil
	// PerPod leaves the rules of single pods that live: this version writes them too (POD_RULE_LAYOUT).
	PerPod bool
	// Lock is the lock file of iptables' legacy backend; xtables.LockFile if empty.
	Lock string
	// EgressV4 and EgressV6 say that rules of ours stand for the egress ranges of the family, so that the predecessor's for
	// them are superfluous.
	EgressV4, EgressV6 bool
}

// Report says what was found and done.
type Report struct {
	Pods   int // routes of pods that were adopted
	Rules  int // ip rules that went
	Legacy int // entries of legacy tables that went
	NFT    int // nftables tables, chains and rules that went
}

// Any tells whether there was anything.
func (r Report) Any() bool { return r != Report{} }

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}

func (o Options) open() (*netlink.Handle, error) {
	ns := netns.None()
	if o.NetNS != 0 {
		ns = netns.NsHandle(o.NetNS)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("predecessor: open rtnetlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(requestTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("predecessor: set rtnetlink time-out: %w", err)
	}
	return h, nil
}

// Adopt copies the routes of the predecessor's pods from table main to names.TablePods. It is to run before the first
// hostnet.Host.Apply, which makes addresses without such a route unreachable.
func Adopt(ctx context.Context, o Options) (Report, error) {
	h, err := o.open()
	if err != nil {
		return Report{}, err
	}
	defer h.Close()
	rules, err := podRules(ctx, h)
	if err != nil {
		return Report{}, err
	}
	pods := map[netip.Addr]bool{}
	for _, r := range rules {
		if r.to {
			pods[r.pod] = true
		}
	}
	if len(pods) == 0 {
		return Report{}, nil
	}
	inMain, err := podRoutes(ctx, h, names.TableMain)
	if err != nil {
		return Report{}, err
	}
	adopted, err := podRoutes(ctx, h, names.TablePods)
	if err != nil {
		return Report{}, err
	}
	var report Report
	var errs []error
	for pod := range pods {
		link, ok := inMain[pod]
		if !ok || adopted[pod] == link {
			continue
		}
		if err := ctx.Err(); err != nil {
			return report, err
		}
		err := h.RouteReplace(&netlink.Route{Table: names.TablePods, Dst: netlink.NewIPNet(pod.AsSlice()), LinkIndex: link,
			Scope: netlink.SCOPE_LINK, Protocol: names.RouteProtocol})
		if err != nil {
			errs = append(errs, fmt.Errorf("predecessor: route to %s: %w", pod, err))
			continue
		}
		report.Pods++
	}
	if report.Pods > 0 {
		o.log().Info("pods of a predecessor adopted", "pods", report.Pods)
	}
	return report, errors.Join(errs...)
}

// Sweep removes what the host's own state makes superfluous; that state must stand. ours tells whether an address
// belongs to an ENI that is wired: a rule for any other address stays while a pod has that address.
func Sweep(ctx context.Context, o Options, ours func(netip.Addr) bool) (Report, error) {
	var report Report
	rules, err := sweepRules(ctx, o, ours)
	report.Rules = rules
	errs := []error{err}
	if report.NFT, err = sweepNFT(ctx, o); err != nil {
		errs = append(errs, err)
	}
	if report.Legacy, err = sweepLegacy(ctx, o); err != nil {
		errs = append(errs, err)
	}
	nft, legacy, err := sweepEgress(ctx, o)
	report.NFT, report.Legacy, errs = report.NFT+nft, report.Legacy+legacy, append(errs, err)
	if report.Any() {
		o.log().Info("state of a predecessor removed", "rules", report.Rules, "nft", report.NFT, "legacy", report.Legacy)
	}
	return report, errors.Join(errs...)
}

func sweepRules(ctx context.Context, o Options, ours func(netip.Addr) bool) (n int, err error) {
	h, err := o.open()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	rules, err := podRules(ctx, h)
	if err != nil || len(rules) == 0 {
		return 0, err
	}
	inMain, err := podRoutes(ctx, h, names.TableMain)
	if err != nil {
		return 0, err
	}
	adopted, err := podRoutes(ctx, h, names.TablePods)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, r := range rules {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		_, lives := inMain[r.pod]
		_, routed := adopted[r.pod]
		if lives && (o.PerPod || r.to && !routed || !r.to && !ours(r.pod)) {
			continue
		}
		switch err := h.RuleDel(&r.rule); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT):
			errs = append(errs, fmt.Errorf("predecessor: delete rule of %s: %w", r.pod, err))
		}
	}
	return n, errors.Join(errs...)
}

// podRule is a rule that the predecessor wrote for a pod.
type podRule struct {
	pod  netip.Addr
	to   bool // else from
	rule netlink.Rule
}

func podRules(ctx context.Context, h *netlink.Handle) ([]podRule, error) {
	list, err := dump(ctx, func() ([]netlink.Rule, error) { return h.RuleList(netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("predecessor: list rules: %w", err)
	}
	var out []podRule
	for _, r := range list {
		if r.Protocol != unix.RTPROT_UNSPEC && r.Protocol != unix.RTPROT_BOOT || r.Invert || r.IifName != "" || r.OifName != "" ||
			r.Mark != 0 || r.Mask != nil || r.IPProto != 0 || r.Tos != 0 || r.Goto >= 0 {
			continue
		}
		dst, hasDst := addrOf(r.Dst)
		src, hasSrc := addrOf(r.Src)
		switch {
		case r.Priority == names.PriorityToPod && hasDst && r.Src == nil && r.Table == names.TableMain:
			out = append(out, podRule{pod: dst, to: true, rule: r})
		case r.Priority == names.PriorityFromPod && hasSrc && isENITable(r.Table):
			out = append(out, podRule{pod: src, rule: r})
		}
	}
	return out, nil
}

// isENITable reports whether a table is an ENI's by its number; main is that of the primary one.
func isENITable(t int) bool {
	return t >= 2 && t < 100 || t >= 10000 && t < 100000 || t == names.TableMain
}

// podRoutes returns the links that single addresses are behind, by the routes of a table.
func podRoutes(ctx context.Context, h *netlink.Handle, table int) (map[netip.Addr]int, error) {
	list, err := dump(ctx, func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: table, Type: unix.RTN_UNICAST},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return nil, fmt.Errorf("predecessor: list routes of table %d: %w", table, err)
	}
	out := map[netip.Addr]int{}
	for _, r := range list {
		if a, ok := addrOf(r.Dst); ok && r.Gw == nil && r.LinkIndex != 0 {
			out[a] = r.LinkIndex
		}
	}
	return out, nil
}

// dump repeats a dump that was interrupted by a change: it may lack what was there all the time.
func dump[T any](ctx context.Context, list func() ([]T, error)) ([]T, error) {
	for range dumpTries {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}
