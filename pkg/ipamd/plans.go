package ipamd

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"time"

	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/maxpods"
	"vpccni/pkg/networkutils/names"
)

// makePlan asks the planner what to do and begins it.
func (c *controller) makePlan(now time.Time) {
	c.planAt = time.Time{}
	if c.set.NoProvisioning {
		c.plan = warmpool.Decision{Summary: "nothing is brought in or given back: " + errNoProvisioning.Error()}
		c.plannedAt = now
		return
	}
	if c.holdReason() != "" {
		c.keepLeaving()
	}
	c.plan = warmpool.Plan(c.planState(now), c.set.Targets, c.limits, now)
	c.plannedAt = now
	for _, a := range c.plan.Actions {
		c.log(slog.LevelInfo, "pool", "action", a.Kind, "eni", a.ENI, "device", a.Device, "n", a.N+a.Prefixes, "reason", a.Reason)
		switch a.Kind {
		case warmpool.AssignIPs, warmpool.AssignPrefixes:
			c.startAssign(a, now)
		case warmpool.CreateENI:
			c.startCreate(a, now)
		case warmpool.FindSubnets:
			c.startFind(a.Reason, now)
		case warmpool.UnassignIPs, warmpool.UnassignPrefixes:
			c.startUnassign(a, now)
		case warmpool.RemoveENI:
			if err := c.startRemove(c.enis[a.ENI], a.Reason, now); err != nil {
				c.log(slog.LevelError, "ENI cannot be removed", "eni", a.ENI, "error", err)
			}
		}
	}
	if len(c.plan.Actions) > 0 {
		c.applyIfDue(now)
	}
	if w := c.plan.Wake; !w.IsZero() {
		c.planBy(w.Sub(now), now)
	}
	// An address that comes out of cooldown changes the figures.
	if t := c.store.Snapshot(now).NextCooled; !t.IsZero() {
		c.planBy(t.Sub(now), now)
	}
}

// wouldPlan is what makePlan would do now. It changes nothing.
func (c *controller) wouldPlan(now time.Time) warmpool.Decision {
	if !c.synced() {
		return warmpool.Decision{Summary: "nothing is planned before EC2 has said what the node has"}
	}
	return warmpool.Plan(c.planState(now), c.set.Targets, c.limits, now)
}

// planState is the pool as the planner sees it.
func (c *controller) planState(now time.Time) warmpool.State {
	s := warmpool.State{Refusals: c.refusals, Hold: c.holdReason(),
		Zone:       warmpool.Zone{Subnets: c.offeredSubnets(), Discover: c.set.SubnetDiscovery, Known: c.zone.found, Asking: c.zone.finding != 0},
		LastGrowth: c.lastGrowth, LastShrink: c.lastShrink, LastRemoval: c.lastRemoval}
	ledger := map[string]datastore.ENIState{}
	for _, st := range c.store.Snapshot(now).ENIs {
		ledger[st.ID] = st
	}
	for _, e := range c.sorted() {
		st, held := ledger[e.ID]
		x := warmpool.ENI{ID: e.ID, Device: e.Device, Subnet: e.SubnetID, Primary: e.ID == c.id.PrimaryENI, Fixed: e.fixed,
			Unmanaged: !e.managed, Leaving: c.removing(e) || e.lost, Detached: e.lost,
			Stuck:  e.managed && !held || !e.notReadySince.IsZero() && now.Sub(e.notReadySince) >= stuckAfter || e.managed && !e.cidr.IsValid(),
			Usable: st.Phase == datastore.Usable || c.excludes(e) && st.Phase == datastore.Wired, Excluded: c.excludes(e), Busy: e.busy != nil, Since: st.Since,
			Total: st.Total, Assigned: st.Assigned, Free: st.Free, Cooling: st.Cooling,
			Quarantined: st.Quarantined, Returning: st.Leaving, Prefixes: prefixPart(st.Prefixes)}
		c.overlookSuspects(e, &x)
		if op := e.busy; op != nil && op.kind == opAssign && op.prefix {
			x.Prefixes.Asked = op.n
		} else if op != nil && op.kind == opAssign {
			x.Asked = op.n
		}
		s.ENIs = append(s.ENIs, x)
	}
	for _, op := range c.operations() {
		if op.kind == opCreate {
			s.Creating = append(s.Creating, warmpool.Creating{Device: op.device, IPs: op.spec.IPs, Prefixes: op.spec.Prefixes})
		}
	}
	for _, a := range c.queue {
		if _, holds := c.store.Lookup(a.key); !holds {
			s.Waiting++
		}
	}
	return s
}

// overlookSuspects has the plan count on what only IMDS calls in question: EC2 is about to be asked, and an ENI or an
// address less would be the wrong answer to a lie. Nothing is asked for on an ENI that may be gone.
func (c *controller) overlookSuspects(e *iface, x *warmpool.ENI) {
	if s := c.doubts[doubt{mac: e.MAC.String()}]; s != nil && s.explained.IsZero() {
		x.Busy = true
	}
	on := func(blocks map[netip.Prefix]string) bool {
		for _, id := range blocks {
			if id == e.ID {
				return true
			}
		}
		return false
	}
	if c.observeNo > 0 || !on(c.suspects) || on(c.denied) {
		return
	}
	x.Free, x.Quarantined = x.Free+x.Quarantined, 0
	x.Prefixes.Free, x.Prefixes.Quarantined = x.Prefixes.Free+x.Prefixes.Quarantined, 0
}

func prefixPart(st datastore.PrefixState) warmpool.Part {
	return warmpool.Part{Blocks: st.Blocks, Idle: st.Idle, Total: st.Total, Assigned: st.Assigned, Free: st.Free,
		Cooling: st.Cooling, Quarantined: st.Quarantined, Returning: st.Leaving}
}

// waitingFor says what an ADD waited for in vain.
func (c *controller) waitingFor(now time.Time) string {
	if !c.isReady {
		return "the node's primary ENI is not ready"
	}
	var parts []string
	switch {
	case !c.synced() && c.set.IMDSOnly:
		parts = append(parts, "IMDS does not say which ENIs this node has")
	case !c.synced():
		parts = append(parts, "EC2 does not say which ENIs this node has")
	}
	if c.set.NoProvisioning {
		parts = append(parts, errNoProvisioning.Error()+", and brought in no address")
	}
	for _, op := range c.operations() {
		switch op.kind {
		case opCreate, opAssign, opLink, opRemove, opSubnets:
			text := fmt.Sprintf("%s %s since %s", op.kind, op.stage, now.Sub(op.since).Round(time.Second))
			if op.err != "" {
				text += " (" + op.err + ")"
			}
			parts = append(parts, text)
		}
	}
	for _, x := range c.refusals.Active(now) {
		parts = append(parts, fmt.Sprintf("EC2 refused %s: %s", x.Op, x.Detail))
	}
	for _, e := range c.sorted() {
		if e.notReady != "" {
			parts = append(parts, e.ID+" is not ready: "+e.notReady)
		}
	}
	if n := c.store.Snapshot(now).Totals().Cooling; n > 0 {
		parts = append(parts, fmt.Sprintf("%d addresses cool", n))
	}
	if len(parts) == 0 {
		return "none became free"
	}
	return strings.Join(parts, "; ")
}

// view copies everything.
func (c *controller) view(now time.Time) View {
	d := c.store.Detail(now)
	v := View{Time: now, Ready: c.isReady, Verified: c.verified, Limits: c.limits, Targets: c.set.Targets, Capacity: c.capacity(),
		Unplaced: d.Unplaced, Waiting: len(c.queue), Plan: c.plan, PlanTime: c.plannedAt,
		Refusals: c.refusals.Active(now), Counters: c.counters}
	v.Plan.Actions = append([]warmpool.Action(nil), c.plan.Actions...)
	v.Counters.AddsRefused, v.Counters.Failures = maps.Clone(c.counters.AddsRefused), maps.Clone(c.counters.Failures)
	v.Counters.RepairsOf = maps.Clone(c.counters.RepairsOf)
	if len(c.queue) > 0 {
		v.OldestAdd = now.Sub(c.queue[0].since)
	}
	details := map[string]datastore.ENIDetail{}
	for _, x := range d.ENIs {
		details[x.ID] = x
		v.Totals = v.Totals.Add(x.Counts)
	}
	for _, e := range c.sorted() {
		x := details[e.ID]
		v.ENIs = append(v.ENIs, ENIView{ID: e.ID, MAC: e.MAC.String(), Device: e.Device, Card: e.Card, Table: routeTable(e),
			SubnetID: e.SubnetID, Attachment: e.AttachmentID, Primary: e.ID == c.id.PrimaryENI, Managed: e.managed,
			Trunk: e.Type == "trunk", EFA: e.Type == "efa", Phase: x.Phase, NotReady: e.notReady, Counts: x.Counts, Pool: x.Pool})
	}
	for _, op := range c.operations() {
		v.InFlight = append(v.InFlight, ActionView{Kind: op.kind, Stage: op.stage, ENI: op.eni, Device: op.device, N: op.n,
			Since: op.since, Tries: op.tries, Error: op.err, Reason: op.reason})
	}
	return v
}

// capacity is how many pods the node has addresses for at most.
func (c *controller) capacity() int {
	enis := c.limits.ENIs
	if c.limits.MaxENI > 0 {
		enis = min(enis, c.limits.MaxENI)
	}
	for _, e := range c.enis {
		if e.Card == c.card && !e.managed {
			enis-- // somebody else's, but its place is taken
		}
	}
	return maxpods.Node{ENIs: max(enis, 0), IPv4PerENI: c.limits.IPsPerENI + 1, Prefixes: c.set.Targets.Prefixes}.Pods()
}

func routeTable(e *iface) int { return names.RouteTable(e.Card, e.Device) }
