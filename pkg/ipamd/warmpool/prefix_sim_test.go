package warmpool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// node simulates a node and EC2 around the planner as pool does, but with blocks: single addresses and prefixes. The
// mode may change while pods run, and the subnet may have no free /28 for a while.
type node struct {
	r       *rand.Rand
	now     time.Time
	targets Targets
	limits  Limits
	waiting int
	enis    []*simENI
	making  []job
	flight  []job
	// noPrefix is until when no subnet has a free /28. subnets is how many free addresses each has, sizes how many in
	// all; offered are those that discovery finds, in its order. Without sizes there is one subnet that never ends.
	noPrefix time.Time
	subnets  map[string]int
	sizes    map[string]int
	offered  []string
	calls    int
	made     int
	log      []job
	state    State // the memory that plans need
}

type simENI struct {
	ENI
	blocks []*simBlock
	busy   *job
}

type simBlock struct {
	size, assigned int
	cooling        []time.Time
	leaving        bool
}

func (b *simBlock) free() int {
	if b.leaving {
		return 0
	}
	return b.size - b.assigned - len(b.cooling)
}

func newNode(r *rand.Rand, t Targets, l Limits) *node {
	return &node{r: r, now: t0, targets: t, limits: l,
		enis: []*simENI{{ENI: ENI{ID: "eni-0", Subnet: "s", Primary: true, Usable: true, Since: t0}}}}
}

// view counts the blocks for the planner.
func (n *node) view() State {
	s := n.state
	if s.Waiting = n.waiting; n.sizes == nil {
		s.Zone = oneSubnet
	}
	for _, e := range n.enis {
		x := e.ENI
		x.Busy = e.busy != nil
		for _, b := range e.blocks {
			p := Part{Blocks: 1, Total: b.size, Assigned: b.assigned, Free: b.free(), Cooling: len(b.cooling)}
			if b.leaving {
				p.Returning = b.size
			} else if b.free() == b.size {
				p.Idle = 1
			}
			x.Total, x.Assigned, x.Free, x.Cooling = x.Total+p.Total, x.Assigned+p.Assigned, x.Free+p.Free, x.Cooling+p.Cooling
			x.Returning += p.Returning
			if b.size > 1 {
				q := &x.Prefixes
				q.Blocks, q.Idle, q.Total, q.Assigned = q.Blocks+1, q.Idle+p.Idle, q.Total+p.Total, q.Assigned+p.Assigned
				q.Free, q.Cooling, q.Returning = q.Free+p.Free, q.Cooling+p.Cooling, q.Returning+p.Returning
			}
		}
		if e.busy != nil && e.busy.Kind == AssignIPs {
			x.Asked = e.busy.N
		}
		if e.busy != nil && e.busy.Kind == AssignPrefixes {
			x.Prefixes.Asked = e.busy.N
		}
		s.ENIs = append(s.ENIs, x)
	}
	for _, j := range n.making {
		s.Creating = append(s.Creating, Creating{Device: j.Device, IPs: j.N, Prefixes: j.Prefixes})
	}
	return s
}

func (n *node) eni(id string) *simENI {
	for _, e := range n.enis {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// assign gives a pod an address as the ledger does: of the kind that the mode wants, of the fullest block.
func (n *node) assign() bool {
	var best *simBlock
	better := func(b *simBlock) bool {
		if own, was := b.size > 1 == n.targets.Prefixes, best.size > 1 == n.targets.Prefixes; own != was {
			return own
		}
		return b.assigned > best.assigned
	}
	for _, e := range n.enis {
		for _, b := range e.blocks {
			if e.Usable && b.free() > 0 && (best == nil || better(b)) {
				best = b
			}
		}
	}
	if best != nil {
		best.assigned++
	}
	return best != nil
}

func (n *node) depart() {
	var with []*simBlock
	for _, e := range n.enis {
		for _, b := range e.blocks {
			if b.assigned > 0 {
				with = append(with, b)
			}
		}
	}
	if len(with) > 0 {
		b := with[n.r.IntN(len(with))]
		b.assigned--
		b.cooling = append(b.cooling, n.now.Add(cooldown))
	}
}

func (n *node) settle() {
	for _, e := range n.enis {
		for _, b := range e.blocks {
			b.cooling = slices.DeleteFunc(b.cooling, func(t time.Time) bool { return !t.After(n.now) })
		}
	}
	var rest []job
	for _, j := range n.flight {
		if j.done.After(n.now) {
			rest = append(rest, j)
		} else {
			n.finish(j)
		}
	}
	n.flight = rest
	for n.waiting > 0 && n.assign() {
		n.waiting--
	}
}

// refuse is EC2's answer to a call for count blocks that take some addresses of a subnet.
func (n *node) refuse(op Op, subnet string, prefixes, count, addresses int, dense bool) bool {
	r := &n.state.Refusals
	switch {
	case prefixes > 0 && n.now.Before(n.noPrefix):
		*r = r.Refused(OpPrefix, subnet, CauseExhausted, count, "", n.r.Float64(), n.now)
	case n.sizes != nil && n.subnets[subnet] < addresses:
		if prefixes > 0 {
			op = OpPrefix // EC2 does not say which of the two it lacks
		}
		*r = r.Refused(op, subnet, CauseExhausted, count, "", n.r.Float64(), n.now)
	case dense && n.r.IntN(3) == 0:
		*r = r.Refused(OpDense, subnet, CauseExhausted, count, "", n.r.Float64(), n.now)
	case n.r.IntN(20) == 0:
		*r = r.Refused(op, subnet, CauseThrottled, count, "", n.r.Float64(), n.now)
	default:
		*r = r.Succeeded(op, subnet, n.now)
		if prefixes > 0 {
			*r = r.Succeeded(OpPrefix, subnet, n.now)
		}
		n.state.LastGrowth = n.now
		if n.sizes != nil {
			n.subnets[subnet] -= addresses
		}
		return false
	}
	return true
}

// giveBack returns the addresses of a subnet.
func (n *node) giveBack(subnet string, blocks []*simBlock, more int) {
	for _, b := range blocks {
		more += b.size
	}
	if n.sizes != nil {
		n.subnets[subnet] += more
	}
}

func fill(e *simENI, singles, prefixes int) {
	for range singles {
		e.blocks = append(e.blocks, &simBlock{size: 1})
	}
	for range prefixes {
		e.blocks = append(e.blocks, &simBlock{size: PrefixSize})
	}
}

func (n *node) finish(j job) {
	e := n.eni(j.ENI)
	if e != nil {
		e.busy = nil
	}
	switch j.Kind {
	case AssignIPs:
		if !n.refuse(OpAssign, e.Subnet, 0, j.N, j.N, j.Dense) {
			fill(e, j.N, 0)
		}
	case AssignPrefixes:
		if !n.refuse(OpAssign, e.Subnet, j.N, j.N, j.N*PrefixSize, false) {
			fill(e, 0, j.N)
		}
	case CreateENI:
		n.making = slices.DeleteFunc(n.making, func(x job) bool { return x.Device == j.Device })
		if !n.refuse(OpCreate, j.Subnet, j.Prefixes, j.N+j.Prefixes, 1+j.N+j.Prefixes*PrefixSize, false) {
			n.made++
			e := &simENI{ENI: ENI{ID: fmt.Sprintf("eni-%d.%d", j.Device, n.made), Device: j.Device, Subnet: j.Subnet, Usable: true, Since: n.now}}
			fill(e, j.N, j.Prefixes)
			n.enis = append(n.enis, e)
		}
	case UnassignIPs, UnassignPrefixes:
		for _, b := range e.blocks {
			if b.leaving {
				n.giveBack(e.Subnet, []*simBlock{b}, 0)
			}
		}
		e.blocks = slices.DeleteFunc(e.blocks, func(b *simBlock) bool { return b.leaving })
		n.state.LastShrink = n.now
	case RemoveENI:
		n.giveBack(e.Subnet, e.blocks, 1)
		n.enis = slices.DeleteFunc(n.enis, func(x *simENI) bool { return x == e })
		n.state.LastRemoval = n.now
	case FindSubnets:
		n.state.Zone.Asking = false
		if n.r.IntN(4) == 0 {
			n.state.Refusals = n.state.Refusals.Refused(OpFind, "", CauseFailed, 0, "", n.r.Float64(), n.now)
			break
		}
		n.state.Refusals = n.state.Refusals.Succeeded(OpFind, "", n.now)
		n.state.Zone.Known, n.state.Zone.Subnets = n.now, n.offered
	}
}

// plan asks the planner and begins what it wants. It returns the error of a plan that breaks a rule.
func (n *node) plan() (Decision, error) {
	d := Plan(n.view(), n.targets, n.limits, n.now)
	for _, a := range d.Actions {
		n.calls++
		n.log = append(n.log, job{a, n.now})
		e := n.eni(a.ENI)
		if a.Kind == FindSubnets {
			if n.state.Zone.Asking || n.sizes == nil {
				return d, errors.New("the subnets are asked for twice, or without discovery")
			}
			n.state.Zone.Asking = true
			n.flight = append(n.flight, job{a, n.now.Add(300 * time.Millisecond)})
			continue
		}
		if a.Kind == CreateENI && !slices.Contains(n.view().Zone.Subnets, a.Subnet) {
			return d, fmt.Errorf("%s in %q", a.brief(), a.Subnet)
		}
		if a.N+a.Prefixes <= 0 && a.Kind != RemoveENI || a.Kind != CreateENI && (e == nil || e.busy != nil || !e.Usable) {
			return d, fmt.Errorf("%s: nothing, or not possible", a.brief())
		}
		took := 300 * time.Millisecond
		switch a.Kind {
		case CreateENI:
			took = time.Duration(2+n.r.IntN(8)) * time.Second
			n.making = append(n.making, job{Action: a})
		case UnassignIPs, UnassignPrefixes:
			left := a.N
			for _, b := range e.blocks {
				if left > 0 && b.size > 1 == (a.Kind == UnassignPrefixes) && !b.leaving && b.free() == b.size {
					b.leaving = true
					left--
				}
			}
			if left > 0 {
				return d, fmt.Errorf("%s: %d blocks are not idle", a.brief(), left)
			}
		case RemoveENI:
			took = 4 * time.Second
			for _, b := range e.blocks {
				if b.free() != b.size || e.Primary {
					return d, fmt.Errorf("%s: in use", a.brief())
				}
			}
			e.Leaving, e.Usable = true, false
		}
		j := job{a, n.now.Add(took)}
		if e != nil {
			e.busy = &j
		}
		n.flight = append(n.flight, j)
	}
	return d, n.bounds()
}

// bounds checks the slots, the devices and max-pods, with everything in flight counted.
func (n *node) bounds() error {
	if err := n.conserved(); err != nil {
		return err
	}
	total, devices := 0, map[int]bool{}
	s := n.view()
	for i, e := range s.ENIs {
		if slots := len(n.enis[i].blocks) + e.Asked + e.Prefixes.Asked; slots > n.limits.IPsPerENI {
			return fmt.Errorf("%s: %d slots", e.ID, slots)
		}
		if devices[e.Device] {
			return fmt.Errorf("device %d twice", e.Device)
		}
		devices[e.Device] = true
		if e.serves() {
			total += e.hold()
		}
	}
	for _, c := range s.Creating {
		if devices[c.Device] || c.IPs+c.Prefixes > n.limits.IPsPerENI || c.IPs > 0 && c.Prefixes > 0 {
			return fmt.Errorf("%+v", c)
		}
		devices[c.Device] = true
		total += c.IPs + c.Prefixes*PrefixSize
	}
	if len(devices) > n.limits.enis() {
		return fmt.Errorf("%d ENIs", len(devices))
	}
	if n.targets.MaxPods > 0 && n.targets.Prefixes && total >= n.targets.MaxPods+PrefixSize {
		return fmt.Errorf("%d addresses for %d pods", total, n.targets.MaxPods)
	}
	return nil
}

// next moves time to what happens next; false if nothing will.
func (n *node) next(wake time.Time) bool {
	times := []time.Time{wake}
	for _, j := range n.flight {
		times = append(times, j.done)
	}
	for _, e := range n.enis {
		for _, b := range e.blocks {
			times = append(times, b.cooling...)
		}
	}
	var at time.Time
	for _, t := range times {
		if t.After(n.now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if at.IsZero() {
		return false
	}
	n.now = at
	return true
}

func (n *node) counts() (t Part) {
	for _, e := range n.enis {
		for _, b := range e.blocks {
			t.Blocks++
			t.Total += b.size
			t.Assigned += b.assigned
			t.Free += b.free()
			if b.free() == b.size && b.size > 1 != n.targets.Prefixes {
				t.Idle++ // of the kind that is not wanted
			}
		}
	}
	return t
}

// TestPrefixProperties runs random loads in prefix mode, with subnets that have no /28 for a while and with changes of
// the mode under running pods.
func TestPrefixProperties(t *testing.T) { manySequences(t, prefixProperty) }

func prefixProperty(r *rand.Rand) error {
	limits := Limits{InstanceType: "x", ENIs: 1 + r.IntN(5), IPsPerENI: 1 + r.IntN(10)}
	if r.IntN(4) == 0 {
		limits.MaxENI = 1 + r.IntN(5)
	}
	targets := Targets{Prefixes: true, WarmENI: 1, WarmPrefix: r.IntN(3)}
	if r.IntN(2) == 0 {
		targets.WarmIP, targets.MinimumIP = r.IntN(20), r.IntN(60)
	}
	switches := r.IntN(3) == 0
	if !switches && r.IntN(3) == 0 {
		targets.MaxPods = 1 + r.IntN(200)
	}
	n := newNode(r, targets, limits)
	if switches {
		n.targets.Prefixes = r.IntN(2) == 0
	}
	for range 5 + r.IntN(40) {
		switch r.IntN(5) {
		case 0, 1:
			n.waiting += 1 + r.IntN(30)
		case 2:
			for range 1 + r.IntN(30) {
				n.depart()
			}
		case 3:
			if r.IntN(3) == 0 {
				n.noPrefix = n.now.Add(time.Duration(r.IntN(300)) * time.Second)
			}
			if switches && r.IntN(3) == 0 && len(n.flight) == 0 { // a new configuration is a new process
				n.targets.Prefixes = !n.targets.Prefixes
				n.state.Refusals = Refusals{}
			}
		}
		n.settle()
		d, err := n.plan()
		if err != nil {
			return n.fail("%v", err)
		}
		if r.IntN(2) == 0 {
			n.now = n.now.Add(time.Duration(r.IntN(20000)) * time.Millisecond)
		} else {
			n.next(d.Wake)
		}
	}
	return n.converge()
}

func (n *node) fail(format string, args ...any) error {
	var log []string
	for _, j := range n.log {
		log = append(log, fmt.Sprintf("%s %s", j.done.Sub(t0), j.brief()))
	}
	return fmt.Errorf("%s\n%+v %+v\n%+v\n%v", fmt.Sprintf(format, args...), n.targets, n.limits, n.view().ENIs, log)
}

// converge lets the load stand still until the planner is silent, and then checks what the node has. Blocks of the kind
// wanted do not come after one of them went.
func (n *node) converge() error {
	start, before := n.now, n.calls
	shrank := false
	healthy := func() bool { return !n.now.Before(n.noPrefix.Add(2 * time.Minute)) }
	for n.calls-before < 300 {
		n.settle()
		if v, hopeless := Hopeless(n.view(), n.targets, n.limits, n.now); hopeless && n.waiting > 0 {
			if n.waiting = 0; v.Reason == "" {
				return n.fail("refused without a reason")
			}
		}
		d, err := n.plan()
		if err != nil {
			return n.fail("%v", err)
		}
		for _, a := range d.Actions {
			grows := a.Kind == assignKind(n.targets.Prefixes) || a.Kind == CreateENI
			if grows && shrank && healthy() {
				return n.fail("grows again after it shrank under a load that stands still")
			}
			shrank = shrank || a.Kind == unassignKind(n.targets.Prefixes) && healthy()
		}
		if n.now.Sub(start) > 2*time.Hour || !n.next(d.Wake) {
			break
		}
	}
	if n.calls-before >= 300 || n.waiting > 0 || len(n.flight) > 0 {
		return n.fail("%d calls, %d wait, %d in flight at rest", n.calls-before, n.waiting, len(n.flight))
	}
	size := blockSize(n.targets.Prefixes)
	c := n.counts()
	f := sum(n.view()).without(n.view(), !n.targets.Prefixes)
	short, _ := shortage(f, n.targets, n.limits)
	if short > 0 && c.Blocks < n.limits.enis()*n.limits.IPsPerENI {
		return n.fail("%d addresses short at rest", short)
	}
	if short == 0 && c.Idle > 0 {
		return n.fail("%d unused blocks of the other kind at rest", c.Idle)
	}
	if over, _ := excess(f, n.targets, n.limits, false); n.targets.Prefixes && over >= size {
		for _, e := range n.view().ENIs {
			if e.Prefixes.Idle > 0 {
				return n.fail("%d addresses too many at rest", over)
			}
		}
	}
	return nil
}
