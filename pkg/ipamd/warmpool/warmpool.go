// Package warmpool decides what a node's address pool needs: how many addresses to bring in and onto which ENI, which
// ENIs to create, what to give back, and whether a pod that waits for an address has any hope. It is arithmetic over
// values: no I/O, no clock, no log. The same state always gives the same plan.
//
// The targets mean what they mean upstream (WARM_ENI_TARGET, WARM_IP_TARGET, MINIMUM_IP_TARGET, MAX_ENI), with these
// differences, each of them in the pods' favour:
//
//   - pods that wait for an address are demand;
//   - addresses in cooldown are not free; they count towards a target as long as half of it is really free;
//   - a burst of pods costs a call every few seconds, each for more than the last pods took;
//   - what is on its way already counts, so nothing is asked for twice;
//   - one plan holds everything that can be done at once: an assignment on every ENI with room and several new ENIs;
//   - no step goes beyond max-pods or the instance type's limits;
//   - a target of 0 means "on demand": nothing is brought in that no pod waits for;
//   - MINIMUM_IP_TARGET alone is a floor, not a ceiling;
//   - a subnet that refuses is asked again at once when pods wait, and ever more seldom when they do not;
//   - what goes away is what leaves the fewest ENIs, and only if nothing would have to come back.
//
// An ENI has slots, and a slot takes a single address or, with prefix delegation, a /28 prefix of 16. The node's mode
// says which of the two is asked for; the other kind may be there as well, from another mode or because the subnet had
// no free /28, and what is unused of it is given back. New ENIs go to the first subnet of the zone that does not refuse.
//
// All of this is about one network card: each card has ENIs, limits and a pool of its own, and so a plan of its own.
package warmpool

import (
	"fmt"
	"slices"
	"time"
)

// Pacing of what goes away. Growth is not paced: pods wait for it.
const (
	// DefaultMinENIAge keeps a new ENI for a while: the pods it was made for may still be on their way.
	DefaultMinENIAge = 60 * time.Second
	// DefaultShrinkDelay is the least time between growth, or the last addresses given back, and giving addresses
	// back: short swings of the load cost no calls.
	DefaultShrinkDelay = 30 * time.Second
	// DefaultRemovePace is the least time between the removals of two ENIs.
	DefaultRemovePace = 10 * time.Second
)

// Targets are what the operator wants to have ready.
type Targets struct {
	WarmENI   int // full ENIs' worth of free addresses; ignored if WarmIP or MinimumIP is set, and with Prefixes
	WarmIP    int // free addresses
	MinimumIP int // addresses in all
	MaxPods   int // never hold more addresses than this needs; 0: unknown
	// Prefixes fills the slots with /28 prefixes. WarmPrefix is how many of them, or as many addresses, to have free;
	// ignored if WarmIP or MinimumIP is set.
	Prefixes   bool
	WarmPrefix int
	// MinENIAge, ShrinkDelay and RemovePace replace the defaults if positive; demonstrations shorten them.
	MinENIAge   time.Duration
	ShrinkDelay time.Duration
	RemovePace  time.Duration
}

// byAddress tells whether single addresses are counted, rather than full ENIs.
func (t Targets) byAddress() bool { return t.WarmIP != 0 || t.MinimumIP != 0 }

func (t Targets) minENIAge() time.Duration   { return orDefault(t.MinENIAge, DefaultMinENIAge) }
func (t Targets) shrinkDelay() time.Duration { return orDefault(t.ShrinkDelay, DefaultShrinkDelay) }
func (t Targets) removePace() time.Duration  { return orDefault(t.RemovePace, DefaultRemovePace) }

func orDefault(d, def time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return def
}

// Limits are what the instance can hold.
type Limits struct {
	InstanceType string
	ENIs         int // of the instance type, the primary one included
	IPsPerENI    int // slots of one ENI for pods' addresses or prefixes: without the ENI's own address
	MaxENI       int // MAX_ENI; 0: not set
}

// enis is the number of ENIs that may be attached.
func (l Limits) enis() int {
	if l.MaxENI > 0 {
		return min(l.MaxENI, l.ENIs)
	}
	return l.ENIs
}

// ENI is an attached ENI and its addresses, in figures.
type ENI struct {
	ID      string
	Device  int
	Subnet  string
	Primary bool
	// Fixed ENIs serve pods but are never removed: trunk and EFA interfaces.
	Fixed bool
	// Unmanaged ENIs belong to somebody else. They take up a slot.
	Unmanaged bool
	// Leaving ENIs are being drained, detached or deleted, or are lost. Their addresses count for nothing; Detached
	// ones take up no slot any more.
	Leaving  bool
	Detached bool
	// Stuck ENIs should serve but cannot be made ready. They take up a slot, and nobody counts on their addresses.
	Stuck bool
	// Excluded ENIs are in a subnet that is to be used no more. Their pods stay; nobody else gets an address of theirs,
	// and what is unused of them goes back. They are usable in all other respects.
	Excluded bool
	// Usable ENIs serve pods; an ENI that is none of the above and not usable is on its way to it.
	Usable bool
	// Busy ENIs have an address call in flight; they get no second one.
	Busy  bool
	Since time.Time // when the node got it

	Total       int // addresses on it for pods
	Assigned    int
	Free        int // ready to be handed out
	Cooling     int
	Quarantined int
	Returning   int // part of Total: on their way back to EC2
	Asked       int // not in Total: single addresses asked of EC2
	// Prefixes is the part of all these that is in prefixes.
	Prefixes Part
}

// serves tells whether the ENI's addresses count, now or soon.
func (e ENI) serves() bool { return !e.Unmanaged && !e.Leaving && !e.Stuck }

// Creating is an ENI that is being created or attached and not among the ENIs yet.
type Creating struct {
	Device   int
	IPs      int
	Prefixes int
}

// State is everything a plan depends on.
type State struct {
	ENIs     []ENI
	Creating []Creating
	// Waiting is the number of pods that wait for an address.
	Waiting  int
	Zone     Zone
	Refusals Refusals
	// Hold is why nothing must go away and nothing be brought in but for pods that wait; empty if the targets count.
	Hold string
	// LastGrowth, LastShrink and LastRemoval are when the pool last grew, gave addresses back, and lost an ENI.
	LastGrowth  time.Time
	LastShrink  time.Time
	LastRemoval time.Time
}

// Kind is what an action does.
type Kind string

// The kinds of actions.
const (
	AssignIPs        Kind = "AssignIPs"        // N more addresses on ENI
	AssignPrefixes   Kind = "AssignPrefixes"   // N more prefixes on ENI
	CreateENI        Kind = "CreateENI"        // a new ENI with N addresses or Prefixes prefixes at Device, in Subnet
	FindSubnets      Kind = "FindSubnets"      // ask EC2 which subnets of the zone may be used
	UnassignIPs      Kind = "UnassignIPs"      // N unused addresses of ENI go back
	UnassignPrefixes Kind = "UnassignPrefixes" // N unused prefixes of ENI go back
	RemoveENI        Kind = "RemoveENI"        // ENI, without pods, goes back
)

// Action is one step of a plan.
type Action struct {
	Kind     Kind
	ENI      string `json:",omitempty"`
	Device   int    `json:",omitempty"`
	N        int    `json:",omitempty"`
	Prefixes int    `json:",omitempty"`
	Subnet   string `json:",omitempty"`
	// Dense wants the addresses out of /28s in which the node holds single addresses already, so that fewer are broken.
	Dense  bool `json:",omitempty"`
	Reason string
}

// grows tells whether the action brings something in.
func (a Action) grows() bool {
	return a.Kind == AssignIPs || a.Kind == AssignPrefixes || a.Kind == CreateENI
}

// Decision is a plan and when to make the next one if nothing happens before.
type Decision struct {
	Actions []Action
	// Summary says in one line what the pool has and wants.
	Summary string
	// Wake is when the plan could change by the passing of time alone; zero if it cannot.
	Wake time.Time
}

func (d *Decision) wakeAt(t, now time.Time) {
	if t.After(now) && (d.Wake.IsZero() || t.Before(d.Wake)) {
		d.Wake = t
	}
}

// Plan says what to do now.
func Plan(s State, t Targets, l Limits, now time.Time) Decision {
	if s.Hold != "" {
		t.WarmENI, t.WarmIP, t.MinimumIP, t.WarmPrefix = 0, 0, 0, 0
	}
	all := sum(s)
	own := all.without(s, !t.Prefixes)
	d := Decision{Summary: summary(s, all, t)}
	stuck := false
	if short, why := shortage(own, t, l); short > 0 {
		if at := canWait(s, own, t); at.After(now) {
			d.wakeAt(at, now)
			return d
		}
		if blind := s; s.Zone.Known.IsZero() && s.Zone.Discover {
			// Which of the ENIs there are may get addresses is part of the answer, so it comes before everything else;
			// but only if there is something to be done at all.
			blind.Zone.Discover = false
			if todo := Plan(blind, t, l, now); !slices.ContainsFunc(todo.Actions, Action.grows) {
				return todo
			}
			if d.find(s, why(), now) {
				return d
			}
		}
		short += ahead(s, t, now)
		d.grow(s, own, all, t, l, short, why(), now)
		if len(d.Actions) == 0 && t.Prefixes {
			d.fallBack(s, all, t, l, now)
		}
		if len(d.Actions) > 0 || !t.Prefixes {
			return d
		}
		stuck = true // no prefix can be had; single addresses stand in for them
	}
	if s.Hold == "" && s.Waiting == 0 && !all.inFlight {
		f := own
		if stuck {
			f = all
		}
		d.shrink(s, f, t, l, stuck, now)
	}
	return d
}

func summary(s State, f figures, t Targets) string {
	target := fmt.Sprintf("WARM_ENI_TARGET=%d", t.WarmENI)
	if t.Prefixes {
		target = fmt.Sprintf("WARM_PREFIX_TARGET=%d", t.WarmPrefix)
	}
	if t.byAddress() {
		target = fmt.Sprintf("WARM_IP_TARGET=%d MINIMUM_IP_TARGET=%d", t.WarmIP, t.MinimumIP)
	}
	if s.Hold != "" {
		target = "nothing is given back, and only waiting pods get more: " + s.Hold
	}
	return fmt.Sprintf("%d addresses held or on their way, %d of them free, %d pods waiting; wanted: %s",
		f.total, f.usable, s.Waiting, target)
}

// shortage is how many addresses are missing, and the reason.
func shortage(f figures, t Targets, l Limits) (short int, why func() string) {
	free := f.usable - f.waiting
	switch {
	case t.byAddress():
		short = max(t.WarmIP-free-soonFree(f, t.WarmIP), t.MinimumIP-f.total)
		why = func() string {
			return fmt.Sprintf("%d free after %d waiting pods, WARM_IP_TARGET=%d; %d in all, MINIMUM_IP_TARGET=%d",
				free, f.waiting, t.WarmIP, f.total, t.MinimumIP)
		}
	case t.Prefixes && t.WarmPrefix > 0:
		short = t.WarmPrefix*PrefixSize - free - soonFree(f, t.WarmPrefix*PrefixSize)
		why = func() string {
			return fmt.Sprintf("%d free after %d waiting pods, WARM_PREFIX_TARGET=%d wants %d",
				free, f.waiting, t.WarmPrefix, t.WarmPrefix*PrefixSize)
		}
	case !t.Prefixes && t.WarmENI > 0:
		short = t.WarmENI*l.IPsPerENI - free - soonFree(f, t.WarmENI*l.IPsPerENI)
		why = func() string {
			return fmt.Sprintf("%d free after %d waiting pods, WARM_ENI_TARGET=%d wants %d",
				free, f.waiting, t.WarmENI, t.WarmENI*l.IPsPerENI)
		}
	default:
		short = -free
		why = func() string { return fmt.Sprintf("%d pods wait and %d addresses are free", f.waiting, f.usable) }
	}
	if t.MaxPods > 0 {
		short = min(short, t.MaxPods-f.held)
	}
	return max(short, 0), why
}
