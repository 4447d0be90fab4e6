package warmpool

import (
	"strings"
	"testing"
	"time"
)

// prefixed makes an ENI that has been usable for long, with prefixes whose pods, one figure for each, are given, and with
// single addresses of which some have pods.
func prefixed(device, singles, held int, pods ...int) ENI {
	e := eni(device, singles, held, 0)
	for _, n := range pods {
		e.Prefixes.Blocks++
		e.Prefixes.Total += PrefixSize
		e.Prefixes.Assigned += n
		e.Prefixes.Free += PrefixSize - n
		if n == 0 {
			e.Prefixes.Idle++
		}
	}
	e.Total += e.Prefixes.Total
	e.Assigned += e.Prefixes.Assigned
	e.Free += e.Prefixes.Free
	return e
}

func TestPlanPrefixes(t *testing.T) {
	t.Parallel()
	medium := Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5}
	x := func(n int) Targets { return Targets{Prefixes: true, WarmPrefix: n, WarmENI: 1} }
	ip := func(w, m int) Targets { return Targets{Prefixes: true, WarmIP: w, MinimumIP: m, WarmPrefix: 1} }
	upTo := func(t Targets, maxPods int) Targets { t.MaxPods = maxPods; return t }
	none := func(s State) State { // the subnet has no /28
		s.Refusals = s.Refusals.Refused(OpPrefix, "s", CauseExhausted, 1, "", 0, t0)
		return s
	}
	long := func(s State) State { // it had none some time ago
		s.Refusals = s.Refusals.Refused(OpPrefix, "s", CauseExhausted, 1, "", 0, t0.Add(-time.Hour))
		return s
	}
	asked := func(e ENI, n int) ENI { e.Busy, e.Prefixes.Asked = true, n; return e }
	cooling := func(e ENI, n int) ENI {
		e.Free, e.Cooling, e.Prefixes.Free, e.Prefixes.Cooling = e.Free-n, e.Cooling+n, e.Prefixes.Free-n, e.Prefixes.Cooling+n
		e.Prefixes.Idle--
		return e
	}
	for _, c := range []struct {
		name    string
		targets Targets
		limits  Limits
		state   State
		want    string
	}{
		{"one call on each ENI with room, then new ones, exactly what is missing", x(1), medium, state(150, prefixed(0, 0, 0)),
			"+5p@0 new@1:5p new@2:1p"},
		{"never more than the slots", x(1), medium, state(500, prefixed(0, 2, 2)), "+3p@0 new@1:5p new@2:5p"},
		{"a minimum is rounded up", ip(0, 33), medium, state(0, prefixed(0, 0, 0)), "+3p@0"},
		{"what is asked for is not asked again", x(0), medium, state(16, asked(prefixed(0, 0, 0), 1)), ""},
		{"room of a busy ENI comes before a new one", x(1), medium, state(20, asked(prefixed(0, 0, 0), 1)), ""},
		{"nor what is being created", x(0), medium,
			State{ENIs: []ENI{prefixed(0, 5, 5)}, Waiting: 16, Zone: oneSubnet, Creating: []Creating{{Device: 1, Prefixes: 1}}}, ""},
		{"max-pods caps the step", upTo(x(3), 20), medium, state(0, prefixed(0, 0, 0)), "+2p@0"},
		{"cooling is not free", x(1), medium, state(0, cooling(prefixed(0, 0, 0, 0), 9)), "+1p@0"},
		{"but will be before long, and half of the target is there", x(1), medium, state(0, cooling(prefixed(0, 0, 0, 0), 8)), ""},
		{"MAX_ENI", x(1), Limits{ENIs: 3, IPsPerENI: 5, MaxENI: 1}, state(90, prefixed(0, 0, 0, 16, 16, 16, 16, 16)), ""},

		{"more free than wanted, but in prefixes with pods", x(0), medium, state(0, prefixed(0, 0, 0, 1, 1)), ""},
		{"a prefix of which an address cools stays", x(0), medium, state(0, cooling(prefixed(0, 0, 0, 1, 0), 1)), ""},
		{"free addresses beside pods count, and what is more than wanted goes", x(1), medium, state(0, prefixed(0, 0, 0, 1, 0, 0)), "-1p@0"},
		{"off the ENI with fewest pods", x(0), medium, state(0, prefixed(0, 0, 0, 9, 0), prefixed(1, 0, 0, 3, 0)), "-1p@1 -1p@0"},
		{"an ENI goes whole", x(1), medium, state(0, prefixed(0, 0, 0, 1, 0), prefixed(1, 0, 0, 0)), "del@1"},
		{"but not what is needed", x(1), medium, state(0, prefixed(0, 0, 0, 1), prefixed(1, 0, 0, 0)), ""},

		// The subnet has no /28.
		{"single addresses for the pods that wait, and one more", x(1), medium, none(state(12, prefixed(0, 0, 0))), "+5@0 new@1:5 new@2:3"},
		{"or as the IP targets say", ip(3, 0), medium, none(state(2, prefixed(0, 0, 0, 16))), "+4@0 new@1:1"},
		{"nothing where prefixes are free", x(1), medium, none(state(0, prefixed(0, 0, 0, 3))), ""},
		{"what stands in is kept", x(1), medium, none(state(0, prefixed(0, 4, 3))), ""},
		{"what is too much of it is not", x(1), medium, none(state(0, prefixed(0, 4, 1))), "-2@0"},
		{"after a while one prefix is asked for", x(3), medium, long(state(0, prefixed(0, 4, 3))), "+1p@0"},
		{"no address is given up for a prefix that may not come", x(1), medium,
			long(state(0, prefixed(0, 5, 4), prefixed(1, 5, 5), prefixed(2, 5, 5))), ""},

		// From secondary IPs to prefixes.
		{"unused addresses go when prefixes are there", x(1), medium, state(0, prefixed(0, 4, 2, 0)), "-2@0"},
		{"and before, if they are in the way", x(1), medium, state(0, prefixed(0, 5, 2)), "-1@0"},
		{"not if there is room", x(1), medium, state(0, prefixed(0, 4, 2)), "+1p@0"},
		{"an ENI of unused addresses goes whole", x(1), medium, state(0, prefixed(0, 1, 1, 0), prefixed(1, 5, 0)), "del@1"},
		// And back.
		{"unused prefixes go", Targets{WarmIP: 1}, medium, state(0, prefixed(0, 1, 0, 3, 0, 0)), "-2p@0"},
		{"and make room", Targets{WarmENI: 1}, medium, state(0, prefixed(0, 0, 0, 3, 0, 0, 0, 0)), "-4p@0 new@1:5"},
		{"prefixes with pods are no reason to hold fewer addresses", Targets{WarmIP: 2}, medium, state(0, prefixed(0, 0, 0, 3)), "+2@0"},
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

// TestNoPrefixIsRememberedPerSubnet: two tries, then single addresses, and prefixes again within a minute.
func TestNoPrefixIsRememberedPerSubnet(t *testing.T) {
	t.Parallel()
	l := Limits{InstanceType: "m5.xlarge", ENIs: 4, IPsPerENI: 14}
	s := state(50, prefixed(0, 0, 0))
	targets := Targets{Prefixes: true, WarmPrefix: 1}
	for _, want := range []string{"+5p@0", "+1p@0", "+14@0 new@1:14 new@2:14 new@3:9"} {
		d := Plan(s, targets, l, t0)
		if brief(d) != want {
			t.Fatalf("%q, want %q", brief(d), want)
		}
		if d.Actions[0].Kind == AssignPrefixes {
			s.Refusals = s.Refusals.Refused(OpPrefix, "s", CauseExhausted, d.Actions[0].N, "InsufficientCidrBlocks", 0.99, t0)
		}
	}
	idle := state(0, prefixed(0, 4, 3))
	idle.Refusals = s.Refusals
	d := Plan(idle, targets, l, t0)
	if wait := d.Wake.Sub(t0); wait < 30*time.Second || wait > 55*time.Second {
		t.Errorf("prefixes are tried again after %s", wait)
	}
	if got := brief(Plan(idle, targets, l, d.Wake)); got != "+1p@0" {
		t.Errorf("then %q", got)
	}
}

func TestHopelessPrefixes(t *testing.T) {
	t.Parallel()
	medium := Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5}
	full := func(device int) ENI { return prefixed(device, 0, 0, 16, 16, 16, 16, 16) }
	x := Targets{Prefixes: true, WarmPrefix: 1}
	none := func(s State, ops ...Op) State {
		for _, op := range ops {
			s.Refusals = s.Refusals.Refused(op, "s", CauseExhausted, 1, "", 0, t0)
		}
		return s
	}
	for _, c := range []struct {
		name    string
		state   State
		targets Targets
		limits  Limits
		reason  string // empty: not hopeless
	}{
		{"at the limit", state(1, full(0), full(1), full(2)), x, medium,
			"all 240 addresses that a t3.medium can give pods are in use: 3 ENIs x 5 prefixes of 16"},
		{"MAX_ENI", state(1, full(0)), x, Limits{InstanceType: "t3.medium", ENIs: 3, IPsPerENI: 5, MaxENI: 1},
			"all 80 addresses that MAX_ENI=1 allows are in use: 1 ENIs x 5 prefixes of 16 (a t3.medium could have 3 ENIs)"},
		{"both kinds", state(1, full(0), full(1), prefixed(2, 3, 3, 16, 16)), x, medium,
			"all 195 addresses that a t3.medium can give pods are in use: 3 ENIs x 5 slots, with 12 prefixes of 16 and 3 single addresses"},
		{"prefixes of another mode", state(1, full(0), eni(1, 5, 5, 0), eni(2, 5, 5, 0)), Targets{WarmENI: 1}, medium,
			"3 ENIs x 5 slots, with 5 prefixes of 16 and 10 single addresses"},
		{"max-pods", state(1, prefixed(0, 0, 0, 16)), Targets{Prefixes: true, WarmPrefix: 1, MaxPods: 10}, medium, "max-pods=10"},
		{"no prefix, but addresses", none(state(1, prefixed(0, 0, 0)), OpPrefix), x, medium, ""},
		{"nor addresses", none(state(1, prefixed(0, 0, 0)), OpPrefix, OpAssign, OpCreate), x, medium, "subnet s has no free address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v, hopeless := Hopeless(c.state, c.targets, c.limits, t0)
			if hopeless != (c.reason != "") || !strings.Contains(v.Reason, c.reason) {
				t.Errorf("%v %+v, want %q", hopeless, v, c.reason)
			}
		})
	}
}
