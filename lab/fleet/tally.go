package fleet

import (
	"maps"
	"slices"
	"time"

	"vpccni/lab/ec2"
)

// tally counts what happens in a run.
type tally struct {
	ready, serving, verified []time.Duration
	waits                    []time.Duration
	pods, adds, failedAdds   int
	neverStarted             int
	assigned                 int
	assignedAt               time.Time
	assignedHours            float64
	coolingHours             float64
	restartCalls             calls
}

// assign notes that n more pods hold an address.
func (t *tally) assign(now time.Time, n int) {
	if !t.assignedAt.IsZero() {
		t.assignedHours += float64(t.assigned) * now.Sub(t.assignedAt).Hours()
	}
	t.assigned += n
	t.assignedAt = now
}

// cool notes that an address rests, or with a negative time that it went away before it had rested.
func (t *tally) cool(d time.Duration) { t.coolingHours += d.Hours() }

// calls are calls to EC2 by action.
type calls struct {
	All       map[string]int `json:"calls"`
	Throttled map[string]int `json:"throttled,omitempty"`
	Refused   map[string]int `json:"refused,omitempty"` // by other errors
}

const throttleCode = "RequestLimitExceeded"

func callsOf(counts map[ec2.CountKey]int) calls {
	c := calls{All: map[string]int{}, Throttled: map[string]int{}, Refused: map[string]int{}}
	for k, n := range counts {
		c.All[k.Action] += n
		switch k.Outcome {
		case "ok":
		case throttleCode:
			c.Throttled[k.Action] += n
		default:
			c.Refused[k.Action] += n
		}
	}
	return c
}

func (c *calls) subtract(o calls) {
	for _, x := range []struct{ from, what map[string]int }{{c.All, o.All}, {c.Throttled, o.Throttled}, {c.Refused, o.Refused}} {
		for k, n := range x.what {
			if x.from[k] -= n; x.from[k] == 0 {
				delete(x.from, k)
			}
		}
	}
}

func total(m map[string]int) (n int) {
	for _, x := range m {
		n += x
	}
	return n
}

// Quantiles are of times, in seconds.
type Quantiles struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	Max   float64 `json:"max"`
	Mean  float64 `json:"mean"`
}

func quantiles(d []time.Duration) Quantiles {
	if len(d) == 0 {
		return Quantiles{}
	}
	d = slices.Sorted(slices.Values(d))
	// The nearest rank: the least value that so many in a hundred do not exceed.
	at := func(percent int) float64 { return d[(len(d)*percent+99)/100-1].Seconds() }
	var sum time.Duration
	for _, x := range d {
		sum += x
	}
	return Quantiles{Count: len(d), P50: at(50), P99: at(99), Max: d[len(d)-1].Seconds(), Mean: sum.Seconds() / float64(len(d))}
}

// Result is what came of a run.
type Result struct {
	Algorithm     Algorithm `json:"algorithm"`
	Nodes         int       `json:"nodes"`
	InstanceTypes []string  `json:"instanceTypes"`
	Trace         string    `json:"trace"`
	Settings      string    `json:"settings"`
	Hours         float64   `json:"hours"`
	Seed          uint64    `json:"seed"`

	// Ready is from the boot of a node to the moment at which it serves.
	Ready Quantiles `json:"secondsToReady"`
	calls
	// AddWait is from the scheduling of a pod to its address, failed tries included.
	AddWait      Quantiles `json:"addWaitSeconds"`
	Pods         int       `json:"pods"`
	Adds         int       `json:"adds"`
	FailedAdds   int       `json:"failedAdds"`
	NeverStarted int       `json:"podsNeverStarted"` // deleted before they had an address

	// UnusedHours = TotalHours − AssignedHours − CoolingHours, of addresses for pods. An address counts from the moment
	// at which EC2 puts it on an ENI, attached or not, until it is back in the subnet.
	UnusedHours   float64 `json:"unusedAddressHours"`
	TotalHours    float64 `json:"totalAddressHours"`
	AssignedHours float64 `json:"assignedAddressHours"`
	CoolingHours  float64 `json:"coolingAddressHours"`
	PeakAddresses int     `json:"peakAddresses"` // with the ENIs' own

	Restart *RestartResult `json:"restart,omitempty"`

	Events      uint64  `json:"events"`
	RealSeconds float64 `json:"realSeconds"`
}

// RestartResult is what came of a restart of all nodes. Its calls are those of its first 90 s.
type RestartResult struct {
	Serving  Quantiles `json:"secondsToServing"`
	Verified Quantiles `json:"secondsToVerified"`
	calls
}

func (f *fleet) result(took time.Duration) Result {
	now := f.world.Now()
	t := &f.tally
	t.assign(now, 0)
	f.ledger.pool.settle()
	r := Result{
		Algorithm: f.cfg.Algorithm, Nodes: f.cfg.Nodes, InstanceTypes: f.cfg.InstanceTypes, Trace: f.cfg.Trace.Name,
		Settings: settingsText(f.cfg.Settings), Hours: f.cfg.Duration.Hours(), Seed: f.cfg.Seed,
		Ready: quantiles(t.ready), calls: callsOf(f.cloud.Counts()), AddWait: quantiles(t.waits),
		Pods: t.pods, Adds: t.adds, FailedAdds: t.failedAdds, NeverStarted: t.neverStarted,
		TotalHours: f.ledger.pool.hours, AssignedHours: t.assignedHours, CoolingHours: t.coolingHours,
		PeakAddresses: f.ledger.all.peak, Events: f.world.Events, RealSeconds: took.Seconds(),
	}
	r.UnusedHours = r.TotalHours - r.AssignedHours - r.CoolingHours
	if f.cfg.Restart != nil {
		r.Restart = &RestartResult{Serving: quantiles(t.serving), Verified: quantiles(t.verified), calls: t.restartCalls}
	}
	return r
}

// Calls is the number of calls to EC2.
func (r Result) Calls() int { return total(r.All) }

// sortedActions are the actions that were called.
func (c calls) sortedActions() []string { return slices.Sorted(maps.Keys(c.All)) }
