package warmpool

import (
	"maps"
	"time"
)

// Op is an operation that EC2 can refuse.
type Op string

// The operations. Assign and create are refused per subnet, remove and unassign per ENI. That a subnet has no free /28
// is remembered apart: it may well have single addresses, and it is the same for an ENI that exists and a new one.
const (
	OpAssign   Op = "assign"
	OpCreate   Op = "create"
	OpPrefix   Op = "prefix"
	OpDense    Op = "dense" // single addresses by name, per subnet
	OpFind     Op = "find"  // which subnets there are; it has no target
	OpUnassign Op = "unassign"
	OpRemove   Op = "remove"
)

// Cause is why EC2 refused.
type Cause string

// The causes of a refusal.
const (
	CauseExhausted Cause = "exhausted" // the subnet has no free address
	CauseDenied    Cause = "denied"    // IAM
	CauseLimit     Cause = "limit"     // EC2 counts more ENIs or addresses than this node knows of
	CauseThrottled Cause = "throttled"
	CauseFailed    Cause = "failed"    // anything else
	CauseForbidden Cause = "forbidden" // no subnet may be used; no refusal has it, only a Verdict
)

// How long a refusal is remembered.
const (
	// exhaustedFor is upstream's: a subnet does not get free addresses by being asked.
	exhaustedFor = 120 * time.Second
	// restLong is the longest time between two questions for what nobody waits for.
	restLong = 15 * time.Minute
	// denseFor is long: the addresses beside this node's belong to other nodes, and these keep them.
	denseFor = 10 * time.Minute
	// noPrefixFor is shorter: the node lives on single addresses meanwhile, and each of them is in the way of a prefix.
	noPrefixFor = 40 * time.Second
	// deniedFor makes at most 12 tries an hour: rights change when people change them.
	deniedFor = 5 * time.Minute
	limitFor  = 60 * time.Second
	limitLong = time.Hour
	// forgetAfter drops what has not been refused for long, such as the refusals of ENIs that are gone.
	forgetAfter = time.Hour
	firstWait   = time.Second
	longWait    = 60 * time.Second
)

// Refusal is the memory of a refused call.
type Refusal struct {
	Op     Op
	Target string // subnet or ENI
	Cause  Cause
	Until  time.Time // nothing is asked before
	// Rest is until when nothing is asked for the sake of the targets alone; not before Until.
	Rest time.Time
	// AtMost is how many addresses may be asked for at once before Until; 0 is none. A subnet that has no 49 addresses may
	// have 12.
	AtMost int
	Times  int // in a row
	Rounds int // in a row, down to a single block
	Detail string
}

type refusalKey struct {
	op     Op
	target string
}

// Refusals remembers what EC2 refused. It is a value: methods that change it return a new one.
type Refusals struct {
	m map[refusalKey]Refusal
}

// Refused records that a call for n addresses (0 if it was for none) was refused. jitter, in [0,1), spreads the
// retries of the nodes.
func (r Refusals) Refused(op Op, target string, cause Cause, n int, detail string, jitter float64, now time.Time) Refusals {
	key := refusalKey{op, target}
	x := r.m[key]
	if x.Cause != cause {
		x = Refusal{Op: op, Target: target, Cause: cause}
	}
	x.Times++
	x.Detail = detail
	x.AtMost = 0
	switch cause {
	case CauseExhausted:
		x.Until = now.Add(exhaustedFor)
		if op == OpPrefix {
			x.Until = now.Add(noPrefixFor + time.Duration(jitter*float64(noPrefixFor)/4))
		}
		if op == OpDense {
			x.Until = now.Add(denseFor + time.Duration(jitter*float64(denseFor)/4))
		}
		if n > 1 && op != OpDense {
			x.AtMost = max(n/4, 1)
		} else {
			x.Rounds++
		}
	case CauseDenied:
		x.Until = now.Add(deniedFor + time.Duration(jitter*float64(deniedFor)/10))
	case CauseLimit:
		x.Until = now.Add(min(limitFor<<min(x.Times-1, 10), limitLong))
	default:
		wait := min(firstWait<<min(x.Times-1, 10), longWait)
		x.Until = now.Add(wait/2 + time.Duration(jitter*float64(wait)))
	}
	wait := x.Until.Sub(now)
	x.Rest = now.Add(max(min(wait<<min(max(x.Rounds-1, 0), 10), restLong), wait))
	next := map[refusalKey]Refusal{key: x}
	for k, old := range r.m {
		if k != key && now.Sub(old.Until) < forgetAfter {
			next[k] = old
		}
	}
	return Refusals{next}
}

// Succeeded forgets the refusals of an operation, except that a subnet was short of addresses: that the last few
// could be had does not mean that there are more.
func (r Refusals) Succeeded(op Op, target string, now time.Time) Refusals {
	key := refusalKey{op, target}
	if x, ok := r.m[key]; !ok || x.Cause == CauseExhausted && x.Until.After(now) {
		return r
	}
	next := maps.Clone(r.m)
	delete(next, key)
	return Refusals{next}
}

// Get returns what is remembered of an operation on a target.
func (r Refusals) Get(op Op, target string, now time.Time) (Refusal, bool) {
	x, ok := r.m[refusalKey{op, target}]
	return x, ok && x.Until.After(now)
}

// Active lists what is remembered, in no particular order of time but always the same one.
func (r Refusals) Active(now time.Time) []Refusal {
	var out []Refusal
	for _, x := range r.m {
		if x.Until.After(now) {
			out = append(out, x)
		}
	}
	sortRefusals(out)
	return out
}

// gate is when an operation may be tried (without a cap) again.
func (r Refusals) gate(op Op, target string, urgent bool) time.Time {
	x := r.m[refusalKey{op, target}]
	if urgent {
		return x.Until
	}
	return x.Rest
}

// allowed is how many of n addresses may be asked for now.
func (r Refusals) allowed(op Op, target string, n int, urgent bool, now time.Time) int {
	x := r.m[refusalKey{op, target}]
	switch {
	case r.gate(op, target, urgent).After(now):
		return min(n, x.AtMost)
	case x.Cause == CauseExhausted && x.AtMost == 0:
		return min(n, 1) // ask for one; if that works the next plan asks for all
	}
	return n
}

// empty tells whether a subnet had not a single address for an operation when it was asked last, not long ago.
func (r Refusals) empty(op Op, subnet string, now time.Time) bool {
	x := r.m[refusalKey{op, subnet}]
	return x.Cause == CauseExhausted && x.AtMost == 0 && x.Rest.After(now)
}

// everywhere tells whether what refuses an operation on a subnet would refuse it on every other one.
func (r Refusals) everywhere(op Op, subnet string, now time.Time) bool {
	x, ok := r.Get(op, subnet, now)
	return ok && x.Cause == CauseLimit || r.passing(op, subnet, now)
}

// passing tells whether a refusal is one that waiting mends, so that another way, which may be dearer, is not taken at
// once.
func (r Refusals) passing(op Op, target string, now time.Time) bool {
	x, ok := r.Get(op, target, now)
	return ok && (x.Cause == CauseThrottled || x.Cause == CauseFailed && x.Times <= 2)
}

// noPrefix tells whether a subnet has just said that it has no free /28.
func (r Refusals) noPrefix(subnet string, now time.Time) bool {
	x, ok := r.Get(OpPrefix, subnet, now)
	return ok && x.AtMost == 0
}

// doubtful tells whether a subnet had no free /28 when it was asked last, however long ago.
func (r Refusals) doubtful(subnet string) bool {
	return r.m[refusalKey{OpPrefix, subnet}].Cause == CauseExhausted
}
