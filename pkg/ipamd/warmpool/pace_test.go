package warmpool

import (
	"testing"
	"time"
)

func TestGrowthIsPaced(t *testing.T) {
	t.Parallel()
	limits := Limits{InstanceType: "m5.24xlarge", ENIs: 15, IPsPerENI: 49}
	grew := func(s State, ago time.Duration) State { s.LastGrowth = t0.Add(-ago); return s }
	for _, c := range []struct {
		name  string
		state State
		want  string
		wake  time.Duration
	}{
		{"the first pod's place is filled at once", grew(state(0, eni(0, 20, 16, 0)), time.Hour), "+1@0", 0},
		{"the next ones' together", grew(state(0, eni(0, 20, 16, 0)), time.Second), "", growPace - time.Second},
		{"after a pace", grew(state(0, eni(0, 20, 17, 0)), growPace), "+2@0", 0},
		{"at once if less than half is left, and for the pods to come", grew(state(0, eni(0, 20, 18, 0)), time.Second), "+13@0", 0},
		{"at once for pods that wait", grew(state(2, eni(0, 20, 20, 0)), time.Second), "+7@0", 0},
	} {
		d := Plan(c.state, Targets{WarmIP: 5}, limits, t0)
		var wake time.Duration
		if !d.Wake.IsZero() {
			wake = d.Wake.Sub(t0)
		}
		if got := brief(d); got != c.want || wake != c.wake {
			t.Errorf("%s: plan %q with the next one after %s, want %q after %s", c.name, got, wake, c.want, c.wake)
		}
	}
}

func TestCoolingCountsWhileHalfIsFree(t *testing.T) {
	t.Parallel()
	limits := Limits{InstanceType: "m5.xlarge", ENIs: 4, IPsPerENI: 14}
	for _, c := range []struct {
		name    string
		targets Targets
		state   State
		want    string
	}{
		{"one pod took another one's place", Targets{WarmIP: 5}, state(0, eni(0, 12, 7, 1)), ""},
		{"half is left", Targets{WarmIP: 5}, state(0, eni(0, 12, 7, 2)), ""},
		{"less than half is left", Targets{WarmIP: 5}, state(0, eni(0, 12, 7, 3)), "+2@0 new@1:1"},
		{"pods wait", Targets{WarmIP: 1}, state(1, eni(0, 12, 11, 1)), "+2@0"},
		{"what is free goes back instead of what cools", Targets{WarmIP: 5}, state(0, eni(0, 12, 5, 2)), "-2@0"},
		{"but half of the target stays", Targets{WarmIP: 5}, state(0, eni(0, 12, 3, 5)), "-1@0"},
		{"nothing cooling goes back", Targets{WarmIP: 5}, state(0, eni(0, 12, 4, 8)), "+2@0 new@1:3"},
		{"full ENIs", Targets{WarmENI: 1}, state(0, eni(0, 14, 11, 0), eni(1, 14, 1, 3)), ""},
		{"full ENIs, less than half left", Targets{WarmENI: 1}, state(0, eni(0, 14, 14, 0), eni(1, 14, 0, 8)), "new@2:14"},
	} {
		if d := Plan(c.state, c.targets, limits, t0); brief(d) != c.want {
			t.Errorf("%s: plan %q, want %q (%s)", c.name, brief(d), c.want, d.Summary)
		}
	}
}

func TestAPrefixThatMayBeNeededSoonIsKept(t *testing.T) {
	t.Parallel()
	limits := Limits{InstanceType: "m5.xlarge", ENIs: 4, IPsPerENI: 14}
	for _, c := range []struct {
		name string
		free int // beside a free prefix that could go
		want string
		wake time.Duration
	}{
		// The next pod would bring it back.
		{"no margin", 0, "", thinFactor*DefaultShrinkDelay - time.Minute},
		{"half a prefix", 8, "-1p@0", 0},
	} {
		s := state(0, prefixed(0, 0, 0, 16-c.free, 0, 0))
		s.LastGrowth = t0.Add(-time.Minute)
		d := Plan(s, Targets{Prefixes: true, WarmPrefix: 1}, limits, t0)
		var wake time.Duration
		if !d.Wake.IsZero() {
			wake = d.Wake.Sub(t0)
		}
		if got := brief(d); got != c.want || wake != c.wake {
			t.Errorf("%s: plan %q with the next one after %s, want %q after %s", c.name, got, wake, c.want, c.wake)
		}
		s.LastGrowth = t0.Add(-time.Hour)
		if got := brief(Plan(s, Targets{Prefixes: true, WarmPrefix: 1}, limits, t0)); got != "-1p@0" {
			t.Errorf("%s, long after: plan %q", c.name, got)
		}
	}
}
