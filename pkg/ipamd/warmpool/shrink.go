package warmpool

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// shrink gives back what is more than the targets want: whole ENIs where that is possible, then, where it is not full
// ENIs that are counted, blocks, and everything unused of the kind that the mode does not ask for. It is called when
// nothing is on its way in and no pod waits.
//
// stuck says that prefixes are wanted and cannot be had. Single addresses stand in for them then and are kept as far as
// they are needed; the figures are those of both kinds.
func (d *Decision) shrink(s State, f figures, t Targets, l Limits, stuck bool, now time.Time) {
	over, why := excess(f, t, l, stuck)
	leaving := map[string]bool{}
	for _, e := range removalOrder(s.ENIs) {
		counted := e.part(t.Prefixes).Total
		switch {
		case e.Excluded:
			counted = 0
		case stuck && e.Prefixes.Blocks > 0:
			continue // more prefixes are wanted
		case stuck:
			counted = e.Total
		}
		if counted > 0 && over < counted || over < 0 {
			continue
		}
		if wait := latest(e.Since.Add(t.minENIAge()), s.LastRemoval.Add(t.removePace())); wait.After(now) {
			// Its addresses go with it, later. Giving them back now would be one call more.
			d.wakeAt(wait, now)
			over -= counted
			leaving[e.ID] = true
			continue
		}
		if blocked := s.Refusals.gate(OpRemove, e.ID, true); blocked.After(now) {
			d.wakeAt(blocked, now)
			continue
		}
		if e.Excluded {
			why = excludedWhy(e)
		}
		d.Actions = append(d.Actions, Action{Kind: RemoveENI, ENI: e.ID, Device: e.Device, N: e.Total, Reason: why})
		return // one at a time; the next plan sees what is left
	}
	back := giving{refusals: s.Refusals, now: now, prefixes: t.Prefixes && !stuck}
	back.excluded(s.ENIs, leaving)
	if !stuck {
		back.others(s.ENIs, leaving)
	}
	if t.byAddress() || t.Prefixes {
		n := len(back.actions)
		over = back.surplus(s.ENIs, over, why)
		if at := s.LastGrowth.Add(t.keepFor(over, back.prefixes)); at.After(now) && len(back.actions) > n {
			d.wakeAt(at, now)
			back.actions = back.actions[:n]
		}
	}
	wait := latest(s.LastGrowth, s.LastShrink).Add(t.shrinkDelay())
	if len(back.actions) > 0 && wait.After(now) {
		d.wakeAt(wait, now)
		return
	}
	d.wakeAt(back.blocked, now)
	d.Actions = append(d.Actions, back.actions...)
}

// giving collects what goes back.
type giving struct {
	refusals Refusals
	now      time.Time
	prefixes bool // the kind whose surplus goes
	actions  []Action
	blocked  time.Time // when something that is refused now may be tried again
}

// give gives n blocks of an ENI back, if the ENI can be asked. An ENI takes one call at a time.
func (g *giving) give(e ENI, prefixes bool, n int, why string) bool {
	if n <= 0 || slices.ContainsFunc(g.actions, func(a Action) bool { return a.ENI == e.ID }) {
		return false
	}
	if at := g.refusals.gate(OpUnassign, e.ID, true); at.After(g.now) {
		if g.blocked.IsZero() || at.Before(g.blocked) {
			g.blocked = at
		}
		return false
	}
	g.actions = append(g.actions, Action{Kind: unassignKind(prefixes), ENI: e.ID, Device: e.Device, N: n, Reason: why})
	return true
}

func excludedWhy(e ENI) string { return "the tags of subnet " + e.Subnet + " forbid its use" }

// excluded gives back what is unused on ENIs that nobody new gets an address of.
func (g *giving) excluded(enis []ENI, leaving map[string]bool) {
	for _, e := range returnOrder(enis) {
		if e.Excluded && !leaving[e.ID] && !g.give(e, true, e.part(true).Idle, excludedWhy(e)) {
			g.give(e, false, e.part(false).Idle, excludedWhy(e))
		}
	}
}

// others gives back what is unused of the kind that the mode does not ask for, on ENIs that stay.
func (g *giving) others(enis []ENI, leaving map[string]bool) {
	why := "prefixes are not used with ENABLE_PREFIX_DELEGATION=false"
	if g.prefixes {
		why = "single addresses are not used with ENABLE_PREFIX_DELEGATION=true"
	}
	for _, e := range returnOrder(enis) {
		if !leaving[e.ID] && !e.Excluded {
			g.give(e, !g.prefixes, e.part(!g.prefixes).Idle, why)
		}
	}
}

// surplus gives back blocks for over addresses too many, and returns how many are still too many then.
func (g *giving) surplus(enis []ENI, over int, why string) int {
	size := blockSize(g.prefixes)
	for _, e := range returnOrder(enis) {
		if n := min(e.part(g.prefixes).Idle, over/size); !e.Excluded && g.give(e, g.prefixes, n, why) {
			over -= n * size
		}
	}
	return over
}

// excess is how many free addresses could go without the targets wanting them back; -1 if not even an empty ENI may.
func excess(f figures, t Targets, l Limits, stuck bool) (int, string) {
	free := f.ready
	switch {
	case t.byAddress():
		// What cools is kept instead of what is free, but not instead of the half that pods may need at once.
		over := min(free+soonFree(f, t.WarmIP)-t.WarmIP, max(free-(t.WarmIP+1)/2, 0))
		over = max(min(over, f.total-t.MinimumIP), 0)
		return over, fmt.Sprintf("%d free, WARM_IP_TARGET=%d; %d in all, MINIMUM_IP_TARGET=%d",
			free, t.WarmIP, f.total, t.MinimumIP)
	case stuck:
		return max(free-t.WarmPrefix, 0), fmt.Sprintf("%d free, WARM_PREFIX_TARGET=%d keeps as many single addresses", free, t.WarmPrefix)
	case t.Prefixes:
		return max(free-t.WarmPrefix*PrefixSize, 0), fmt.Sprintf("%d free, WARM_PREFIX_TARGET=%d keeps %d",
			free, t.WarmPrefix, t.WarmPrefix*PrefixSize)
	}
	// A full ENI more than the target before anything goes: an ENI costs three calls and ten seconds to get back.
	over := free - t.WarmENI*l.IPsPerENI
	why := fmt.Sprintf("%d free, WARM_ENI_TARGET=%d keeps %d", free, t.WarmENI, t.WarmENI*l.IPsPerENI)
	if over < l.IPsPerENI {
		over = 0
	}
	return over, why
}

// removalOrder lists the ENIs that could go: without pods and without cooling addresses, neither primary nor fixed.
// The highest device index goes first.
func removalOrder(enis []ENI) []ENI {
	var out []ENI
	for _, e := range enis {
		idle := e.Assigned == 0 && e.Cooling == 0 && e.Quarantined == 0 && e.Returning == 0 && !e.Busy
		if idle && e.Usable && e.serves() && !e.Primary && !e.Fixed {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b ENI) int { return b.Device - a.Device })
	return out
}

// returnOrder lists the ENIs that addresses could be taken from. Those with the fewest pods come first, so that they
// become empty and can go, and the primary one last.
func returnOrder(enis []ENI) []ENI {
	var out []ENI
	for _, e := range enis {
		if e.serves() && e.Usable && !e.Busy && e.Free > 0 {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b ENI) int {
		return cmp.Or(boolInt(a.Primary)-boolInt(b.Primary), a.Assigned-b.Assigned, b.Device-a.Device)
	})
	return out
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
