package warmpool

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Verdict says that waiting is in vain, and why.
type Verdict struct {
	Cause  Cause // CauseLimit, CauseDenied, CauseExhausted or CauseForbidden
	Reason string
}

// Hopeless tells whether a pod that waits for an address waits in vain: no address is free, cooling, on its way in or on
// its way out, and more cannot be had. Throttling and failures of other kinds pass; they are no reason to give up.
func Hopeless(s State, t Targets, l Limits, now time.Time) (Verdict, bool) {
	f := sum(s)
	if f.ready > 0 || f.usable > 0 || f.inFlight || s.Zone.Asking {
		return Verdict{}, false
	}
	var cooling, inUse, unmanaged, prefixes, singles int
	rooms := map[string]int{} // by subnet, on usable ENIs
	for _, e := range s.ENIs {
		switch {
		case e.Unmanaged:
			unmanaged++
			continue
		case e.Leaving && !e.Detached, e.Returning > 0:
			return Verdict{}, false
		case !e.serves():
			continue
		}
		inUse += e.Assigned + e.Quarantined
		if e.Excluded {
			continue
		}
		cooling += e.Cooling
		prefixes += e.Prefixes.Blocks
		singles += e.part(false).Blocks
		if room := e.room(l); room > 0 {
			rooms[e.Subnet] += room
		}
	}
	if cooling > 0 {
		return Verdict{}, false
	}
	if t.MaxPods > 0 && f.total >= t.MaxPods {
		return Verdict{CauseLimit, fmt.Sprintf("all %d addresses that max-pods=%d allows are in use", inUse, t.MaxPods)}, true
	}
	if len(rooms) == 0 && f.slots >= l.enis() {
		return Verdict{CauseLimit, limitReason(l, slotsText(l, t, prefixes, singles), inUse, unmanaged)}, true
	}
	if f.slots < l.enis() && s.mayFind(zoneRetry, now) {
		return Verdict{}, false
	}
	// Every way that is open in principle must have been refused for good.
	var refusals []Refusal
	ways := make([]refusalKey, 0, len(rooms)+1)
	for subnet := range rooms {
		ways = append(ways, refusalKey{OpAssign, subnet})
	}
	if f.slots < l.enis() {
		for _, subnet := range s.Zone.Subnets {
			ways = append(ways, refusalKey{OpCreate, subnet})
		}
	}
	if len(ways) == 0 {
		return Verdict{CauseForbidden, "the tags of the zone's subnets forbid the use of all of them"}, true
	}
	for _, way := range ways {
		x, ok := s.Refusals.Get(way.op, way.target, now)
		if !ok || x.AtMost > 0 || x.Cause == CauseThrottled || x.Cause == CauseFailed {
			return Verdict{}, false
		}
		refusals = append(refusals, x)
	}
	sortRefusals(refusals)
	return refusalVerdict(refusals, now), true
}

// slotsText says what an ENI's slots hold.
func slotsText(l Limits, t Targets, prefixes, singles int) string {
	switch {
	case prefixes == 0 && !t.Prefixes:
		return fmt.Sprintf("(%d-1) addresses", l.IPsPerENI+1)
	case singles == 0:
		return fmt.Sprintf("%d prefixes of %d", l.IPsPerENI, PrefixSize)
	}
	return fmt.Sprintf("%d slots, with %d prefixes of %d and %d single addresses", l.IPsPerENI, prefixes, PrefixSize, singles)
}

// limitReason names the limit that is reached.
func limitReason(l Limits, slots string, inUse, unmanaged int) string {
	var b strings.Builder
	own := l.enis() - unmanaged
	if l.MaxENI > 0 && l.MaxENI < l.ENIs {
		fmt.Fprintf(&b, "all %d addresses that MAX_ENI=%d allows are in use: %d ENIs x %s (a %s could have %d ENIs)",
			inUse, l.MaxENI, own, slots, l.InstanceType, l.ENIs)
	} else {
		fmt.Fprintf(&b, "all %d addresses that %s %s can give pods are in use: %d ENIs x %s",
			inUse, article(l.InstanceType), l.InstanceType, own, slots)
	}
	if unmanaged > 0 {
		fmt.Fprintf(&b, "; %d more ENIs of this node are not managed by the CNI", unmanaged)
	}
	return b.String()
}

// article chooses "a" or "an" for an instance type: m5 and r6i are spoken em and ar.
func article(instanceType string) string {
	if instanceType != "" && strings.ContainsRune("aefhilmnorsx", rune(instanceType[0])) {
		return "an"
	}
	return "a"
}

func refusalVerdict(refusals []Refusal, now time.Time) Verdict {
	v := Verdict{Cause: refusals[0].Cause}
	parts := make([]string, 0, len(refusals))
	for _, x := range refusals {
		again := x.Until.Sub(now).Round(time.Second)
		switch x.Cause {
		case CauseExhausted:
			parts = append(parts, fmt.Sprintf("subnet %s has no free address; next try in %s", x.Target, again))
		case CauseDenied:
			v.Cause = CauseDenied
			parts = append(parts, fmt.Sprintf("EC2 denies %s (%s); next try in %s", callName(x.Op), x.Detail, again))
		default:
			parts = append(parts, fmt.Sprintf("EC2 refuses %s (%s); next try in %s", callName(x.Op), x.Detail, again))
		}
	}
	v.Reason = strings.Join(slices.Compact(parts), "; ")
	return v
}

func callName(op Op) string {
	switch op {
	case OpAssign:
		return "ec2:AssignPrivateIpAddresses"
	case OpCreate:
		return "ec2:CreateNetworkInterface or ec2:AttachNetworkInterface"
	case OpUnassign:
		return "ec2:UnassignPrivateIpAddresses"
	}
	return "ec2:DetachNetworkInterface"
}

func sortRefusals(r []Refusal) {
	slices.SortFunc(r, func(a, b Refusal) int { return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.Target, b.Target)) })
}
