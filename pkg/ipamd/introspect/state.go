package introspect

import (
	"net/netip"
	"time"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

// stateJSON is /v1/state: what the daemon knows, in its own words. Members may be added.
type stateJSON struct {
	Time     time.Time  `json:"time"`
	Ready    bool       `json:"ready"`
	Verified *time.Time `json:"verified"` // null until EC2 has answered

	Versions versionsJSON `json:"versions"`

	Limits    limitsJSON   `json:"limits"`
	Targets   targetsJSON  `json:"targets"`
	Addresses countsJSON   `json:"addresses"`
	ENIs      []stateENI   `json:"enis"`
	Unplaced  []holderJSON `json:"unplaced"` // of no ENI known; they block the reuse of their addresses

	Waiting          int            `json:"waitingAdds"`
	OldestAddSeconds float64        `json:"oldestAddSeconds"`
	InFlight         []actionJSON   `json:"inFlight"`
	Refusals         []refusalJSON  `json:"refusals"`
	Counters         ipamd.Counters `json:"counters"`
}

type versionsJSON struct {
	IPAMD  string `json:"ipamd"`
	Plugin string `json:"plugin"` // of the last call; empty until there was one
}

type limitsJSON struct {
	InstanceType string `json:"instanceType"`
	ENIs         int    `json:"enis"`
	IPsPerENI    int    `json:"ipsPerENI"`
	MaxENI       int    `json:"maxENI"` // 0: not set
}

type targetsJSON struct {
	WarmENI   int `json:"warmENI"`
	WarmIP    int `json:"warmIP"`
	MinimumIP int `json:"minimumIP"`
	MaxPods   int `json:"maxPods"` // 0: not known
	// Prefixes says that slots are filled with prefixes, and WarmPrefix how many to have free.
	Prefixes   bool `json:"prefixes,omitempty"`
	WarmPrefix int  `json:"warmPrefix,omitempty"`
}

type countsJSON struct {
	Total       int `json:"total"`
	Assigned    int `json:"assigned"`
	Free        int `json:"free"`
	Cooling     int `json:"cooling"`
	Quarantined int `json:"quarantined"`
	Arriving    int `json:"arriving"`
	Leaving     int `json:"leaving"`
}

type stateENI struct {
	ID         string          `json:"id"`
	MAC        string          `json:"mac"`
	Card       int             `json:"card"`
	Device     int             `json:"device"`
	Table      int             `json:"table"`
	Subnet     string          `json:"subnet"`
	Attachment string          `json:"attachment"`
	Primary    bool            `json:"primary"`
	Managed    bool            `json:"managed"`
	Phase      datastore.Phase `json:"phase"`
	NotReady   string          `json:"notReady,omitempty"`
	Addresses  countsJSON      `json:"addresses"`
	Pool       []blockJSON     `json:"pool"`
}

type blockJSON struct {
	CIDR      netip.Prefix       `json:"cidr"`
	Addresses []stateAddressJSON `json:"addresses"`
}

type stateAddressJSON struct {
	Address  netip.Addr             `json:"address"`
	State    datastore.AddressState `json:"state"`
	Holder   *holderJSON            `json:"holder,omitempty"`
	Released *time.Time             `json:"released,omitempty"`
}

type holderJSON struct {
	Address   netip.Addr `json:"address"`
	Namespace string     `json:"namespace"`
	Pod       string     `json:"pod"`
	Since     time.Time  `json:"since"`
	Key       keyJSON    `json:"key"`
}

type actionJSON struct {
	Kind   string    `json:"kind"`
	Stage  string    `json:"stage"`
	ENI    string    `json:"eni,omitempty"`
	Device int       `json:"device"`
	N      int       `json:"n,omitempty"`
	Since  time.Time `json:"since"`
	Tries  int       `json:"tries"`
	Error  string    `json:"error,omitempty"`
	Reason string    `json:"reason"`
}

type refusalJSON struct {
	Operation warmpool.Op    `json:"operation"`
	Target    string         `json:"target"`
	Cause     warmpool.Cause `json:"cause"`
	Until     time.Time      `json:"until"`
	Times     int            `json:"times"`
	AtMost    int            `json:"atMost"`
	Detail    string         `json:"detail"`
}

func (s shower) state(v ipamd.View) stateJSON {
	out := stateJSON{
		Time:             v.Time,
		Ready:            v.Ready,
		Verified:         timeOrNil(v.Verified),
		Versions:         s.versions(),
		Limits:           limitsJSON{v.Limits.InstanceType, v.Limits.ENIs, v.Limits.IPsPerENI, v.Limits.MaxENI},
		Targets:          targetsJSON{v.Targets.WarmENI, v.Targets.WarmIP, v.Targets.MinimumIP, v.Targets.MaxPods, v.Targets.Prefixes, v.Targets.WarmPrefix},
		Addresses:        countsJSON(v.Totals),
		ENIs:             []stateENI{},
		Unplaced:         []holderJSON{},
		Waiting:          v.Waiting,
		OldestAddSeconds: v.OldestAdd.Seconds(),
		InFlight:         []actionJSON{},
		Refusals:         []refusalJSON{},
		Counters:         v.Counters,
	}
	for _, e := range v.ENIs {
		eni := stateENI{
			ID: e.ID, MAC: e.MAC, Card: e.Card, Device: e.Device, Table: e.Table, Subnet: e.SubnetID,
			Attachment: e.Attachment, Primary: e.Primary, Managed: e.Managed, Phase: e.Phase, NotReady: e.NotReady,
			Addresses: countsJSON(e.Counts), Pool: []blockJSON{},
		}
		for _, b := range e.Pool {
			eni.Pool = append(eni.Pool, s.block(b))
		}
		out.ENIs = append(out.ENIs, eni)
	}
	for _, a := range v.Unplaced {
		out.Unplaced = append(out.Unplaced, s.holder(a))
	}
	for _, a := range v.InFlight {
		out.InFlight = append(out.InFlight, actionJSON(a))
	}
	for _, r := range v.Refusals {
		out.Refusals = append(out.Refusals, refusalJSON{
			Operation: r.Op, Target: r.Target, Cause: r.Cause, Until: r.Until, Times: r.Times, AtMost: r.AtMost, Detail: r.Detail,
		})
	}
	return out
}

func (s shower) block(b datastore.Block) blockJSON {
	out := blockJSON{CIDR: b.CIDR, Addresses: []stateAddressJSON{}}
	for _, a := range b.Addresses {
		entry := stateAddressJSON{Address: a.Address, State: a.State, Released: timeOrNil(a.Released)}
		if a.Holder != nil {
			h := s.holder(*a.Holder)
			entry.Holder = &h
		}
		out.Addresses = append(out.Addresses, entry)
	}
	return out
}

func (s shower) holder(a datastore.Allocation) holderJSON {
	return holderJSON{Address: a.Address, Namespace: a.Namespace, Pod: a.Pod, Since: a.Time, Key: s.key(a)}
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// planJSON is /v1/plan: what the planner would do now, and why, and what it last did.
type planJSON struct {
	Time    time.Time         `json:"time"`
	Summary string            `json:"summary"`
	Actions []warmpool.Action `json:"actions"`
	Last    lastPlanJSON      `json:"last"`
	// Wake is when the plan could change by the passing of time alone; null if it cannot.
	Wake     *time.Time   `json:"wake"`
	InFlight []actionJSON `json:"inFlight"`
}

// lastPlanJSON is the plan that was carried out last.
type lastPlanJSON struct {
	Time    *time.Time        `json:"time"` // null before the first
	Summary string            `json:"summary"`
	Actions []warmpool.Action `json:"actions"`
}

func plan(v ipamd.View, now warmpool.Decision) planJSON {
	out := planJSON{
		Time: v.Time, Summary: now.Summary, Actions: actions(now.Actions), Wake: timeOrNil(now.Wake), InFlight: []actionJSON{},
		Last: lastPlanJSON{timeOrNil(v.PlanTime), v.Plan.Summary, actions(v.Plan.Actions)},
	}
	for _, a := range v.InFlight {
		out.InFlight = append(out.InFlight, actionJSON(a))
	}
	return out
}

// actions is never null.
func actions(list []warmpool.Action) []warmpool.Action {
	return append([]warmpool.Action{}, list...)
}
