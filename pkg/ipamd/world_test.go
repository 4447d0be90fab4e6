package ipamd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

// world is a node in one thread: a controller, the cloud, a host, a disk and a kubelet that starts and stops pods. What
// the controller wants done is done in random order and at random times, may fail or lose its answer, and the
// controller may die between any two of them. Whatever happens is checked at once.
type world struct {
	r        *rand.Rand
	now      time.Time
	opts     Options
	cloud    *cloud
	host     *host
	disk     checkpoint.State
	ctrl     *controller
	pending  []pending
	timer    time.Time
	pods     map[int]*simPod
	adds     map[uint64]int
	dels     map[uint64]int
	lastID   uint64
	lastPod  int
	deaths   int
	effects  int // carried out since the start
	dieAt    int // effect before which the controller dies; 0: never
	faulty   bool
	problems []string
	trace    []string
	// carryOut, if set, carries out effects in the world's place.
	carryOut func(effect)
	// answered, if set, hears how an ADD or a DEL was answered.
	answered func(error)
	// With an IMDS that lies (world_lies_test.go).
	liar                          *liar
	thefts                        []theft
	booted                        time.Time
	gotAt                         map[netip.Prefix]time.Time // when the node got a block
	had                           map[netip.Prefix]string    // what it had then, and where
	thefted, steps, served, walks int
}

type pending struct {
	at time.Time
	e  effect
}

// simPod is a pod as the kubelet knows it.
type simPod struct {
	n      int
	state  string // adding, running, deleting
	addr   netip.Addr
	robbed bool // somebody took its address off the node
}

func newWorld(seed uint64, targets warmpool.Targets) *world {
	w := &world{r: rand.New(rand.NewPCG(seed, 3)), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), cloud: newCloud(3, 6),
		pods: map[int]*simPod{}, gotAt: map[netip.Prefix]time.Time{}, had: map[netip.Prefix]string{}}
	w.cloud.reuse = w.r.IntN(2) == 0
	w.cloud.attachDelay, w.cloud.detachDelay = 4*time.Second, 3*time.Second
	w.host = &host{cloud: w.cloud}
	w.host.fails = func() error {
		if w.faulty && w.r.IntN(25) == 0 {
			return errors.New("netlink: no buffer space available")
		}
		return nil
	}
	w.opts = testOptions(w.cloud, targets)
	w.cloud.faults = func(string, int) fault {
		if !w.faulty {
			return fault{}
		}
		switch w.r.IntN(40) {
		case 0:
			return fault{err: awsError("RequestLimitExceeded")}
		case 1:
			return fault{err: context.DeadlineExceeded}
		case 2:
			return fault{lost: true}
		}
		return fault{}
	}
	return w
}

func (w *world) problem(format string, args ...any) {
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// boot starts a controller from what is on disk.
func (w *world) boot() {
	o := w.opts
	o.Restored, w.booted = w.disk, w.now
	if w.liar != nil {
		o.Metadata = w.liar
	}
	for i := range w.thefts {
		w.thefts[i].told = time.Time{}
	}
	w.ctrl = newController(o, rand.New(rand.NewPCG(w.r.Uint64(), 1)))
	w.pending, w.timer = nil, time.Time{}
	w.adds, w.dels = map[uint64]int{}, map[uint64]int{}
	w.step(evStart{})
}

// die ends the controller. Calls under way reach EC2, or not.
func (w *world) die() {
	w.deaths++
	w.trace = append(w.trace, "DIES")
	for _, p := range w.pending {
		if call, ok := p.e.(effCall); ok && w.r.IntN(2) == 0 {
			w.call(call.call)
		}
		if _, ok := p.e.(effCommit); ok && w.r.IntN(2) == 0 {
			w.disk = w.ctrl.durable(w.now)
		}
	}
	w.boot()
	// What a kubelet does with a sandbox whose ADD failed: DEL, then a new sandbox.
	for _, n := range w.podIDs() {
		switch w.pods[n].state {
		case "adding":
			w.del(n)
			w.add()
		case "deleting":
			w.del(n)
		}
	}
}

func (w *world) podIDs() []int {
	var ids []int
	for n := range w.pods {
		ids = append(ids, n)
	}
	slices.Sort(ids)
	return ids
}

func (w *world) add() {
	w.lastPod++
	n := w.lastPod
	w.pods[n] = &simPod{n: n, state: "adding"}
	w.lastID++
	w.adds[w.lastID] = n
	w.step(evAdd{id: w.lastID, req: pod(n)})
}

func (w *world) del(n int) {
	w.pods[n].state = "deleting"
	w.lastID++
	w.dels[w.lastID] = n
	w.step(evDel{id: w.lastID, req: DelRequest{Sandbox: pod(n).Sandbox}})
}

// step takes an event to the controller and keeps what it wants done.
func (w *world) step(ev event) {
	w.trace = append(w.trace, fmt.Sprintf("%s %T", w.now.Format("05.000"), ev))
	w.steps++
	for _, e := range w.ctrl.step(ev, w.now) {
		took := time.Duration(w.r.IntN(400)) * time.Millisecond
		switch e := e.(type) {
		case effTimer:
			w.timer = e.at
		case effAdd:
			w.added(e)
		case effDel:
			w.deleted(e)
		case effReady:
		case effNotice:
			w.trace = append(w.trace, "  notice "+e.Reason)
		case effLog:
			w.trace = append(w.trace, fmt.Sprintf("  %s %v", e.msg, e.args))
			if e.level >= slog.LevelError && !w.expected(e.msg) {
				w.problem("%s %v", e.msg, e.args)
			}
		case effCommit:
			w.pending = append(w.pending, pending{w.now.Add(took / 100), e})
		case effCall:
			if e.method == callWaitLink {
				if there, at := w.cloud.hasLink(e.mac, w.now); !there && !at.IsZero() {
					took += at.Sub(w.now)
				}
			}
			w.pending = append(w.pending, pending{w.now.Add(took), e})
		default:
			w.pending = append(w.pending, pending{w.now.Add(took), e})
		}
	}
}

// expected tells whether an error in the log is what was done to the controller.
func (w *world) expected(msg string) bool {
	switch msg {
	case "state not durable", "host network not set up":
		return true
	case "a pod holds an address that is not on the ENI any more", "ENI is gone, and pods hold its addresses",
		"address cannot be used", "ENI cannot be used", "interface does not appear":
		return w.thefted > 0
	}
	return false
}

func (w *world) added(e effAdd) {
	n := w.adds[e.id]
	delete(w.adds, e.id)
	if w.answered != nil {
		w.answered(e.err)
	}
	p := w.pods[n]
	ended := evAddEnded{id: e.id, key: pod(n).key(), delivered: e.err == nil}
	if e.err == nil && (p == nil || p.state != "adding") {
		w.problem("pod %d, which nobody waits for, gets %s", n, e.reply.Address)
	}
	if e.err == nil && w.r.IntN(12) == 0 {
		ended.delivered = false // the caller is gone
	}
	if p != nil && p.state == "adding" {
		if ended.delivered {
			p.state, p.addr = "running", e.reply.Address
			w.served++
			w.checkPod(p, e.reply)
		} else {
			p.state = "failed"
		}
	}
	// The report is a later event.
	w.pending = append(w.pending, pending{w.now, effEnded{ended}})
}

// effEnded is the report of an ADD's caller, as something to do.
type effEnded struct{ evAddEnded }

func (effEnded) isEffect() {}

func (w *world) deleted(e effDel) {
	n := w.dels[e.id]
	delete(w.dels, e.id)
	if w.answered != nil {
		w.answered(e.err)
	}
	if e.err != nil && !errors.Is(e.err, datastore.ErrUnknownPod) {
		return // the kubelet will try again
	}
	if p := w.pods[n]; p != nil && p.state == "deleting" {
		delete(w.pods, n)
	}
}

// checkPod: a pod's address is nobody else's, on this node in EC2, and wired.
func (w *world) checkPod(p *simPod, reply AddReply) {
	w.forgive()
	if e, t := w.eniOf(p.addr), w.stolen(p.addr); t != nil && (e == nil || e.Device != reply.Device) {
		p.robbed = true
		// A reply may be on its way to the disk.
		if !t.told.IsZero() && w.now.Sub(t.told) > 100*time.Millisecond {
			w.problem("pod %d gets %s, which IMDS said %s ago is gone", p.n, p.addr, w.now.Sub(t.told))
		}
		return
	}
	for _, n := range w.podIDs() {
		if o := w.pods[n]; o != p && o.state == "running" && o.addr == p.addr && !o.robbed {
			w.problem("%s is held by pods %d and %d", p.addr, o.n, p.n)
		}
	}
	wired := false
	for _, e := range w.host.cfg.ENIs {
		wired = wired || e.Device == reply.Device && slices.ContainsFunc(e.Pool, func(b netip.Prefix) bool { return b.Contains(p.addr) })
	}
	if !wired {
		w.problem("%s of pod %d is not wired", p.addr, p.n)
	}
	if w.eniOf(p.addr) == nil {
		w.problem("%s of pod %d is on no ENI of the node", p.addr, p.n)
	}
}

func (w *world) eniOf(ip netip.Addr) *awsutils.ENI {
	for _, e := range w.cloud.enis {
		if e.InstanceID == testInstance && e.Status != "detaching" && onENI(e, ip) {
			return e
		}
	}
	return nil
}

func onENI(e *awsutils.ENI, ip netip.Addr) bool {
	return slices.Contains(e.Secondary, ip) || anyContains(e.Prefixes, ip)
}

func anyContains(prefixes []netip.Prefix, ip netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// call makes a call at the cloud; before that it looks whether it takes something from a running pod.
func (w *world) call(c call) (r result) {
	for _, e := range w.host.cfg.ENIs {
		if c.method == callDetach && w.cloud.enis[e.ID] != nil && w.cloud.enis[e.ID].AttachmentID == c.attachment {
			w.problem("%s is detached while the host uses it", e.ID)
		}
	}
	for _, n := range w.podIDs() {
		p := w.pods[n]
		if p.state != "running" || p.robbed {
			continue
		}
		e := w.eniOf(p.addr)
		if c.method != callAssignAddresses && slices.Contains(c.addrs, p.addr) || anyContains(c.prefixes, p.addr) || e != nil &&
			(c.method == callDetach && e.AttachmentID == c.attachment || c.method == callDelete && e.ID == c.eni) {
			w.problem("%s takes %s from pod %d", c.method, p.addr, n)
		}
	}
	now := w.now
	switch c.method {
	case callDescribe:
		r.enis, r.err = w.cloud.describe(string(c.method), now, func(e *awsutils.ENI) bool { return e.InstanceID == testInstance })
	case callDescribeByID:
		r.enis, r.err = w.cloud.describe(string(c.method), now, func(e *awsutils.ENI) bool { return e.ID == c.eni })
	case callDescribeByTag:
		r.enis, r.err = w.cloud.describe(string(c.method), now, func(e *awsutils.ENI) bool { return e.Tags[tagInstance] == testInstance })
	case callCreate:
		var e awsutils.ENI
		if e, r.err = w.cloud.create(c.spec, now); r.err == nil {
			r.enis = []awsutils.ENI{e}
		}
	case callAttach:
		r.attachment, r.err = w.cloud.attach(c.eni, testInstance, c.device, now)
	case callProtect:
		r.err = w.cloud.protect(c.eni, c.attachment, now)
	case callDetach:
		r.err = w.cloud.detach(c.attachment, now)
	case callDelete:
		r.err = w.cloud.remove(c.eni, now)
	case callAssign:
		r.addrs, r.err = w.cloud.assign(c.eni, c.n, now)
	case callAssignAddresses:
		r.addrs, r.err = w.cloud.assignAddresses(c.eni, c.addrs, now)
	case callSubnets:
		r.subnets, r.err = w.cloud.describeSubnets(now)
	case callUnassign:
		r.err = w.cloud.unassign(c.eni, c.addrs, now)
	case callAssignPrefixes:
		r.prefixes, r.err = w.cloud.assignPrefixes(c.eni, c.n, now)
	case callUnassignPrefixes:
		r.err = w.cloud.unassignPrefixes(c.eni, c.prefixes, now)
	case callPools, callMetadata:
		w.walks++
		return w.metadata(c)
	case callWaitLink:
		if there, _ := w.cloud.hasLink(c.mac, now); !there {
			r.err = context.DeadlineExceeded
		}
	}
	w.trace = append(w.trace, fmt.Sprintf("%s   %s %s %v -> %v", now.Format("05.000"), c.method, c.eni, c.addrs, r.err))
	if w.liar != nil {
		w.got()
	}
	return r
}

// next does what is due next. False if nothing is.
func (w *world) next() bool {
	best := -1
	for i, p := range w.pending {
		if best < 0 || p.at.Before(w.pending[best].at) {
			best = i
		}
	}
	if best < 0 || !w.timer.IsZero() && w.timer.Before(w.pending[best].at) {
		if w.timer.IsZero() {
			return false
		}
		w.now = later(w.now, w.timer)
		w.timer = time.Time{}
		w.step(evTimer{})
		return true
	}
	p := w.pending[best]
	w.now = later(w.now, p.at)
	w.effects++
	if w.dieAt > 0 && w.effects == w.dieAt {
		w.die()
		return true
	}
	w.pending = slices.Delete(w.pending, best, best+1)
	if w.carryOut != nil {
		w.carryOut(p.e)
		return true
	}
	switch e := p.e.(type) {
	case effCall:
		w.step(evCalled{e.call, w.call(e.call)})
	case effApply:
		report, err := w.host.apply(e.cfg, w.now)
		w.step(evApplied{e.cfg, report, err})
	case effCommit:
		if w.faulty && w.r.IntN(60) == 0 {
			w.step(evCommitted{errors.New("disk full")})
			break
		}
		w.disk = w.ctrl.durable(w.now)
		w.step(evCommitted{})
	case effEnded:
		w.step(e.evAddEnded)
	}
	return true
}

// run passes time.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.problems) == 0 {
		at := w.timer
		for _, p := range w.pending {
			if at.IsZero() || p.at.Before(at) {
				at = p.at
			}
		}
		if at.IsZero() || at.After(end) {
			break
		}
		w.next()
	}
	w.now = end
}

// retry does what the kubelet does about pods that failed: DEL until it succeeds.
func (w *world) retry() {
	for _, n := range w.podIDs() {
		if s := w.pods[n].state; s == "failed" || s == "deleting" {
			w.del(n)
		}
	}
}

// rest stops the load and checks what must hold when everything has settled.
func (w *world) rest() {
	w.faulty, w.cloud.fragmented = false, false
	for range 3 {
		w.run(time.Minute)
		w.retry()
	}
	w.run(20 * time.Minute)
	calls := w.cloud.total()
	w.run(12 * time.Hour)
	// A subnet that can have no /28 is asked for one now and then.
	if n := w.cloud.total(); n != calls && (n > calls+4*24 || !w.cloud.tiny()) {
		w.problem("%d calls although nothing happens: %v", n-calls, w.cloud.log[len(w.cloud.log)-min(8, n-calls):])
	}
	running := map[netip.Addr]bool{}
	for _, n := range w.podIDs() {
		p := w.pods[n]
		if p.state != "running" {
			w.problem("pod %d is %s at rest", n, p.state)
			continue
		}
		running[p.addr] = true
		if e := w.eniOf(p.addr); e == nil {
			w.problem("%s of pod %d is on no ENI of the node", p.addr, n)
		}
	}
	for _, a := range w.ctrl.store.Allocations() {
		if !running[a.Address] {
			w.problem("%s is held by %s, which does not run", a.Address, a.ContainerID)
		}
		delete(running, a.Address)
	}
	for ip := range running {
		w.problem("%s of a running pod is not in the ledger", ip)
	}
	ledger := map[string][]netip.Prefix{}
	for _, e := range w.ctrl.store.Snapshot(w.now).ENIs {
		ledger[e.ID] = w.ctrl.store.Pool(e.ID)
		serves := datastore.Usable
		if x := w.ctrl.enis[e.ID]; x != nil && w.ctrl.excludes(x) {
			serves = datastore.Wired
		}
		if e.Phase != serves || e.Arriving+e.Leaving+e.Quarantined > 0 {
			w.problem("%s is %s at rest: %+v", e.ID, e.Phase, e.Counts)
		}
	}
	for id, e := range w.cloud.enis {
		if e.InstanceID == "" {
			w.problem("%s is leaked", id)
			continue
		}
		if !e.DeleteOnTermination {
			w.problem("%s would outlive the node", id)
		}
		var want []netip.Prefix
		for _, ip := range clone(e).Secondary {
			want = append(want, single(ip))
		}
		want = append(want, e.Prefixes...)
		slices.SortFunc(want, netip.Prefix.Compare)
		if !slices.Equal(want, ledger[id]) {
			w.problem("%s has %v in EC2 and %v in the ledger", id, want, ledger[id])
		}
		delete(ledger, id)
	}
	if len(ledger) > 0 {
		w.problem("ENIs in the ledger only: %v", ledger)
	}
	if got := w.ctrl.durable(w.now); len(got.Journal.Intents) > 0 || len(w.ctrl.ops) > 1 ||
		len(w.ctrl.ops) == 1 && w.ctrl.walking == 0 {
		w.problem("under way at rest: %+v", got.Journal.Intents)
	}
}

func (w *world) report(t *testing.T, name string) {
	t.Helper()
	if len(w.problems) == 0 {
		return
	}
	from := max(0, len(w.trace)-*traced)
	t.Fatalf("%s: %s\nthe last of it:\n%s", name, strings.Join(w.problems, "\n"), strings.Join(w.trace[from:], "\n"))
}

// story grows from nothing to a full node and shrinks again: every kind of call, commit and apply is in it.
func (w *world) story() {
	w.boot()
	w.run(2 * time.Second)
	for range 7 {
		w.add()
		w.run(300 * time.Millisecond)
	}
	w.run(10 * time.Second)
	more := 7
	if w.opts.Settings.Targets.Prefixes {
		more = 80 // than the primary ENI's prefixes hold
	}
	for range more {
		w.add()
	}
	w.run(90 * time.Second)
	for i, n := range w.podIDs() {
		if i%7 != 0 && w.pods[n].state == "running" {
			w.del(n)
			w.run(50 * time.Millisecond)
		}
	}
	w.run(5 * time.Minute)
	w.rest()
}
