package warmpool

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// pool simulates a node and EC2 around the planner: actions take time and may be refused, pods come and go.
type pool struct {
	r       *rand.Rand
	now     time.Time
	targets Targets
	limits  Limits
	subnet  int // addresses the subnet has left
	state   State
	cools   map[string][]time.Time
	flight  []job
	actions int
	log     []job // by start, for people
}

type job struct {
	Action
	done time.Time
}

const cooldown = 30 * time.Second

func newPool(r *rand.Rand, t Targets, l Limits) *pool {
	return &pool{r: r, now: t0, targets: t, limits: l, subnet: 1 << 20, cools: map[string][]time.Time{},
		state: State{Zone: oneSubnet, ENIs: []ENI{{ID: "eni-0", Subnet: "s", Primary: true, Usable: true, Since: t0}}}}
}

func (p *pool) eni(id string) *ENI {
	for i := range p.state.ENIs {
		if p.state.ENIs[i].ID == id {
			return &p.state.ENIs[i]
		}
	}
	return nil
}

// settle ends what is due: cooldowns, calls, waiting pods.
func (p *pool) settle() {
	for i := range p.state.ENIs {
		e := &p.state.ENIs[i]
		for len(p.cools[e.ID]) > 0 && !p.cools[e.ID][0].After(p.now) {
			p.cools[e.ID] = p.cools[e.ID][1:]
			e.Cooling--
			e.Free++
		}
	}
	var rest []job
	for _, j := range p.flight {
		if j.done.After(p.now) {
			rest = append(rest, j)
			continue
		}
		p.finish(j)
	}
	p.flight = rest
	for p.state.Waiting > 0 && p.assign() {
		p.state.Waiting--
	}
}

func (p *pool) assign() bool {
	var best *ENI
	for i := range p.state.ENIs {
		if e := &p.state.ENIs[i]; e.Usable && e.Free > 0 && (best == nil || e.Assigned > best.Assigned) {
			best = e
		}
	}
	if best == nil {
		return false
	}
	best.Free--
	best.Assigned++
	return true
}

func (p *pool) finish(j job) {
	e := p.eni(j.ENI)
	refuse := func(op Op) bool {
		need := j.N
		if j.Kind == CreateENI {
			need++
		}
		cause := Cause("")
		switch {
		case p.subnet < need:
			cause = CauseExhausted
		case p.r.IntN(20) == 0:
			cause = CauseThrottled
		}
		if cause == "" {
			p.subnet -= need
			p.state.Refusals = p.state.Refusals.Succeeded(op, "s", p.now)
			return false
		}
		p.state.Refusals = p.state.Refusals.Refused(op, "s", cause, j.N, "", p.r.Float64(), p.now)
		return true
	}
	switch j.Kind {
	case AssignIPs:
		e.Busy, e.Asked = false, 0
		if !refuse(OpAssign) {
			e.Total += j.N
			e.Free += j.N
			p.state.LastGrowth = p.now
		}
	case CreateENI:
		p.state.Creating = slices.DeleteFunc(p.state.Creating, func(c Creating) bool { return c.Device == j.Device })
		if !refuse(OpCreate) {
			p.state.ENIs = append(p.state.ENIs, ENI{ID: fmt.Sprintf("eni-%d-%s", j.Device, p.now), Device: j.Device, Subnet: "s",
				Usable: true, Since: p.now, Total: j.N, Free: j.N})
			p.state.LastGrowth = p.now
		}
	case UnassignIPs:
		e.Busy = false
		e.Returning -= j.N
		e.Total -= j.N
		p.subnet += j.N
		p.state.LastShrink = p.now
	case RemoveENI:
		p.subnet += e.Total + 1
		p.state.ENIs = slices.DeleteFunc(p.state.ENIs, func(x ENI) bool { return x.ID == j.ENI })
		p.state.LastRemoval = p.now
	}
}

// plan asks the planner and begins what it wants. It returns the error of a plan that breaks a rule.
func (p *pool) plan() (Decision, error) {
	d := Plan(p.state, p.targets, p.limits, p.now)
	for _, a := range d.Actions {
		p.actions++
		p.log = append(p.log, job{a, p.now})
		e := p.eni(a.ENI)
		if a.N <= 0 && a.Kind != RemoveENI {
			return d, fmt.Errorf("%s for nothing", a.brief())
		}
		took := 300 * time.Millisecond
		switch a.Kind {
		case AssignIPs:
			if e == nil || e.Busy || !e.Usable {
				return d, fmt.Errorf("%s on an ENI that is busy or not usable", a.brief())
			}
			e.Busy, e.Asked = true, a.N
		case CreateENI:
			took = time.Duration(2+p.r.IntN(8)) * time.Second
			p.state.Creating = append(p.state.Creating, Creating{Device: a.Device, IPs: a.N})
		case UnassignIPs:
			if e.Busy || e.Free < a.N {
				return d, fmt.Errorf("%s of %+v", a.brief(), *e)
			}
			e.Busy = true
			e.Returning += a.N
			e.Free -= a.N
		case RemoveENI:
			took = 4 * time.Second
			if e.Assigned > 0 || e.Cooling > 0 || e.Primary || e.Busy {
				return d, fmt.Errorf("%s of %+v", a.brief(), *e)
			}
			e.Leaving, e.Usable = true, false
		}
		p.flight = append(p.flight, job{a, p.now.Add(took)})
	}
	return d, p.bounds()
}

// bounds checks the limits, with everything in flight counted.
func (p *pool) bounds() error {
	total := 0
	devices := map[int]bool{}
	for _, e := range p.state.ENIs {
		if e.Total+e.Asked > p.limits.IPsPerENI {
			return fmt.Errorf("%s: %d addresses", e.ID, e.Total+e.Asked)
		}
		if e.Total != e.Assigned+e.Free+e.Cooling+e.Returning {
			return fmt.Errorf("%s does not add up: %+v", e.ID, e)
		}
		if devices[e.Device] {
			return fmt.Errorf("device %d twice", e.Device)
		}
		devices[e.Device] = true
		if e.serves() {
			total += e.hold()
		}
	}
	for _, c := range p.state.Creating {
		if devices[c.Device] {
			return fmt.Errorf("device %d twice", c.Device)
		}
		devices[c.Device] = true
		total += c.IPs
	}
	if len(p.state.ENIs)+len(p.state.Creating) > p.limits.enis() {
		return fmt.Errorf("%d ENIs and %d in the making", len(p.state.ENIs), len(p.state.Creating))
	}
	if p.targets.MaxPods > 0 && total > p.targets.MaxPods {
		return fmt.Errorf("%d addresses for %d pods", total, p.targets.MaxPods)
	}
	return nil
}

// next moves time to what happens next; false if nothing will.
func (p *pool) next(wake time.Time) bool {
	var at time.Time
	earlier := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	earlier(wake)
	for _, j := range p.flight {
		earlier(j.done)
	}
	for _, e := range p.state.ENIs {
		if c := p.cools[e.ID]; len(c) > 0 {
			earlier(c[0])
		}
	}
	if at.IsZero() {
		return false
	}
	p.now = at
	return true
}

func (p *pool) depart() {
	var with []*ENI
	for i := range p.state.ENIs {
		if e := &p.state.ENIs[i]; e.Assigned > 0 {
			with = append(with, e)
		}
	}
	if len(with) == 0 {
		return
	}
	e := with[p.r.IntN(len(with))]
	e.Assigned--
	e.Cooling++
	p.cools[e.ID] = append(p.cools[e.ID], p.now.Add(cooldown))
}

func (p *pool) counts() (total, assigned, free int) {
	for _, e := range p.state.ENIs {
		total += e.Total
		assigned += e.Assigned
		free += e.Free
	}
	return total, assigned, free
}

// TestProperties runs random loads against the planner: bounds always hold, it converges, is then silent, has then
// what was wanted (or the limit is reached), and while it converges it never takes back what it has just given.
func TestProperties(t *testing.T) { manySequences(t, property) }

var (
	sequences = flag.Int("sequences", 1500, "how many random sequences of each kind")
	firstSeed = flag.Uint64("seed", 0, "seed of the first sequence; 0: any")
)

// manySequences runs a property over random sequences, each with a seed of its own.
func manySequences(t *testing.T, property func(*rand.Rand) error) {
	t.Helper()
	t.Parallel()
	base := *firstSeed
	if base == 0 {
		base = rand.Uint64()
	}
	const parts = 4
	done := make([]int, parts)
	t.Cleanup(func() { t.Logf("%d sequences, the first with -seed %d", done[0]+done[1]+done[2]+done[3], base) })
	for part := range parts {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			for i := part; i < *sequences; i += parts {
				seed := base + uint64(i)
				if err := property(rand.New(rand.NewPCG(seed, 11))); err != nil {
					t.Fatalf("-seed %d: %v", seed, err)
				}
				done[part]++
			}
		})
	}
}

func property(r *rand.Rand) error {
	limits := Limits{InstanceType: "x", ENIs: 1 + r.IntN(6), IPsPerENI: 1 + r.IntN(14)}
	if r.IntN(4) == 0 {
		limits.MaxENI = 1 + r.IntN(6)
	}
	var targets Targets
	if r.IntN(2) == 0 {
		targets.WarmENI = r.IntN(4)
	} else {
		targets.WarmIP, targets.MinimumIP = r.IntN(8), r.IntN(20)
	}
	if r.IntN(3) == 0 {
		targets.MaxPods = 1 + r.IntN(limits.ENIs*limits.IPsPerENI+5)
	}
	p := newPool(r, targets, limits)
	if r.IntN(4) == 0 {
		p.subnet = r.IntN(limits.ENIs*(limits.IPsPerENI+1) + 1)
	}
	fail := func(format string, args ...any) error {
		var log []string
		for _, j := range p.log {
			log = append(log, fmt.Sprintf("%s %s", j.done.Sub(t0), j.brief()))
		}
		return fmt.Errorf("%s\n%+v %+v\n%+v\n%v", fmt.Sprintf(format, args...), targets, limits, p.state.ENIs, log)
	}
	var d Decision
	var err error
	for range 5 + r.IntN(30) {
		switch r.IntN(4) {
		case 0:
			for range 1 + r.IntN(6) {
				p.state.Waiting++
			}
		case 1:
			for range 1 + r.IntN(6) {
				p.depart()
			}
		}
		p.settle()
		if d, err = p.plan(); err != nil {
			return fail("%v", err)
		}
		if r.IntN(2) == 0 {
			p.now = p.now.Add(time.Duration(r.IntN(20000)) * time.Millisecond)
		} else {
			p.next(d.Wake)
		}
	}
	return p.converge(d, fail)
}

// converge lets the load stand still until the planner is silent.
func (p *pool) converge(d Decision, fail func(string, ...any) error) error {
	var err error
	exhausted := p.subnet < 1<<19
	start, before := p.now, p.actions
	shrank := false
	for p.actions-before < 200 {
		p.settle()
		if v, hopeless := Hopeless(p.state, p.targets, p.limits, p.now); hopeless && p.state.Waiting > 0 {
			if p.state.Waiting, err = 0, nil; v.Reason == "" {
				return fail("refused without a reason")
			}
		}
		if d, err = p.plan(); err != nil {
			return fail("%v", err)
		}
		for _, a := range d.Actions {
			grows := a.Kind == AssignIPs || a.Kind == CreateENI
			if grows && shrank && !exhausted {
				return fail("grows again after it shrank under a load that stands still")
			}
			shrank = shrank || !grows
		}
		if p.now.Sub(start) > time.Hour || !p.next(d.Wake) {
			break
		}
	}
	if p.actions-before >= 200 {
		return fail("does not come to rest")
	}
	if exhausted {
		return nil // it asks every two minutes whether the subnet has addresses again
	}
	if p.state.Waiting > 0 || len(p.flight) > 0 {
		return fail("%d wait, %d in flight at rest", p.state.Waiting, len(p.flight))
	}
	total, assigned, free := p.counts()
	capacity := p.limits.enis() * p.limits.IPsPerENI
	if p.targets.MaxPods > 0 {
		capacity = min(capacity, p.targets.MaxPods)
	}
	want := p.targets.WarmENI * p.limits.IPsPerENI
	if p.targets.byAddress() {
		want = max(p.targets.WarmIP, p.targets.MinimumIP-assigned)
		if over := min(free-p.targets.WarmIP, total-p.targets.MinimumIP); over > 0 {
			return fail("%d addresses too many at rest", over)
		}
	}
	if free < want && total < capacity {
		return fail("%d free of %d wanted, %d of %d held", free, want, total, capacity)
	}
	return nil
}
