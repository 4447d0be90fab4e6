package warmpool

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// shrink gives back what is more than the targets want: whole ENIs where that is possible, then, where single
// addresses are counted, addresses. It is called when nothing is on its way in and no pod waits.
func (d *Decision) shrink(s State, f figures, t Targets, l Limits, now time.Time) {
	free := f.ready
	over, why := excess(f, t, l, free)
	for _, e := range removalOrder(s.ENIs) {
		if e.Total > 0 && over < e.Total || over < 0 {
			continue
		}
		if wait := latest(e.Since.Add(t.minENIAge()), s.LastRemoval.Add(t.removePace())); wait.After(now) {
			// Its addresses go with it, later. Giving them back now would be one call more.
			d.wakeAt(wait, now)
			over -= e.Total
			continue
		}
		if blocked := s.Refusals.until(OpRemove, e.ID); blocked.After(now) {
			d.wakeAt(blocked, now)
			continue
		}
		d.Actions = append(d.Actions, Action{Kind: RemoveENI, ENI: e.ID, Device: e.Device, N: e.Total, Reason: why})
		return // one at a time; the next plan sees what is left
	}
	if !t.byAddress() || over <= 0 {
		return
	}
	if wait := latest(s.LastGrowth.Add(t.shrinkDelay()), s.LastShrink.Add(t.shrinkDelay())); wait.After(now) {
		d.wakeAt(wait, now)
		return
	}
	for _, e := range returnOrder(s.ENIs) {
		n := min(e.Free, over)
		if n <= 0 {
			continue
		}
		if blocked := s.Refusals.until(OpUnassign, e.ID); blocked.After(now) {
			d.wakeAt(blocked, now)
			continue
		}
		d.Actions = append(d.Actions, Action{Kind: UnassignIPs, ENI: e.ID, Device: e.Device, N: n, Reason: why})
		over -= n
	}
}

// excess is how many free addresses could go without the targets wanting them back; -1 if not even an empty ENI may.
func excess(f figures, t Targets, l Limits, free int) (int, string) {
	if t.byAddress() {
		over := max(min(free-t.WarmIP, f.total-t.MinimumIP), 0)
		return over, fmt.Sprintf("%d free, WARM_IP_TARGET=%d; %d in all, MINIMUM_IP_TARGET=%d",
			free, t.WarmIP, f.total, t.MinimumIP)
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
