package ipamd

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
)

// Times that the controller works by. The shell's deadlines are in daemon.go.
const (
	// foldWindow gathers what belongs together, such as the ADDs of a burst, into one plan.
	foldWindow = 20 * time.Millisecond
	// settleTime is how long EC2's answers may lag behind a change of this node's: until then a difference in what
	// EC2 says proves nothing.
	settleTime = 30 * time.Second
	// stuckAfter is how long an ENI may take to become ready on the host before the plan stops counting on it.
	stuckAfter = 30 * time.Second
)

// controller decides. It is a function from events to effects with a memory: no goroutine, no clock, no I/O. It is not
// safe for concurrent use.
type controller struct {
	set      Settings
	id       awsutils.Identity
	limits   warmpool.Limits
	card     int
	groups   []string
	subnets  map[string]netip.Prefix
	restored checkpoint.State
	rand     *rand.Rand
	store    *datastore.Store
	enis     map[string]*iface
	ops      map[uint64]*operation
	lastOp   uint64
	refusals warmpool.Refusals
	// deniedUntil is when a call that was denied may be made again, for whichever ENI.
	deniedUntil map[method]time.Time
	counters    Counters
	isReady     bool
	node        NodeState
	zone        zone
	leaving     string // why the instance is about to end; empty if it is not
	stopping    bool
	effects     []effect
	timerAt     time.Time
	wired       bool      // the host's network is ready for the primary ENI
	journalAt   time.Time // when to give up waiting for EC2 and serve from the journal; zero: not at all

	requests
	commits
	records records
	network
	truth
	metadata
	planning
	notices
}

// planning is when the next plan is due, and what the last one said.
type planning struct {
	planAt      time.Time // zero: nothing changed
	plan        warmpool.Decision
	plannedAt   time.Time
	lastGrowth  time.Time
	lastShrink  time.Time
	lastRemoval time.Time
}

// iface is an ENI attached to the node, or on its way in or out.
type iface struct {
	awsutils.ENI
	cidr    netip.Prefix // of its subnet
	managed bool
	fixed   bool // serves, but is never removed
	link    bool // the interface is there
	lost    bool // EC2 has it no more, but pods hold its addresses
	held    bool // it is in the ledger
	ready   bool // the host's network is ready for it
	// notReady is why the host's network is not ready for it, and since when.
	notReady      string
	notReadySince time.Time
	busy          *operation // the address call or removal under way
	touched       time.Time  // when a change of it last began or ended
}

func newController(o Options, r *rand.Rand) *controller {
	c := &controller{
		set: o.Settings, id: o.Identity, groups: o.Groups, subnets: maps.Clone(o.Subnets), restored: o.Restored, rand: r,
		card: o.Limits.DefaultCard,
		limits: warmpool.Limits{InstanceType: o.Identity.InstanceType, ENIs: o.Limits.ENIs,
			IPsPerENI: o.Limits.IPv4PerENI - 1, MaxENI: o.Settings.MaxENI},
		store:       datastore.New(o.Settings.Cooldown, 0),
		enis:        map[string]*iface{},
		ops:         map[uint64]*operation{},
		deniedUntil: map[method]time.Time{},
		truth:       truth{gone: map[string]time.Time{}},
		metadata: metadata{walks: o.Metadata != nil, doubts: map[doubt]*sighting{}, suspects: map[netip.Prefix]string{},
			denied: map[netip.Prefix]string{}, clashes: map[netip.Prefix]bool{}, lag: map[doubt]time.Time{}},
	}
	c.set.NoProvisioning = c.set.NoProvisioning || c.set.IMDSOnly
	if c.set.Targets.Prefixes {
		c.store.PreferPrefixes()
	}
	if c.set.AddWait <= 0 {
		c.set.AddWait = DefaultAddWait
	}
	if c.set.Queue <= 0 {
		c.set.Queue = DefaultQueue
	}
	c.counters.AddsRefused, c.counters.Failures = map[Code]uint64{}, map[Failure]uint64{}
	c.counters.RepairsOf = map[hostnet.Kind]uint64{}
	c.notices = notices{episodes: map[string]*episode{}}
	c.requests = requests{adds: map[uint64]*add{}, sandboxes: map[datastore.Key]*sandbox{}, releasing: map[datastore.Key]int{}}
	c.network = network{vpc: slices.Clone(o.VPCCIDRs), announced: announcedBefore(o.Restored.Journal, o.Identity.InstanceID)}
	return c
}

// step takes one event and returns what is to be done about it, in order.
func (c *controller) step(ev event, now time.Time) []effect {
	c.effects = nil
	switch ev := ev.(type) {
	case evStart:
		c.start(now)
	case evStop:
		c.stop()
	case evAdd:
		c.addRequested(ev, now)
	case evAddEnded:
		c.addEnded(ev, now)
	case evUndelivered:
		c.undelivered(ev, now)
	case evDel:
		c.delRequested(ev, now)
	case evCommitted:
		c.committed(ev.err, now)
	case evCalled:
		c.called(ev, now)
	case evApplied:
		c.applied(ev, now)
	case evVPC:
		c.vpcChanged(ev.cidrs)
	case evNode:
		c.nodeChanged(ev.NodeState, now)
	case evLeaving:
		c.leavingChanged(ev.why, now)
	case evHost:
		c.hostChanged(now)
	case evAnnounced:
		c.wasAnnounced(ev)
	case evRepaired:
		c.repaired(ev.Changes, ev.By)
	case evTimer:
		c.timerAt = time.Time{}
	}
	c.settle(now)
	return c.effects
}

// settle does everything that has become possible or due.
func (c *controller) settle(now time.Time) {
	if !c.journalAt.IsZero() && !now.Before(c.journalAt) {
		c.adoptJournal(now)
	}
	if !c.isReady && c.wired && !now.Before(c.graceAt) {
		c.isReady = true
		c.emit(effReady{})
	}
	c.serve(now)
	if !c.stopping {
		c.recheck(now)
		c.hurry(now)
		c.walkIfDue(now)
		c.retryDue(now)
		c.applyIfDue(now)
		c.observeIfDue(now)
		if !c.planAt.IsZero() && !now.Before(c.planAt) && c.synced() {
			c.makePlan(now)
		}
		c.refuseHopeless(now)
	}
	c.expireAdds(now)
	c.settleNotices(now)
	c.commitIfDue(now)
	c.arm(now)
}

// arm asks for the timer at the earliest time at which something falls due.
func (c *controller) arm(now time.Time) {
	var at time.Time
	earliest := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	earliest(c.journalAt)
	if c.wired && !c.isReady {
		earliest(c.graceAt)
	}
	if len(c.queue) > 0 {
		earliest(c.queue[0].deadline)
		earliest(c.store.Snapshot(now).NextCooled)
	}
	earliest(c.commitAt)
	earliest(c.noticeAt())
	if !c.stopping {
		for _, op := range c.ops {
			earliest(op.retryAt)
		}
		if !c.applying {
			earliest(c.repairAt)
			if c.dirty {
				earliest(c.applyAt)
			}
		}
		if c.observing == 0 {
			earliest(c.resyncAt)
		}
		earliest(c.recheckAt)
		if c.walks && c.walking == 0 {
			earliest(c.walkAt)
		}
		if c.synced() {
			earliest(c.planAt)
			if c.scanning == 0 {
				earliest(c.scanAt)
			}
		}
	}
	// What is due now was done by settle. Should something be left, it must not turn the process into a busy loop.
	if floor := now.Add(time.Millisecond); !at.IsZero() && at.Before(floor) {
		at = floor
	}
	if !at.Equal(c.timerAt) {
		c.timerAt = at
		c.emit(effTimer{at})
	}
}

// planBy asks for a plan within a span of time.
func (c *controller) planBy(within time.Duration, now time.Time) {
	if t := now.Add(within); c.planAt.IsZero() || t.Before(c.planAt) {
		c.planAt = t
	}
}

// nodeChanged takes over what Kubernetes says of the node.
func (c *controller) nodeChanged(n NodeState, now time.Time) {
	if n == c.node {
		return
	}
	c.node = n
	c.set.Targets.MaxPods = n.MaxPods
	c.log(slog.LevelInfo, "node", "max_pods", n.MaxPods, "cordoned", n.Cordoned)
	c.planBy(0, now)
}

// leavingChanged hears that the instance is about to end, or not any more: an Auto Scaling group can take it back.
func (c *controller) leavingChanged(why string, now time.Time) {
	if why == c.leaving {
		return
	}
	c.leaving = why
	if why != "" {
		c.notify(false, NoticeLeaving, "The instance is about to end ("+why+"): its ENIs and addresses stay as they are")
	}
	c.log(slog.LevelInfo, "instance", "leaving", why)
	c.planBy(0, now)
}

// holdReason says why the pool must not shrink, nor grow but for pods that wait; empty if it may.
func (c *controller) holdReason() string {
	switch {
	case c.leaving != "":
		return "the instance is about to end: " + c.leaving
	case c.node.Cordoned && !c.set.ManageWhenCordoned:
		return "the node is cordoned"
	}
	return ""
}

// notify shows people a change.
func (c *controller) notify(warning bool, reason, message string) {
	c.emit(effNotice{Notice{warning, reason, message}})
}

func (c *controller) stop() {
	c.stopping = true
	for _, a := range slices.Clone(c.queue) {
		c.refuse(a, &Refusal{CodeShutdown, "ipamd is ending"})
	}
	c.queue = nil
}

func (c *controller) emit(e effect) { c.effects = append(c.effects, e) }

func (c *controller) log(level slog.Level, msg string, args ...any) {
	var site [1]uintptr
	runtime.Callers(2, site[:])
	c.emit(effLog{level, msg, args, site[0]})
}

// sorted lists the ENIs by card, device and id.
func (c *controller) sorted() []*iface {
	out := make([]*iface, 0, len(c.enis))
	for _, e := range c.enis {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *iface) int {
		return cmp.Or(cmp.Compare(a.Card, b.Card), cmp.Compare(a.Device, b.Device), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// token makes a client token, by which EC2 knows a repetition of a call.
func (c *controller) token() string {
	return fmt.Sprintf("vpc-cni-%016x%016x", c.rand.Uint64(), c.rand.Uint64())
}

// backoff is how long to wait after the n-th failure in a row, with full jitter above a floor.
func (c *controller) backoff(n int, first, longest time.Duration) time.Duration {
	d := min(first<<min(max(n-1, 0), 16), longest)
	return d/2 + time.Duration(c.rand.Float64()*float64(d))
}
