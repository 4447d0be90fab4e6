package ipamd

import (
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/warmpool"
)

// The kinds of operations.
const (
	opCreate   = "create"   // create, attach
	opProtect  = "protect"  // DeleteOnTermination
	opLink     = "link"     // wait for the interface
	opAssign   = "assign"   // call, check
	opUnassign = "unassign" // call, check
	opRemove   = "remove"   // drain, detach, delete
	opObserve  = "observe"  // a Describe
	opSubnets  = "subnets"  // DescribeSubnets
)

// The stages of operations.
const (
	stageCommit = "commit" // the intent is being made durable
	stageCall   = "call"   // the one call of most operations
	stageCreate = "create" // create: CreateENI
	stageAttach = "attach" // create: AttachENI
	stageCheck  = "check"  // the outcome of the last call is unknown: ask EC2
	stageDrain  = "drain"  // remove: the host's network lets go
	stageDetach = "detach" // remove: DetachENI
	stageDelete = "delete" // remove: DeleteENI
)

// Retries. All have full jitter.
const (
	retryFirst = time.Second
	retryLong  = 30 * time.Second
	// retryDenied makes at most 12 tries an hour.
	retryDenied = 5 * time.Minute
	// maxAttach and maxCreate bound how often one and the same ENI is tried.
	maxAttach = 6
	maxCreate = 8
	// checkAfter is how many refusals of a deletion lead to a look at what holds it up.
	checkAfter = 6
)

// operation is one EC2 change under way: at most one call at a time, retried, looked up when its outcome is unknown,
// and undone when it cannot be finished.
type operation struct {
	id      uint64
	kind    string
	stage   string
	eni     string
	device  int
	n       int
	prefix  bool           // create, assign, unassign: of prefixes, which n then counts
	blocks  []netip.Prefix // unassign
	want    []netip.Addr   // assign: these, by name
	spec    awsutils.NewENI
	created awsutils.ENI // create: what EC2 made
	unsure  bool         // create: there may be an ENI although no answer said so
	attach  string
	netVer  uint64 // remove: the version of the host's network that does without the ENI
	method  method // observe
	made    method // the last call
	// waitsFor is the call that others were denied and this one was not tried for, with retryAt.
	waitsFor method
	// undeletable: remove: the deletion is denied, but the ENI's place on the node may be free all the same.
	undeletable bool
	calling     bool
	tries       int // failures in a row at this stage
	retryAt     time.Time
	since       time.Time
	err         string
	reason      string
}

func (c *controller) newOp(kind, stage string, now time.Time) *operation {
	c.lastOp++
	op := &operation{id: c.lastOp, kind: kind, stage: stage, since: now}
	c.ops[op.id] = op
	return op
}

// begin makes the call of an operation's stage.
func (c *controller) begin(op *operation, now time.Time) {
	op.retryAt = time.Time{}
	if c.stopping {
		return
	}
	if op.stage == stageCommit {
		op.stage = op.committed()
	}
	x := call{op: op.id, eni: op.eni}
	e := c.enis[op.eni]
	switch {
	case op.stage == stageCreate:
		x.method, x.spec = callCreate, op.spec
	case op.stage == stageAttach:
		x.method, x.device, x.card = callAttach, op.device, c.card
	case op.stage == stageCheck:
		x.method = callDescribeByID
	case op.stage == stageDetach:
		x.method, x.attachment = callDetach, op.attach
	case op.stage == stageDelete:
		x.method = callDelete
	case op.stage == stageDrain:
		return
	case op.kind == opProtect:
		x.method, x.attachment = callProtect, op.attach
	case op.kind == opLink:
		x.method = callWaitLink
		if e != nil {
			x.mac = e.MAC
		}
	case op.kind == opSubnets:
		x.method = callSubnets
	case op.kind == opAssign && len(op.want) > 0:
		x.method, x.addrs = callAssignAddresses, op.want
	case op.kind == opAssign && op.prefix:
		x.method, x.n = callAssignPrefixes, op.n
	case op.kind == opAssign:
		x.method, x.n = callAssign, op.n
	case op.kind == opUnassign && op.prefix:
		x.method, x.prefixes = callUnassignPrefixes, op.blocks
	case op.kind == opUnassign:
		x.method = callUnassign
		for _, p := range op.blocks {
			x.addrs = append(x.addrs, p.Addr())
		}
	case op.kind == opObserve:
		x.method, x.prefixed = op.method, c.wantsPrefixes(now)
	}
	if c.putOff(op, x.method, now) {
		return
	}
	if e != nil {
		e.touched = now
	}
	op.calling, op.made, op.waitsFor = true, x.method, ""
	c.emit(effCall{x})
}

// committed is the stage after stageCommit.
func (op *operation) committed() string {
	switch {
	case op.kind == opCreate:
		return stageCreate
	case op.kind != opRemove:
		return stageCall
	case op.attach == "":
		return stageCheck // known from the journal only: EC2 has to say by which attachment it hangs here
	}
	return stageDetach
}

// retryDue repeats what failed a while ago.
func (c *controller) retryDue(now time.Time) {
	for _, op := range c.operations() {
		if !op.retryAt.IsZero() && !now.Before(op.retryAt) {
			c.begin(op, now)
		}
	}
}

// operations lists what is under way, by start.
func (c *controller) operations() []*operation {
	out := make([]*operation, 0, len(c.ops))
	for _, op := range c.ops {
		out = append(out, op)
	}
	slices.SortFunc(out, func(a, b *operation) int { return int(int64(a.id) - int64(b.id)) })
	return out
}

// called takes the result of a call to the operation that made it.
func (c *controller) called(ev evCalled, now time.Time) {
	op := c.ops[ev.call.op]
	if op == nil {
		return
	}
	op.calling = false
	if e := c.enis[op.eni]; e != nil {
		e.touched = now
	}
	op.err = ""
	c.noticeCall(op, ev, now)
	if ev.err == nil {
		c.allowed(ev.call.method, now)
	} else {
		op.err = ev.err.Error()
		op.tries++
		c.callFailed(op, ev.call.method, ev.err)
		if (op.kind != opLink || !c.stopping) && !op.method.metadata() {
			c.log(slog.LevelWarn, "call failed", "call", ev.call.method, "eni", op.eni, "try", op.tries,
				"class", awsutils.Classify(ev.err).String(), "error", ev.err)
		}
	}
	switch op.kind {
	case opCreate:
		c.createStep(op, ev, now)
	case opProtect:
		c.protectStep(op, ev, now)
	case opLink:
		c.linkStep(op, ev, now)
	case opAssign, opUnassign:
		c.addressStep(op, ev, now)
	case opRemove:
		c.removeStep(op, ev, now)
	case opObserve:
		c.observeStep(op, ev, now)
		if op.method.metadata() {
			return // a walk is no change; what it finds is
		}
	case opSubnets:
		c.subnetsStep(op, ev, now)
	}
	c.planBy(0, now)
}

// enter moves an operation to its next stage and makes its call.
func (c *controller) enter(op *operation, stage string, now time.Time) {
	op.stage, op.tries = stage, 0
	c.unsaved = c.unsaved || op.kind != opObserve
	c.begin(op, now)
}

// again repeats a stage after a while, longer for what only people can change.
func (c *controller) again(op *operation, class awsutils.Class, now time.Time) {
	if class == awsutils.Denied {
		op.retryAt = c.wasDenied(op.made, now)
		return
	}
	op.retryAt = now.Add(c.backoff(op.tries, retryFirst, retryLong))
}

// end forgets an operation.
func (c *controller) end(op *operation) {
	delete(c.ops, op.id)
	if e := c.enis[op.eni]; e != nil && e.busy == op {
		e.busy = nil
	}
	c.unsaved = c.unsaved || op.intent() != ""
}

// intent is the name under which an operation is in the journal; empty if a restart need not know of it.
func (op *operation) intent() string {
	switch op.kind {
	case opCreate:
		if op.stage == stageCommit || op.stage == stageCreate {
			return "create"
		}
		return "attach"
	case opProtect:
		return "attach"
	case opAssign, opUnassign:
		return op.kind
	case opRemove:
		switch op.stage {
		case stageDelete, stageCheck:
			return "delete"
		}
		return "detach"
	}
	return ""
}

// intents lists the EC2 changes that are under way, and those of the last life that were not looked up yet.
func (c *controller) intents() []checkpoint.Intent {
	out := slices.Clone(c.inherited)
	for _, op := range c.operations() {
		if kind := op.intent(); kind != "" {
			out = append(out, checkpoint.Intent{Kind: kind, ENI: op.eni, Token: op.spec.Token, Since: op.since})
		}
	}
	return out
}

// refused remembers that EC2 refused an operation, so that the plan does not ask for it again at once.
func (c *controller) refused(op warmpool.Op, target string, n int, err error, now time.Time) {
	c.refusals = c.refusals.Refused(op, target, causeOf(awsutils.Classify(err)), n, err.Error(), c.rand.Float64(), now)
}

// refusedBlocks remembers that EC2 refused addresses or prefixes. A subnet without a free /28 may have single addresses;
// EC2 does not always say which of the two it lacks.
func (c *controller) refusedBlocks(op *operation, kind warmpool.Op, subnet string, err error, now time.Time) {
	if op.prefix && causeOf(awsutils.Classify(err)) == warmpool.CauseExhausted {
		kind = warmpool.OpPrefix
	}
	c.refused(kind, subnet, op.n, err, now)
}

func (c *controller) succeeded(op warmpool.Op, target string, now time.Time) {
	c.refusals = c.refusals.Succeeded(op, target, now)
}

func causeOf(class awsutils.Class) warmpool.Cause {
	switch class {
	case awsutils.InsufficientAddresses, awsutils.InsufficientPrefixes:
		return warmpool.CauseExhausted
	case awsutils.Denied:
		return warmpool.CauseDenied
	case awsutils.Throttled:
		return warmpool.CauseThrottled
	case awsutils.AddressLimit, awsutils.AttachmentLimit:
		return warmpool.CauseLimit
	}
	return warmpool.CauseFailed
}
