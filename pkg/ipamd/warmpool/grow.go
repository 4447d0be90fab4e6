package warmpool

import (
	"fmt"
	"slices"
	"time"
)

// growth is what is to be brought in, in blocks of one kind.
type growth struct {
	prefixes bool
	short    int  // missing
	left     int  // what max-pods leaves room for
	fill     bool // as much as fits, not only what is missing
	// instead asks for single addresses in the place of prefixes, and only where the subnet has no prefix.
	instead bool
	// waiting says that pods wait; needed, that a prefix would be used at once, and not only be held ready.
	waiting, needed bool
	why             string
}

// take is how many of a number of free slots to fill.
func (g growth) take(room int) int {
	n := min(room, g.short)
	if g.fill {
		n = room
	}
	return min(n, g.left)
}

// grow covers a shortage of addresses. Where full ENIs are counted, each step brings in as much as fits; it costs the
// same call.
func (d *Decision) grow(s State, f, all figures, t Targets, l Limits, short int, why string, now time.Time) {
	size := blockSize(t.Prefixes)
	missing, _ := missingSingles(all, t)
	d.bring(s, f, l, growth{prefixes: t.Prefixes, short: blocks(short, size), left: blocks(headroom(f, t), size),
		fill: !t.byAddress() && !t.Prefixes, waiting: s.Waiting > 0, needed: missing > 0, why: why}, now)
}

// missingSingles is how many single addresses have to stand in for prefixes.
func missingSingles(all figures, t Targets) (short, free int) {
	free = all.usable - all.waiting
	if t.byAddress() {
		return max(t.WarmIP-free, t.MinimumIP-all.total), free
	}
	return t.WarmPrefix - free, free
}

// fallBack asks for single addresses where a subnet has addresses but no free /28. It asks for what the pods need
// and the IP targets say; a free prefix that WARM_PREFIX_TARGET wants is worth a slot here: more single addresses
// would take the slots that prefixes need when the subnet has them again.
func (d *Decision) fallBack(s State, f figures, t Targets, l Limits, now time.Time) {
	short, free := missingSingles(f, t)
	left := headroom(f, t)
	if short = min(short, left); short <= 0 {
		return
	}
	d.bring(s, f, l, growth{short: short, left: left, instead: true, waiting: s.Waiting > 0,
		why: fmt.Sprintf("%d free after %d waiting pods, and the subnet has no free /28", free, f.waiting)}, now)
}

// bring covers a shortage: first from the ENIs that have room, then with new ones.
func (d *Decision) bring(s State, f figures, l Limits, g growth, now time.Time) {
	probed := map[string]bool{} // subnets that are short of addresses are asked once at a time
	for _, e := range growthOrder(s.ENIs, l, !g.prefixes) {
		if g.short <= 0 || g.left <= 0 {
			return
		}
		if g.instead && !s.Refusals.noPrefix(e.Subnet, now) {
			continue
		}
		room := e.room(l)
		if !e.Usable || e.Busy {
			// Its room can be used as soon as it is ready, and sooner than that of a new ENI.
			g.short -= room + e.part(!g.prefixes).Returning/blockSize(!g.prefixes)
			continue
		}
		wanted := g.take(room)
		n := g.allowed(s.Refusals, OpAssign, e.Subnet, wanted, now)
		if room > 0 && (n <= 0 || probed[e.Subnet]) {
			d.wakeAt(g.until(s.Refusals, OpAssign, e.Subnet, now), now)
			if s.Refusals.passing(OpAssign, e.Subnet, now) {
				g.short -= room
			}
			continue
		}
		if room > 0 {
			probed[e.Subnet] = n < wanted || g.prefixes && s.Refusals.doubtful(e.Subnet)
			d.Actions = append(d.Actions, Action{Kind: assignKind(g.prefixes), ENI: e.ID, Device: e.Device, N: n,
				Dense: g.dense(s.Refusals, e.Subnet, now), Reason: g.why})
			g.short, g.left = g.short-n, g.left-n
		}
		if !g.instead {
			g.short -= d.makeRoom(s, e, g, room > 0, now)
		}
	}
	for _, c := range s.Creating {
		g.short -= max(l.IPsPerENI-c.IPs-c.Prefixes, 0)
	}
	if !g.prefixes {
		probed = map[string]bool{} // for new ENIs it is asked apart
	}
	d.create(s, f, l, g, probed, now)
}

// makeRoom gives back what is unused of the other kind and takes the slots of what is wanted. It returns how many slots
// that will free; on an ENI that has a call to make already, the next plan does it. Single addresses are not given up
// for prefixes that the subnet may not have.
func (d *Decision) makeRoom(s State, e ENI, g growth, busy bool, now time.Time) int {
	n := min(e.part(!g.prefixes).Idle, max(g.short, 0))
	if n == 0 || g.prefixes && s.Refusals.doubtful(e.Subnet) {
		return 0
	}
	if blocked := s.Refusals.gate(OpUnassign, e.ID, true); blocked.After(now) {
		d.wakeAt(blocked, now)
		return 0
	}
	if !busy {
		d.Actions = append(d.Actions, Action{Kind: unassignKind(!g.prefixes), ENI: e.ID, Device: e.Device, N: n,
			Reason: "its slots are needed: " + g.why})
	}
	return n
}

// create covers what is left of a shortage with new ENIs.
func (d *Decision) create(s State, f figures, l Limits, g growth, probed map[string]bool, now time.Time) {
	devices := devicesTaken(s)
	for slots := f.slots; g.short > 0 && g.left > 0 && slots < l.enis(); slots++ {
		wanted := g.take(l.IPsPerENI)
		subnet, n := d.choose(s, g, wanted, probed, now)
		if subnet == "" {
			return
		}
		probed[subnet] = n < wanted || g.prefixes && s.Refusals.doubtful(subnet)
		device := 1
		for devices[device] {
			device++
		}
		devices[device] = true
		a := Action{Kind: CreateENI, Device: device, Subnet: subnet, N: n, Reason: g.why}
		if g.prefixes {
			a.N, a.Prefixes = 0, n
		}
		d.Actions = append(d.Actions, a)
		g.short, g.left = g.short-n, g.left-n
	}
}

// allowed is how many of n blocks may be asked for now.
func (g growth) allowed(r Refusals, op Op, subnet string, n int, now time.Time) int {
	if g.prefixes {
		n = r.allowed(OpPrefix, subnet, n, g.urgent(r, OpPrefix, subnet, now), now)
	}
	return r.allowed(op, subnet, n, g.urgent(r, op, subnet, now), now)
}

// until is when what is not allowed now may be asked for.
func (g growth) until(r Refusals, op Op, subnet string, now time.Time) time.Time {
	at := r.gate(op, subnet, g.urgent(r, op, subnet, now))
	if g.prefixes {
		return latest(at, r.gate(OpPrefix, subnet, g.urgent(r, OpPrefix, subnet, now)))
	}
	return at
}

// urgent tells whether to ask a subnet again as soon as that makes sense. Addresses that nobody waits for are not worth
// a call every two minutes for ever. A prefix is worth one when single addresses would have to stand in for it,
// unless the subnet has none of these either.
func (g growth) urgent(r Refusals, op Op, subnet string, now time.Time) bool {
	return g.waiting || op == OpPrefix && g.needed && !r.empty(OpAssign, subnet, now) && !r.empty(OpCreate, subnet, now)
}

// dense tells whether to ask for addresses by name.
func (g growth) dense(r Refusals, subnet string, now time.Time) bool {
	_, refused := r.Get(OpDense, subnet, now)
	return g.instead && !refused
}

func assignKind(prefixes bool) Kind {
	if prefixes {
		return AssignPrefixes
	}
	return AssignIPs
}

func unassignKind(prefixes bool) Kind {
	if prefixes {
		return UnassignPrefixes
	}
	return UnassignIPs
}

// blocks is how many blocks hold n addresses.
func blocks(n, size int) int { return n/size + boolInt(n%size > 0) }

// headroom is how many addresses max-pods leaves room for.
func headroom(f figures, t Targets) int {
	if t.MaxPods <= 0 {
		return int(^uint(0) >> 1)
	}
	return t.MaxPods - f.held
}

// growthOrder lists the ENIs with room, or with blocks of the other kind that could make room, the lowest device index
// first: the primary ENI can never be given back, so it is filled first.
func growthOrder(enis []ENI, l Limits, other bool) []ENI {
	var out []ENI
	for _, e := range enis {
		if p := e.part(other); e.serves() && !e.Excluded && (e.room(l) > 0 || p.Idle > 0 || p.Returning > 0) {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b ENI) int { return a.Device - b.Device })
	return out
}

func devicesTaken(s State) map[int]bool {
	taken := map[int]bool{}
	for _, e := range s.ENIs {
		if !e.Detached {
			taken[e.Device] = true
		}
	}
	for _, c := range s.Creating {
		taken[c.Device] = true
	}
	return taken
}
