// Package upstream is a model of how the CNI that this project takes the place of decides about a node's addresses: its
// store of addresses and its formulas, as they are documented and as they have been observed, written down afresh. It
// is what our own decisions are measured against (vpclab fleet compare). IPv4, one network card, no custom networking.
//
// It is arithmetic and a data structure: the loop around it, which waits and calls EC2, is in lab/fleet.
package upstream

import "time"

// Times of the loop and its rules.
const (
	// HalfTick is the pause before growth and shrinkage are looked at, and again after: one action in about 5 s.
	HalfTick = 2500 * time.Millisecond
	// DecreasePace is the least time between two returns of addresses.
	DecreasePace = 30 * time.Second
	// ReconcilePace is the least time between a change, or a reconciliation, and the next one.
	ReconcilePace = 60 * time.Second
	// MinENIAge is how long a new ENI is kept.
	MinENIAge = 60 * time.Second
	// InsufficientPause is the pause of all growth after the subnet was short of addresses.
	InsufficientPause = 120 * time.Second
)

// prefixSize is the number of addresses of a /28.
const prefixSize = 16

// Targets are the settings, named as upstream's variables.
type Targets struct {
	WarmENI, WarmIP, MinimumIP, WarmPrefix int
	Prefixes                               bool // ENABLE_PREFIX_DELEGATION
	MaxPods                                int
	ENIs                                   int // that the node may have
	Slots                                  int // of an ENI: addresses or prefixes
}

// byAddress tells whether WARM_IP_TARGET or MINIMUM_IP_TARGET is set.
func (t Targets) byAddress() bool { return t.WarmIP != 0 || t.MinimumIP != 0 }

// perENI is how many addresses an ENI holds.
func (t Targets) perENI() int {
	if t.Prefixes {
		return t.Slots * prefixSize
	}
	return t.Slots
}

// Stats are a store's sums. Addresses in cooldown are not assigned, and so they count as available.
type Stats struct {
	Total, Assigned int
	Prefixes        int
	FreePrefixes    int // without a pod
}

// Available is what pods could be given, as upstream sees it.
func (s Stats) Available() int { return s.Total - s.Assigned }

// Target is how far the pool is from WARM_IP_TARGET and MINIMUM_IP_TARGET, in addresses or in prefixes; false if
// neither is set.
func (t Targets) Target(s Stats) (short, over int, enabled bool) {
	if !t.byAddress() {
		return 0, 0, false
	}
	avail := s.Available()
	short = max(t.WarmIP-avail, 0, t.MinimumIP-s.Total)
	over = max(min(max(avail-t.WarmIP, 0), s.Total-t.MinimumIP), 0)
	if t.Prefixes {
		short = ceil(short)
		over = max(min(s.FreePrefixes, s.Prefixes-ceil(s.Assigned+t.WarmIP)), 0)
		over = max(min(over, s.Prefixes-ceil(t.MinimumIP)), 0)
	}
	return short, over, true
}

// ceil is how many prefixes hold n addresses.
func ceil(n int) int { return (n + prefixSize - 1) / prefixSize }

// TooLow tells whether the pool has to grow.
func (t Targets) TooLow(s Stats) bool {
	if t.MaxPods > 0 && s.Total >= t.MaxPods {
		return false
	}
	if short, _, enabled := t.Target(s); enabled {
		return short > 0
	}
	unit, want := t.perENI(), t.WarmENI
	if t.Prefixes {
		unit, want = prefixSize, t.WarmPrefix
	}
	return s.Available() < unit*want || want == 0 && s.Available() == 0
}

// TooHigh tells whether addresses or prefixes may go back. Full ENIs' worth of addresses never do.
func (t Targets) TooHigh(s Stats) bool {
	if _, over, enabled := t.Target(s); enabled {
		return over > 0
	}
	return t.Prefixes && s.FreePrefixes > t.WarmPrefix
}

// TryRemove tells whether to look for an ENI that can go.
func (t Targets) TryRemove(s Stats, idleENI bool) bool {
	if t.byAddress() {
		return true
	}
	want := t.WarmENI + 1
	if t.Prefixes {
		want = t.WarmPrefix + 1
	}
	return s.Available() >= want*t.perENI() || t.Prefixes && idleENI
}

// Want is how many slots to fill: of the ENIs that have room, the one that comes first takes as many as it can.
func (t Targets) Want(s Stats) int {
	short, _, enabled := t.Target(s)
	switch {
	case t.Prefixes && enabled:
		return max(1, short)
	case t.Prefixes:
		return max(1, t.WarmPrefix-s.FreePrefixes)
	case enabled:
		return short
	}
	return t.Slots
}

// Over is how many addresses, or prefixes, may go back.
func (t Targets) Over(s Stats) int {
	if _, over, enabled := t.Target(s); enabled {
		return over
	}
	if t.Prefixes {
		return max(s.FreePrefixes-t.WarmPrefix, 0)
	}
	return 0
}
