package ec2

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Fault is a rule by which calls over HTTP go wrong. Of the conditions those that are empty hold for every call.
type Fault struct {
	ID         string `json:"id"`
	Action     string `json:"action,omitempty"`   // a glob: "*NetworkInterface"
	SubnetID   string `json:"subnet,omitempty"`   // the call names it, or an ENI in it
	InstanceID string `json:"instance,omitempty"` // the caller; "operator" is the person's

	Error   string        `json:"error,omitempty"`   // the code to answer with; nothing happens
	Message string        `json:"message,omitempty"` // with Error or Deny
	Latency time.Duration `json:"latency,omitempty"`
	// LostResponse: what was asked for happens, and the connection is cut before the answer.
	LostResponse bool `json:"lostResponse,omitempty"`
	// Deny answers UnauthorizedOperation, as a missing IAM permission does.
	Deny bool `json:"deny,omitempty"`

	Count       int     `json:"count,omitempty"`       // how many calls it is good for; 0: for ever
	Probability float64 `json:"probability,omitempty"` // of a call that meets the conditions; 0: always
	Hits        int     `json:"hits"`                  // how many calls it struck
}

// faults are the rules, in the order in which they were added.
type faults struct {
	mu    sync.Mutex
	rng   *rand.Rand
	last  int
	rules []Fault
}

func newFaults(seed uint64) faults { return faults{rng: rand.New(rand.NewPCG(seed, 0xfa017))} }

// AddFault adds a rule and gives its id; an empty ID is made up.
func (c *Cloud) AddFault(f Fault) string {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	c.faults.last++
	f.ID = cmp.Or(f.ID, "fault-"+strconv.Itoa(c.faults.last))
	f.Hits = 0
	c.faults.rules = append(c.faults.rules, f)
	return f.ID
}

// RemoveFault removes a rule; false if there is none of that id.
func (c *Cloud) RemoveFault(id string) bool {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	before := len(c.faults.rules)
	c.faults.rules = slices.DeleteFunc(c.faults.rules, func(f Fault) bool { return f.ID == id })
	return len(c.faults.rules) < before
}

// Faults gives the rules in the order in which they were added. One that is used up is gone.
func (c *Cloud) Faults() []Fault {
	c.faults.mu.Lock()
	defer c.faults.mu.Unlock()
	return slices.Clone(c.faults.rules)
}

// Validate refuses a rule that can never strike or does nothing: one that was meant differently.
func (f Fault) Validate() error {
	known := slices.ContainsFunc(sortedKeys(actions), func(action string) bool {
		return Fault{Action: f.Action}.matches(action, "", "")
	})
	switch {
	case !known:
		return fmt.Errorf("no action is called %q (a glob may stand for several: *NetworkInterface)", f.Action)
	case f.Error == "" && f.Latency == 0 && !f.LostResponse && !f.Deny:
		return errors.New("the fault does nothing: it needs an error, a latency, a lost response or a denial")
	case f.Latency < 0 || f.Count < 0 || f.Probability < 0 || f.Probability > 1:
		return errors.New("latency and count cannot be negative, and the probability is between 0 and 1")
	}
	return nil
}

// verdict is what the rules do to a call.
type verdict struct {
	latency time.Duration
	err     error
	lost    bool
}

// judge applies the rules to a call. Latencies add up; the first error counts.
func (f *faults) judge(action, subnetID, caller string) verdict {
	return f.apply(action, subnetID, caller, func(Fault) bool { return true })
}

// authorize applies the rules that deny a right to a call that needs the right besides the one of its name.
func (f *faults) authorize(action, subnetID, caller string) error {
	return f.apply(action, subnetID, caller, func(r Fault) bool { return r.Deny }).err
}

func (f *faults) apply(action, subnetID, caller string, counts func(Fault) bool) verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	var v verdict
	kept := f.rules[:0:0]
	for _, r := range f.rules {
		if counts(r) && r.matches(action, subnetID, caller) && (r.Probability == 0 || f.rng.Float64() < r.Probability) {
			r.Hits++
			r.strike(action, &v)
		}
		if r.Count == 0 || r.Hits < r.Count {
			kept = append(kept, r)
		}
	}
	f.rules = kept
	return v
}

func (r Fault) matches(action, subnetID, caller string) bool {
	ok, err := path.Match(cmp.Or(r.Action, "*"), action)
	return err == nil && ok &&
		(r.SubnetID == "" || r.SubnetID == subnetID) &&
		(r.InstanceID == "" || r.InstanceID == caller)
}

func (r Fault) strike(action string, v *verdict) {
	v.latency += r.Latency
	v.lost = v.lost || r.LostResponse
	if v.err != nil {
		return
	}
	switch {
	case r.Deny:
		v.err = errorf("UnauthorizedOperation", "%s", cmp.Or(r.Message,
			"You are not authorized to perform this operation. No identity-based policy allows the ec2:"+action+" action."))
	case r.Error != "":
		v.err = errorf(r.Error, "%s", cmp.Or(r.Message, "Injected by "+r.ID))
	}
}
