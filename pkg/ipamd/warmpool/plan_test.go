package warmpool

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// eni makes an ENI that has been usable for long: total addresses, some of them with pods, some cooling.
func eni(device, total, assigned, cooling int) ENI {
	return ENI{ID: fmt.Sprintf("eni-%d", device), Device: device, Subnet: "s", Primary: device == 0, Usable: true,
		Since: t0.Add(-time.Hour), Total: total, Assigned: assigned, Free: total - assigned - cooling, Cooling: cooling}
}

// oneSubnet is a zone without discovery.
var oneSubnet = Zone{Subnets: []string{"s"}}

func state(waiting int, enis ...ENI) State {
	return State{ENIs: enis, Waiting: waiting, Zone: oneSubnet}
}

// brief writes a plan on one line: +3@0 assigns 3 on device 0, new@1:5 creates with 5, -2@1 gives back 2, del@1 removes.
func brief(d Decision) string {
	var out []string
	for _, a := range d.Actions {
		out = append(out, a.brief())
	}
	return strings.Join(out, " ")
}

func (a Action) brief() string {
	switch a.Kind {
	case AssignPrefixes:
		return fmt.Sprintf("+%dp@%d", a.N, a.Device)
	case UnassignPrefixes:
		return fmt.Sprintf("-%dp@%d", a.N, a.Device)
	case AssignIPs:
		return fmt.Sprintf("+%d@%d", a.N, a.Device)
	case CreateENI:
		if a.Prefixes > 0 {
			return fmt.Sprintf("new@%d:%dp", a.Device, a.Prefixes)
		}
		return fmt.Sprintf("new@%d:%d", a.Device, a.N)
	case UnassignIPs:
		return fmt.Sprintf("-%d@%d", a.N, a.Device)
	}
	return fmt.Sprintf("del@%d", a.Device)
}

func TestPlan(t *testing.T) {
	t.Parallel()
	small := Limits{InstanceType: "t3.small", ENIs: 3, IPsPerENI: 3}
	medium := Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5}
	big := Limits{InstanceType: "m5.24xlarge", ENIs: 15, IPsPerENI: 49}
	busy := func(e ENI, asked int) ENI { e.Busy, e.Asked = true, asked; return e }
	young := func(e ENI) ENI { e.Since = t0.Add(-59 * time.Second); return e }
	wiring := func(e ENI) ENI { e.Usable, e.Free = false, 0; return e }
	leaving := func(e ENI) ENI { e.Leaving, e.Usable = true, false; return e }
	foreign := func(e ENI) ENI { e.Unmanaged = true; return e }
	stuck := func(e ENI) ENI { e.Stuck, e.Usable = true, false; return e }
	for _, c := range []struct {
		name    string
		targets Targets
		limits  Limits
		state   State
		want    string
	}{
		// What upstream does not do.
		{"cooling is not free", Targets{WarmIP: 2}, small, state(0, eni(0, 3, 1, 2)), "new@1:2"},
		{"minimum alone grows when it is used up", Targets{MinimumIP: 3}, small, state(2, eni(0, 3, 3, 0)), "new@1:2"},
		{"minimum alone, nobody waits", Targets{MinimumIP: 3}, small, state(0, eni(0, 3, 3, 0)), ""},
		{"waiting pods are demand", Targets{WarmENI: 1}, medium, state(10, eni(0, 0, 0, 0)), "+5@0 new@1:5 new@2:5"},
		{"exact demand with IP targets", Targets{WarmIP: 1}, medium, state(10, eni(0, 0, 0, 0)), "+5@0 new@1:5 new@2:1"},
		{"one call per ENI with room", Targets{WarmIP: 9}, medium, state(0, eni(0, 3, 3, 0), eni(1, 4, 4, 0), eni(2, 0, 0, 0)),
			"+2@0 +1@1 +5@2"},
		{"what is asked for is not asked again", Targets{WarmENI: 1}, medium, state(5, busy(eni(0, 0, 0, 0), 5)), "new@1:5"},
		{"nor what is being created", Targets{}, medium, State{ENIs: []ENI{eni(0, 5, 5, 0)}, Waiting: 5, Zone: oneSubnet,
			Creating: []Creating{{Device: 1, IPs: 5}}}, ""},
		{"room of an ENI in the making is used before another is made", Targets{WarmIP: 1}, medium,
			State{ENIs: []ENI{eni(0, 5, 5, 0)}, Waiting: 4, Zone: oneSubnet, Creating: []Creating{{Device: 1, IPs: 2}}}, ""},
		{"nor what is being wired", Targets{}, medium, state(5, eni(0, 5, 5, 0), wiring(eni(1, 5, 0, 0))), ""},
		{"an ENI that cannot be wired does not count", Targets{}, medium, state(1, eni(0, 5, 5, 0), stuck(eni(1, 5, 0, 0))), "new@2:5"},
		{"device indexes of others are taken", Targets{}, medium, state(1, eni(0, 5, 5, 0), foreign(eni(1, 0, 0, 0))), "new@2:5"},
		{"and their slots", Targets{}, medium, state(9, eni(0, 5, 5, 0), foreign(eni(3, 0, 0, 0)), foreign(eni(4, 0, 0, 0))), ""},
		{"a leaving ENI keeps its slot", Targets{}, medium, state(9, eni(0, 5, 5, 0), eni(1, 5, 5, 0), leaving(eni(2, 5, 0, 0))), ""},
		{"MAX_ENI", Targets{}, Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5, MaxENI: 1}, state(9, eni(0, 5, 5, 0)), ""},
		{"max-pods caps the step, not only the trigger", Targets{WarmENI: 1, MaxPods: 20}, big, state(0, eni(0, 0, 0, 0)), "+20@0"},
		{"and new ENIs", Targets{WarmENI: 1, MaxPods: 60}, big, state(0, eni(0, 49, 40, 0)), "new@1:11"},

		{"E keeps a full ENI more than the target", Targets{WarmENI: 1}, medium, state(0, eni(0, 5, 1, 0), eni(1, 5, 0, 0)), ""},
		{"E gives back the ENI beyond that", Targets{WarmENI: 1}, medium, state(0, eni(0, 5, 0, 0), eni(1, 5, 0, 0)), "del@1"},
		{"the highest device first, one at a time", Targets{WarmENI: 1}, medium,
			state(0, eni(0, 5, 0, 0), eni(1, 5, 0, 0), eni(2, 5, 0, 0)), "del@2"},
		{"E never gives back single addresses", Targets{WarmENI: 1}, medium, state(0, eni(0, 5, 0, 0), eni(1, 5, 1, 0)), ""},
		{"E=0 and an idle ENI", Targets{}, medium, state(0, eni(0, 5, 5, 0), eni(1, 5, 0, 0)), "del@1"},
		{"an ENI with a cooling address stays", Targets{}, medium, state(0, eni(0, 5, 0, 0), eni(1, 5, 0, 1)), ""},
		{"a young one too", Targets{}, medium, state(0, eni(0, 5, 5, 0), young(eni(1, 5, 0, 0))), ""},
		{"and takes its addresses along later", Targets{WarmIP: 1}, medium, state(0, eni(0, 5, 4, 0), young(eni(1, 2, 0, 0))), ""},
		{"empty ENIs go whole, the rest by address", Targets{WarmIP: 2, MinimumIP: 5}, small,
			state(0, eni(0, 3, 0, 0), eni(1, 3, 0, 0)), "-1@1"},
		{"nothing goes while pods wait", Targets{}, medium, state(1, eni(0, 5, 5, 0), eni(1, 5, 0, 0)), ""},
		{"nothing goes while something comes", Targets{}, medium, state(0, busy(eni(0, 3, 3, 0), 2), eni(1, 5, 0, 0)), ""},
		{"addresses come off the ENI with fewest pods", Targets{WarmIP: 1}, medium,
			state(0, eni(0, 5, 2, 0), eni(1, 5, 1, 0), eni(2, 5, 3, 0)), "-4@1 -2@2 -2@0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := Plan(c.state, c.targets, c.limits, t0)
			if got := brief(d); got != c.want {
				t.Errorf("plan %q, want %q (%s)", got, c.want, d.Summary)
			}
			for _, a := range d.Actions {
				if a.Reason == "" {
					t.Errorf("%s has no reason", a.brief())
				}
			}
		})
	}
}

func TestShrinkIsPaced(t *testing.T) {
	t.Parallel()
	l := Limits{ENIs: 3, IPsPerENI: 5}
	full := state(0, eni(0, 5, 0, 0), eni(1, 5, 0, 0), eni(2, 5, 0, 0))
	full.LastRemoval = t0.Add(-4 * time.Second)
	if d := Plan(full, Targets{WarmENI: 1}, l, t0); brief(d) != "" || !d.Wake.Equal(t0.Add(6*time.Second)) {
		t.Errorf("%q, wakes at %s", brief(d), d.Wake)
	}
	young := state(0, eni(0, 5, 0, 0), eni(1, 5, 0, 0))
	young.ENIs[1].Since = t0.Add(-5 * time.Second)
	if d := Plan(young, Targets{WarmENI: 1}, l, t0); brief(d) != "" || !d.Wake.Equal(t0.Add(55*time.Second)) {
		t.Errorf("%q, wakes at %s", brief(d), d.Wake)
	}
	if d := Plan(young, Targets{WarmENI: 1, MinENIAge: 5 * time.Second}, l, t0); brief(d) != "del@1" {
		t.Errorf("with a shorter age: %q", brief(d))
	}
	grown := state(0, eni(0, 5, 0, 0))
	grown.LastGrowth = t0.Add(-10 * time.Second)
	if d := Plan(grown, Targets{WarmIP: 1}, l, t0); brief(d) != "" || !d.Wake.Equal(t0.Add(20*time.Second)) {
		t.Errorf("%q, wakes at %s", brief(d), d.Wake)
	}
}

func TestRefusalsAreRemembered(t *testing.T) {
	t.Parallel()
	l := Limits{InstanceType: "m5.24xlarge", ENIs: 15, IPsPerENI: 49}
	s := state(3, eni(0, 0, 0, 0))
	plan := func(at time.Time) string { return brief(Plan(s, Targets{}, l, at)) }
	var asked []string
	for plan(t0) != "" {
		d := Plan(s, Targets{}, l, t0)
		asked = append(asked, brief(d))
		for _, a := range d.Actions {
			op, target := OpAssign, "s"
			if a.Kind == CreateENI {
				op = OpCreate
			}
			s.Refusals = s.Refusals.Refused(op, target, CauseExhausted, a.N, "x", 0, t0)
		}
		if len(asked) > 20 {
			break
		}
	}
	want := []string{"+49@0", "+12@0", "+3@0", "+1@0 new@1:49", "new@1:12", "new@1:3", "new@1:1"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
	v, hopeless := Hopeless(s, Targets{}, l, t0)
	if !hopeless || v.Cause != CauseExhausted || !strings.Contains(v.Reason, "subnet s has no free address") {
		t.Errorf("%v %+v", hopeless, v)
	}
	if got := plan(t0.Add(119 * time.Second)); got != "" {
		t.Errorf("asks again after 119 s: %q", got)
	}
	if got := plan(t0.Add(120 * time.Second)); got != "+1@0 new@1:1" {
		t.Errorf("after 120 s: %q", got)
	}
	if d := Plan(s, Targets{}, l, t0); !d.Wake.Equal(t0.Add(120 * time.Second)) {
		t.Errorf("wakes at %s", d.Wake)
	}
	s.Refusals = s.Refusals.Succeeded(OpAssign, "s", t0.Add(121*time.Second))
	if got := plan(t0.Add(122 * time.Second)); got != "+49@0" {
		t.Errorf("after one could be had: %q", got)
	}

	var denied Refusals
	tries := 0
	for at := t0; at.Before(t0.Add(time.Hour)); at = at.Add(time.Second) {
		if _, held := denied.Get(OpCreate, "s", at); !held {
			tries++
			denied = denied.Refused(OpCreate, "s", CauseDenied, 5, "no", 0, at)
		}
	}
	if tries > 12 {
		t.Errorf("%d tries an hour of a denied call", tries)
	}
	var throttled Refusals
	for range 20 {
		throttled = throttled.Refused(OpAssign, "s", CauseThrottled, 5, "", 0.5, t0)
		x, _ := throttled.Get(OpAssign, "s", t0)
		if wait := x.Until.Sub(t0); wait < 500*time.Millisecond || wait > 90*time.Second {
			t.Errorf("after %d throttles: %s", x.Times, wait)
		}
	}
}

func TestHopeless(t *testing.T) {
	t.Parallel()
	medium := Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5}
	full := []ENI{eni(0, 5, 5, 0), eni(1, 5, 5, 0), eni(2, 5, 5, 0)}
	with := func(change func([]ENI)) State {
		e := slices.Clone(full)
		change(e)
		return state(1, e...)
	}
	denied := func(s State, op Op) State {
		s.Refusals = s.Refusals.Refused(op, "s", CauseDenied, 5, "UnauthorizedOperation", 0, t0)
		return s
	}
	for _, c := range []struct {
		name    string
		state   State
		targets Targets
		limits  Limits
		cause   Cause
		reason  string
	}{
		{"at the limit", with(func([]ENI) {}), Targets{}, medium, CauseLimit,
			"all 15 addresses that a t3.medium can give pods are in use: 3 ENIs x (6-1) addresses"},
		{"one cools", with(func(e []ENI) { e[1].Assigned, e[1].Cooling = 4, 1 }), Targets{}, medium, "", ""},
		{"one is free", with(func(e []ENI) { e[1].Assigned, e[1].Free = 4, 1 }), Targets{}, medium, "", ""},
		{"an ENI is being removed", with(func(e []ENI) { e[2] = ENI{ID: "x", Device: 2, Leaving: true} }), Targets{}, medium, "", ""},
		{"an ENI is being wired", with(func(e []ENI) { e[2].Usable = false }), Targets{}, medium, "", ""},
		{"an ENI is being created", State{ENIs: full[:2], Creating: []Creating{{Device: 2, IPs: 5}}, Waiting: 1, Zone: oneSubnet}, Targets{}, medium, "", ""},
		{"there is room", with(func(e []ENI) { e[1].Total, e[1].Assigned = 4, 4 }), Targets{}, medium, "", ""},
		{"there is a slot", state(1, full[:2]...), Targets{}, medium, "", ""},
		{"a slot, but denied", denied(state(1, full[:2]...), OpCreate), Targets{}, medium, CauseDenied, "ec2:CreateNetworkInterface"},
		{"a slot denied, but room", denied(state(1, eni(0, 4, 4, 0), eni(1, 5, 5, 0)), OpCreate), Targets{}, medium, "", ""},
		{"MAX_ENI", state(1, full[:2]...), Targets{}, Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5, MaxENI: 2}, CauseLimit,
			"all 10 addresses that MAX_ENI=2 allows are in use: 2 ENIs x (6-1) addresses (a t3.medium could have 3 ENIs)"},
		{"max-pods", state(1, full[:2]...), Targets{MaxPods: 10}, medium, CauseLimit, "max-pods=10"},
		{"others' ENIs", with(func(e []ENI) { e[2] = ENI{ID: "x", Device: 2, Unmanaged: true} }), Targets{}, medium, CauseLimit,
			"all 10 addresses that a t3.medium can give pods are in use: 2 ENIs x (6-1) addresses; 1 more ENIs of this node are not managed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v, hopeless := Hopeless(c.state, c.targets, c.limits, t0)
			if hopeless != (c.cause != "") || v.Cause != c.cause || !strings.Contains(v.Reason, c.reason) {
				t.Errorf("%v %+v, want %q %q", hopeless, v, c.cause, c.reason)
			}
		})
	}
	throttled := state(1, full[:2]...)
	throttled.Refusals = throttled.Refusals.Refused(OpCreate, "s", CauseThrottled, 5, "", 0, t0)
	if _, hopeless := Hopeless(throttled, Targets{}, medium, t0); hopeless {
		t.Error("throttling is a reason to wait, not to give up")
	}
}

// A node that is about to go away gives nothing back, and gets only what pods wait for.
func TestHold(t *testing.T) {
	t.Parallel()
	limits := Limits{InstanceType: "t3.small", ENIs: 3, IPsPerENI: 3}
	s := State{Zone: Zone{Subnets: []string{"subnet-1"}}, Hold: "the node is cordoned", ENIs: []ENI{
		{ID: "eni-0", Primary: true, Usable: true, Total: 3, Assigned: 3},
		{ID: "eni-1", Device: 1, Usable: true},
	}}
	for name, targets := range map[string]Targets{"E1": {WarmENI: 1}, "W2": {WarmIP: 2}, "M5": {MinimumIP: 5}, "X1": {Prefixes: true, WarmPrefix: 1}} {
		if d := Plan(s, targets, limits, time.Unix(1e6, 0)); len(d.Actions) != 0 {
			t.Errorf("%s: %+v", name, d.Actions)
		}
		waiting := s
		waiting.Waiting = 1
		if d := Plan(waiting, targets, limits, time.Unix(1e6, 0)); len(d.Actions) != 1 || d.Actions[0].ENI != "eni-1" {
			t.Errorf("%s, a pod waits: %+v", name, d.Actions)
		}
	}
}
