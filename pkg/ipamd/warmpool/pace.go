package warmpool

import "time"

const (
	// growPace is the least time between two calls for addresses that nobody waits for yet. A burst of pods costs a call
	// each few seconds so, and not one each few pods. Where less than half of the target is left it does not count.
	growPace = 5 * time.Second
	// thinFactor is how much longer than other surplus a prefix is kept without which the node would be about to need
	// it again.
	thinFactor = 20
)

// canWait tells until when growth can wait, with an eye on what is left for the pods that come next.
func canWait(s State, f figures, t Targets) time.Time {
	if s.Waiting > 0 || t.WarmIP == 0 || 2*f.ready < t.WarmIP {
		return time.Time{}
	}
	return s.LastGrowth.Add(growPace)
}

// ahead is how many addresses more than are missing to ask for: while pods come and none waits yet, where the last
// growth was just now, the whole target twice over. What is not needed goes back with the rest.
func ahead(s State, t Targets, now time.Time) int {
	if s.Waiting > 0 || s.LastGrowth.IsZero() || now.Sub(s.LastGrowth) >= growPace {
		return 0
	}
	return 2 * t.WarmIP
}

// soonFree is how many cooling addresses count towards a target of so many free ones: all of them, while no pod waits
// and at least half of the target is really free. A pod that takes another one's place costs no call so: what it takes
// is back when the other one's address has cooled.
func soonFree(f figures, target int) int {
	if f.waiting > 0 || 2*f.ready < target {
		return 0
	}
	return f.cooling
}

// keepFor is how long after growth surplus is kept, if this much of it is left when blocks of that size have gone.
// Without a margin the next pod would bring the prefix back, and the pod after it would make it surplus again. Who wants
// nothing ready has said that pods may wait.
func (t Targets) keepFor(left int, prefixes bool) time.Duration {
	if prefixes && left < PrefixSize/2 && (t.WarmPrefix > 0 || t.byAddress()) {
		return thinFactor * t.shrinkDelay()
	}
	return t.shrinkDelay()
}
