package hostnet

import (
	"cmp"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// RuleLayout is how ip rules lead packets to pods.
type RuleLayout int

// The layouts. The routes of pods are the same in both, in names.TablePods and in main, so that a change of the layout
// needs no change of them.
const (
	// LayoutTables has one rule for all pods.
	LayoutTables RuleLayout = iota
	// LayoutPerPod has rules of each pod's own, as the predecessor writes them: one that has the pod looked for in main
	// and, for a pod of a secondary ENI, one that sends its packets to the ENI's table. The plugin writes them with the
	// pod's routes. Apply gives them to running pods that have none, and takes those of pods that are gone.
	LayoutPerPod
)

// podTable says by which table the packets of pods leave that have an address of a pool.
type podTable struct {
	Pool  netip.Prefix
	Table int
}

// podTables are those of all ENIs, in order of their pools, which do not overlap.
func podTables(primary ENI, secondary []eni) []podTable {
	var list []podTable
	for _, e := range append([]eni{{ENI: primary, table: names.TableMain}}, secondary...) {
		for _, p := range e.Pool {
			list = append(list, podTable{p, e.table})
		}
	}
	slices.SortFunc(list, func(a, b podTable) int { return a.Pool.Addr().Compare(b.Pool.Addr()) })
	return list
}

// podTable returns the table of an address, 0 if it is in no pool.
func (d Desired) podTable(a netip.Addr) int {
	i, found := slices.BinarySearchFunc(d.PodTables, a, func(t podTable, a netip.Addr) int { return t.Pool.Addr().Compare(a) })
	if !found {
		i--
	}
	if i < 0 || !d.PodTables[i].Pool.Contains(a) {
		return 0
	}
	return d.PodTables[i].Table
}

// podRules are the rules of one pod whose packets leave by a table.
func podRules(pod netip.Prefix, table int) []Rule {
	v6 := pod.Addr().Is6()
	list := []Rule{{V6: v6, Priority: names.PriorityToPod, Dst: pod, Table: names.TableMain}}
	if table != names.TableMain {
		list = append(list, Rule{V6: v6, Priority: names.PriorityFromPod, Src: pod, Table: table})
	}
	return list
}

// pod returns whose rule it is, if it is one of a single pod's. They carry no protocol, as the predecessor's.
func (r rule) pod() (pod netip.Prefix, ok bool) {
	if r.other || r.Mask != 0 || r.Protocol != 0 || r.protocol != unix.RTPROT_UNSPEC && r.protocol != unix.RTPROT_BOOT {
		return netip.Prefix{}, false
	}
	switch {
	case r.Priority == names.PriorityToPod && !r.Src.IsValid() && r.Dst.IsValid() && r.Table == names.TableMain:
		pod = r.Dst
	case r.Priority == names.PriorityFromPod && !r.Dst.IsValid() && r.Src.IsValid() && (isENITable(r.Table) || r.Table == names.TableMain):
		pod = r.Src
	default:
		return netip.Prefix{}, false
	}
	return pod, pod.IsSingleIP()
}

// podsOf are the pods of the host, by their routes.
func podsOf(routes []route) map[netip.Prefix]bool {
	pods := make(map[netip.Prefix]bool)
	for _, r := range routes {
		if r.table == names.TablePods && r.typ == unix.RTN_UNICAST && r.dst.IsSingleIP() {
			pods[r.dst] = true
		}
	}
	return pods
}

// diffPodRules compares the rules of single pods, of one family, with what the pods there are need. A pod on an ENI that is not known
// (yet) keeps what it has to leave by, and so does an address on such an ENI that no pod has.
func (d Desired) diffPodRules(have []rule, pods map[netip.Prefix]bool) (add []Rule, del []rule) {
	wanted := make(map[Rule]bool)
	for pod := range pods {
		table := cmp.Or(d.podTable(pod.Addr()), names.TableMain)
		for _, r := range podRules(pod, table) {
			wanted[r] = true
		}
	}
	present := make(map[Rule]bool)
	for _, r := range have {
		pod, ok := r.pod()
		switch {
		case !ok:
		case wanted[r.Rule]:
			present[r.Rule] = true
		case d.podTable(pod.Addr()) != 0:
			del = append(del, r)
		}
	}
	for r := range wanted {
		if !present[r] {
			add = append(add, r)
		}
	}
	slices.SortFunc(add, func(a, b Rule) int {
		return cmp.Or(a.Dst.Addr().Compare(b.Dst.Addr()), a.Src.Addr().Compare(b.Src.Addr()))
	})
	return add, del
}

// perPod is what an Apply has to do with rules of single pods.
type perPod struct {
	pods  map[*family]map[netip.Prefix]bool // by their routes
	added []Rule
	stale []rule // to go, if their pods are not there by then
}

// podRules gives the pods of a family their rules; have are those of the host. It reports whether all of them have
// what leads to them.
func (a *apply) podRules(f *family, have []rule) bool {
	if a.desired.RuleLayout != LayoutPerPod {
		return true
	}
	add, stale := a.desired.diffPodRules(have, a.perPod.pods[f])
	a.perPod.added, a.perPod.stale = append(a.perPod.added, add...), append(a.perPod.stale, stale...)
	failed := len(a.errs)
	for _, r := range add {
		a.write(KindRule, "add rule "+r.String(), "", (rule{Rule: r}).add(a.h.rtnl))
	}
	return len(a.errs) == failed
}

// settlePodRules removes the rules of single pods that are superfluous: of pods that have gone since the routes were
// listed, too, but of none that has come. ADD writes a pod's routes before its rules, DEL deletes them before these.
func (a *apply) settlePodRules() error {
	if len(a.perPod.stale) == 0 && len(a.perPod.added) == 0 {
		return nil
	}
	for _, f := range families {
		routes, err := listRoutes(a.h.handle, f)
		if err != nil {
			return err
		}
		pods := podsOf(routes)
		_, stale := a.desired.diffPodRules(ofFamily(f, a.perPod.stale), pods)
		for _, r := range a.perPod.added {
			if r.family() == f && !pods[cmp.Or(r.Src, r.Dst)] {
				stale = append(stale, rule{Rule: r})
			}
		}
		for _, r := range stale {
			a.write(KindRule, "delete rule "+r.String(), "", r.delete(a.h.rtnl))
		}
	}
	return nil
}

func ofFamily(f *family, rules []rule) []rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r rule) bool { return r.family() != f })
}
