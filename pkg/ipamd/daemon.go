package ipamd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/warmpool"
)

// Deadlines of what the daemon does.
const (
	// callTimeout is more than the EC2 client's own bound, which covers its repetitions.
	callTimeout = 75 * time.Second
	// describeTimeout is shorter: a Describe can be repeated at will.
	describeTimeout = 20 * time.Second
	// subnetsTimeout is shorter still: pods wait, and without an answer there is the primary ENI's subnet.
	subnetsTimeout = 5 * time.Second
	// metadataTimeout is for a walk through IMDS, which takes milliseconds.
	metadataTimeout = 20 * time.Second
	applyTimeout    = 30 * time.Second
	commitTimeout   = 10 * time.Second
	// announceTimeout is more than thousands of addresses take at the pace of announcements.
	announceTimeout = 30 * time.Second
	// flushTimeout bounds the last commit, stopTimeout what is under way when the daemon ends.
	flushTimeout = time.Second
	stopTimeout  = time.Second
	// maxEarly is more than can be heard of the node before the daemon starts.
	maxEarly = 16
)

// Daemon is ipamd: a controller and the shell that carries out what it decides. Every event is decided under one
// mutex, in memory; calls run in goroutines of their own, each with a deadline, and come back as events.
type Daemon struct {
	o     Options
	clock clockwork.Clock
	log   *slog.Logger
	ready chan struct{}

	mu     sync.Mutex // guards what follows
	ctrl   *controller
	lastID uint64
	adds   map[uint64]func(AddReply, error)
	dels   map[uint64]func(DelReply, error)
	timer  clockwork.Timer
	ctx    context.Context // of Run; nil before
	early  []event         // what was heard before
	// degraded are the features that others say do not work.
	degraded map[string]Degradation
	// running counts the goroutines that end in an event. While stopping, the last of them closes ended.
	running  int
	stopping bool
	ended    chan struct{}
}

type addResult struct {
	reply AddReply
	err   error
}

type delResult struct {
	reply DelReply
	err   error
}

// New makes a Daemon. It does nothing before Run, but can be asked for Durable and View.
func New(o Options) (*Daemon, error) {
	var errs []error
	require := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New("ipamd: "+what))
		}
	}
	require((o.EC2 != nil || o.Settings.IMDSOnly) && o.Network != nil && o.Checkpointer != nil, "EC2, network and checkpointer are required")
	require(o.Metadata != nil || !o.Settings.IMDSOnly, "instance metadata is required")
	require(o.Identity.InstanceID != "" && o.Identity.PrimaryENI != "", "the instance and its primary ENI must be known")
	require(o.Limits.ENIs > 0 && o.Limits.IPv4PerENI > 1,
		fmt.Sprintf("limits of %q: %d ENIs, %d addresses each", o.Identity.InstanceType, o.Limits.ENIs, o.Limits.IPv4PerENI))
	require(o.Subnets[o.Identity.SubnetID].IsValid(), fmt.Sprintf("the range of subnet %q is not known", o.Identity.SubnetID))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Spawn == nil {
		o.Spawn = spawn
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	return &Daemon{o: o, clock: o.Clock, log: o.Log, ready: make(chan struct{}), ended: make(chan struct{}), ctrl: newController(o, o.Rand),
		adds: map[uint64]func(AddReply, error){}, dels: map[uint64]func(DelReply, error){}, degraded: map[string]Degradation{}}, nil
}

// Run works until the context ends. Then nothing new is begun, ADDs that wait are refused, what is under way has a
// second to end, and the state is made durable once more. Run may be called once; the Checkpointer must outlive it.
func (d *Daemon) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if err := d.Start(work); err != nil {
		return err
	}
	<-ctx.Done()

	stop := d.clock.AfterFunc(stopTimeout, cancel)
	defer stop.Stop()
	d.mu.Lock()
	lines := d.decide(evStop{})
	d.stopping = true
	d.endIfIdle()
	d.mu.Unlock()
	d.write(lines)
	<-d.ended

	flush, done := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer done()
	if err := d.o.Checkpointer.Commit(flush); err != nil {
		return fmt.Errorf("ipamd: last commit: %w", err)
	}
	return nil
}

// Start begins the daemon's work and returns. What the daemon does ends with the context; for an orderly end there is
// Run.
func (d *Daemon) Start(ctx context.Context) error {
	d.mu.Lock()
	if d.ctx != nil {
		d.mu.Unlock()
		return errors.New("ipamd: it was started before")
	}
	d.ctx = ctx
	lines := d.decide(evStart{})
	for _, ev := range d.early {
		lines = append(lines, d.decide(ev)...)
	}
	d.early = nil
	d.mu.Unlock()
	d.write(lines)
	return nil
}

// endIfIdle closes the daemon to events once nothing is under way. The caller holds the mutex.
func (d *Daemon) endIfIdle() {
	if !d.stopping || d.running > 0 || d.isEnded() {
		return
	}
	close(d.ended)
	if d.timer != nil {
		d.timer.Stop()
	}
}

func (d *Daemon) isEnded() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// Ready is closed once the state is restored and the primary ENI can serve pods.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

// Add gives a sandbox an address, waiting for one if need be. The error is a *Refusal with the reason. An address
// that was assigned while the context ended goes back to the pool.
func (d *Daemon) Add(ctx context.Context, req AddRequest) (AddReply, error) {
	answer := make(chan addResult, 1)
	ended := d.BeginAdd(req, func(reply AddReply, err error) { answer <- addResult{reply, err} })
	var got addResult
	select {
	case got = <-answer:
	case <-ctx.Done():
		got.err = &Refusal{CodeCancelled, "the caller went away: " + context.Cause(ctx).Error()}
	}
	if got.err == nil && ctx.Err() != nil {
		got.err = &Refusal{CodeCancelled, "the caller went away: " + context.Cause(ctx).Error()}
	}
	ended(got.err == nil)
	if got.err != nil {
		return AddReply{}, got.err
	}
	return got.reply, nil
}

// BeginAdd is Add for a caller that does not wait. The answer is given once, by a call that must neither block nor call
// the daemon. The caller then has to say that the ADD has ended, and whether its caller got to know of the address; it
// may do so before the answer, which then does not come.
func (d *Daemon) BeginAdd(req AddRequest, answer func(AddReply, error)) (ended func(delivered bool)) {
	id, ok := d.register(func(id uint64) event {
		d.adds[id] = answer
		return evAdd{id: id, req: req}
	})
	if !ok {
		answer(AddReply{}, &Refusal{CodeShutdown, "ipamd is not running"})
		return func(bool) {}
	}
	return func(delivered bool) { d.dispatch(evAddEnded{id: id, key: req.key(), delivered: delivered}) }
}

// Undelivered takes an address back whose reply reached nobody, although Add had returned it.
func (d *Daemon) Undelivered(s Sandbox, r AddReply) {
	if r.Sole {
		d.dispatch(evUndelivered{key: s.key(), address: r.Address, time: r.Time})
	}
}

// Del releases what a sandbox holds. A sandbox that holds nothing ends in datastore.ErrUnknownPod. The release happens
// even if the context ends before it is durable.
func (d *Daemon) Del(ctx context.Context, req DelRequest) (DelReply, error) {
	answer := make(chan delResult, 1)
	d.BeginDel(req, func(reply DelReply, err error) { answer <- delResult{reply, err} })
	select {
	case got := <-answer:
		return got.reply, got.err
	case <-ctx.Done():
		return DelReply{}, &Refusal{CodeCancelled, "the caller went away: " + context.Cause(ctx).Error()}
	}
}

// BeginDel is Del for a caller that does not wait. The answer is given once, by a call that must neither block nor call
// the daemon.
func (d *Daemon) BeginDel(req DelRequest, answer func(DelReply, error)) {
	if tell := d.o.Released; tell != nil {
		caller := answer
		answer = func(reply DelReply, err error) {
			if err == nil {
				tell(reply.Address, req.Gone)
			}
			caller(reply, err)
		}
	}
	_, ok := d.register(func(id uint64) event {
		d.dels[id] = answer
		return evDel{id: id, req: req}
	})
	if !ok {
		answer(DelReply{}, &Refusal{CodeShutdown, "ipamd is not running"})
	}
}

// SetVPCCIDRs tells the daemon the VPC's ranges, which pods reach without source NAT.
func (d *Daemon) SetVPCCIDRs(cidrs []netip.Prefix) { d.dispatch(evVPC{cidrs}) }

// SetNode tells the daemon what Kubernetes says of the node.
func (d *Daemon) SetNode(n NodeState) { d.dispatch(evNode{n}) }

// SetLeaving tells the daemon why the instance is about to end (a spot notice, its Auto Scaling group); empty: it is
// not.
func (d *Daemon) SetLeaving(why string) { d.dispatch(evLeaving{why}) }

// HostChanged tells the daemon that the host's network may not be as it left it.
func (d *Daemon) HostChanged() { d.dispatch(evHost{}) }

// View copies everything the daemon knows.
func (d *Daemon) View() View {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.ctrl.view(d.clock.Now())
	for _, feature := range slices.Sorted(maps.Keys(d.degraded)) {
		v.Degraded = append(v.Degraded, d.degraded[feature])
	}
	return v
}

// SetDegraded tells the daemon that a feature beside its own work does not work, and why; an empty reason: it does.
// Chosen says that a setting wants it so, or that one is missing, so that nothing has to be repaired.
func (d *Daemon) SetDegraded(feature, reason string, chosen bool) {
	d.mu.Lock()
	was, known := d.degraded[feature]
	switch {
	case reason == "":
		delete(d.degraded, feature)
	case known:
		was.Reason, was.Chosen = reason, chosen
		d.degraded[feature] = was
	default:
		d.degraded[feature] = Degradation{Feature: feature, Reason: reason, Chosen: chosen, Since: d.clock.Now()}
	}
	d.mu.Unlock()
	// Reasons change from try to try; that there is one is what is worth a line.
	switch {
	case reason != "" && !known && chosen:
		d.log.Info("feature off", "feature", feature, "reason", reason)
	case reason != "" && !known:
		d.log.Warn("feature degraded", "feature", feature, "reason", reason)
	case reason == "" && known:
		d.log.Info("feature works again", "feature", feature)
	}
}

// Plan is what the planner would do now, and why. Nothing comes of it.
func (d *Daemon) Plan() warmpool.Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ctrl.wouldPlan(d.clock.Now())
}

// Snapshot is the state that has to survive the process, for who writes it often.
func (d *Daemon) Snapshot() checkpoint.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ctrl.snapshot(d.clock.Now())
}

// Durable is the state that has to survive the process.
func (d *Daemon) Durable() checkpoint.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ctrl.durable(d.clock.Now())
}

// register numbers a request and takes the event it makes to the controller.
func (d *Daemon) register(request func(id uint64) event) (id uint64, ok bool) {
	d.mu.Lock()
	if d.ctx == nil || d.isEnded() {
		d.mu.Unlock()
		return 0, false
	}
	d.lastID++
	id = d.lastID
	lines := d.decide(request(id))
	d.mu.Unlock()
	d.write(lines)
	return id, true
}

// dispatch takes an event to the controller.
func (d *Daemon) dispatch(ev event) {
	var lines []effLog
	d.mu.Lock()
	switch {
	case d.ctx == nil && len(d.early) < maxEarly:
		d.early = append(d.early, ev)
	case d.ctx != nil && !d.isEnded():
		lines = d.decide(ev)
	}
	d.mu.Unlock()
	d.write(lines)
}

// write writes lines to the log, each as if who says it had written it. It is called without the mutex: a slow log
// delays nobody else.
func (d *Daemon) write(lines []effLog) {
	handler := d.log.Handler()
	for _, l := range lines {
		if !handler.Enabled(d.ctx, l.level) {
			continue
		}
		line := slog.NewRecord(d.clock.Now(), l.level, l.msg, l.site)
		line.Add(l.args...)
		// As with any line: a log that cannot be written is no reason to stop.
		_ = handler.Handle(d.ctx, line)
	}
}

// decide asks the controller and begins what it wants done. The caller holds the mutex, and writes the lines that are
// returned when it has let go of it; nothing here blocks.
func (d *Daemon) decide(ev event) (lines []effLog) {
	for _, e := range d.ctrl.step(ev, d.clock.Now()) {
		switch e := e.(type) {
		case effAdd:
			if answer := d.adds[e.id]; answer != nil {
				delete(d.adds, e.id)
				answer(e.reply, e.err)
			}
		case effDel:
			if answer := d.dels[e.id]; answer != nil {
				delete(d.dels, e.id)
				answer(e.reply, e.err)
			}
		case effTimer:
			d.arm(e.at)
		case effReady:
			close(d.ready)
		case effLog:
			lines = append(lines, e)
		case effNotice:
			if d.o.Notify != nil {
				d.o.Notify(e.Notice)
			}
		case effCommit:
			d.do(commitTimeout, func(ctx context.Context) event {
				return evCommitted{d.o.Checkpointer.Commit(ctx)}
			})
		case effApply:
			d.do(applyTimeout, func(ctx context.Context) event {
				report, err := d.o.Network.Apply(ctx, e.cfg)
				return evApplied{e.cfg, report, err}
			})
		case effAnnounce:
			if announce := d.o.Announce; announce != nil {
				d.do(announceTimeout, func(ctx context.Context) event {
					return evAnnounced{e.eni, announce(ctx, e.mac, e.blocks)}
				})
			}
		case effCall:
			d.do(timeoutOf(e.method), func(ctx context.Context) event {
				return evCalled{e.call, d.call(ctx, e.call)}
			})
		}
	}
	if ended, ok := ev.(evAddEnded); ok {
		delete(d.adds, ended.id)
	}
	return lines
}

// do has something run beside the daemon, with a deadline.
func (d *Daemon) do(timeout time.Duration, f func(context.Context) event) {
	d.running++
	d.o.Spawn(d.ctx, timeout, func(ctx context.Context) {
		ev := f(ctx)
		d.mu.Lock()
		lines := d.decide(ev)
		d.running--
		d.endIfIdle()
		d.mu.Unlock()
		d.write(lines)
	})
}

// spawn runs f in a goroutine of its own.
func spawn(ctx context.Context, timeout time.Duration, f func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	go func() {
		defer cancel()
		f(ctx)
	}()
}

func timeoutOf(m method) time.Duration {
	switch m {
	case callDescribe, callDescribeByID, callDescribeByTag:
		return describeTimeout
	case callSubnets:
		return subnetsTimeout
	case callPools, callMetadata:
		return metadataTimeout
	case callWaitLink:
		return awsutils.AttachTimeout
	}
	return callTimeout
}

// arm sets the one timer.
func (d *Daemon) arm(at time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if at.IsZero() {
		return
	}
	d.timer = d.clock.AfterFunc(max(at.Sub(d.clock.Now()), 0), func() { d.dispatch(evTimer{}) })
}

// call makes one call.
func (d *Daemon) call(ctx context.Context, c call) (r result) {
	switch c.method {
	case callDescribe:
		r.enis, r.err = d.o.EC2.DescribeENIs(ctx, d.o.Identity.InstanceID)
	case callDescribeByID:
		r.enis, r.err = d.o.EC2.DescribeENIsByID(ctx, c.eni)
	case callDescribeByTag:
		r.enis, r.err = d.o.EC2.DescribeENIsByTag(ctx, tagInstance, d.o.Identity.InstanceID)
	case callSubnets:
		r.subnets, r.err = d.o.EC2.DescribeSubnets(ctx, d.o.Identity.VPCID, d.o.Identity.Zone)
	case callCreate:
		var eni awsutils.ENI
		if eni, r.err = d.o.EC2.CreateENI(ctx, c.spec); r.err == nil {
			r.enis = []awsutils.ENI{eni}
		}
	case callAttach:
		r.attachment, r.err = d.o.EC2.AttachENI(ctx, c.eni, d.o.Identity.InstanceID, c.device, c.card)
	case callProtect:
		r.err = d.o.EC2.DeleteOnTermination(ctx, c.eni, c.attachment)
	case callDetach:
		r.err = d.o.EC2.DetachENI(ctx, c.attachment)
	case callDelete:
		r.err = d.o.EC2.DeleteENI(ctx, c.eni)
	case callAssign:
		r.addrs, r.err = d.o.EC2.AssignIPs(ctx, c.eni, c.n)
	case callAssignAddresses:
		r.addrs, r.err = d.o.EC2.AssignAddresses(ctx, c.eni, c.addrs)
	case callUnassign:
		r.err = d.o.EC2.UnassignIPs(ctx, c.eni, c.addrs)
	case callAssignPrefixes:
		r.prefixes, r.err = d.o.EC2.AssignPrefixes(ctx, c.eni, c.n)
	case callUnassignPrefixes:
		r.err = d.o.EC2.UnassignPrefixes(ctx, c.eni, c.prefixes)
	case callPools:
		r.enis, r.err = d.o.Metadata.Pools(ctx, c.prefixed)
	case callMetadata:
		r.enis, r.err = d.o.Metadata.ENIs(ctx)
	case callWaitLink:
		r.err = d.o.Network.WaitLink(ctx, c.mac)
	}
	return r
}
