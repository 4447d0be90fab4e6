package ipamd

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

// Tags and description of the ENIs that this node creates. The cluster's cleaners and the field's IAM policies key on
// them.
const (
	tagInstance    = awsutils.TagInstance
	tagCreatedAt   = awsutils.TagCreatedAt
	tagNoManage    = awsutils.TagNoManage
	tagCluster     = awsutils.TagCluster
	tagOwner       = "eks:eni:owner"
	ownerCNI       = "amazon-vpc-cni"
	descriptionPre = awsutils.DescriptionPrefix
)

// startCreate begins a new ENI: create it with its addresses and tags, attach it, have it deleted with the instance.
func (c *controller) startCreate(a warmpool.Action, now time.Time) {
	tags := map[string]string{tagInstance: c.id.InstanceID, tagCreatedAt: now.Format(time.RFC3339)}
	if c.set.ClusterName != "" {
		tags[tagCluster], tags[tagOwner] = c.set.ClusterName, ownerCNI
	}
	maps.Copy(tags, c.set.ENITags)
	op := c.newOp(opCreate, stageCommit, now)
	op.device, op.n, op.prefix, op.reason = a.Device, a.N+a.Prefixes, a.Prefixes > 0, a.Reason
	op.spec = awsutils.NewENI{SubnetID: a.Subnet, Groups: c.groups, Description: descriptionPre + c.id.InstanceID,
		Tags: tags, IPs: a.N, Prefixes: a.Prefixes, Token: c.token()}
	// The token goes into the journal before the call: an ENI that is created but not attached is not among those
	// that a restart finds with its one Describe of the instance.
	c.next.ops = append(c.next.ops, op)
}

func (c *controller) createStep(op *operation, ev evCalled, now time.Time) {
	switch op.stage {
	case stageCreate:
		c.createAnswered(op, ev, now)
	case stageAttach:
		c.attachAnswered(op, ev, now)
	case stageCheck:
		c.attachChecked(op, ev, now)
	}
}

func (c *controller) createAnswered(op *operation, ev evCalled, now time.Time) {
	if ev.err == nil && len(ev.enis) == 1 && c.enis[ev.enis[0].ID] != nil {
		// A token that was used before: nothing was made, and what there is must not be undone with this operation.
		c.log(slog.LevelError, "EC2 gave an ENI that the node has already", "eni", ev.enis[0].ID)
		c.end(op)
		return
	}
	if ev.err == nil && len(ev.enis) == 1 {
		c.counters.ENIsCreated++
		op.eni = ev.enis[0].ID
		op.created = ev.enis[0]
		c.enter(op, stageAttach, now)
		return
	}
	if ev.err == nil {
		ev.err = fmt.Errorf("CreateENI returned %d ENIs", len(ev.enis))
	}
	class := awsutils.Classify(ev.err)
	op.unsure = op.unsure || class == awsutils.Timeout
	if op.unsure && (class == awsutils.Timeout || class == awsutils.Throttled) && op.tries < maxCreate {
		// The same token gives the same ENI, if there is one.
		c.again(op, class, now)
		return
	}
	c.refusedBlocks(op, warmpool.OpCreate, op.spec.SubnetID, ev.err, now)
	if op.unsure || class == awsutils.IdempotentMismatch {
		// There may be an ENI that nobody knows. Its intent stays until it has been looked for.
		c.inherited = append(c.inherited, checkpoint.Intent{Kind: op.intent(), Token: op.spec.Token, Since: now})
		c.scanSoon(now)
	}
	c.end(op)
}

func (c *controller) attachAnswered(op *operation, ev evCalled, now time.Time) {
	if ev.err == nil {
		c.attached(op, ev.attachment, now)
		return
	}
	switch class := awsutils.Classify(ev.err); {
	case class == awsutils.Timeout:
		c.lookUp(op, now)
	case class == awsutils.Throttled && op.tries < maxAttach:
		c.again(op, class, now)
	default:
		c.refused(warmpool.OpCreate, op.spec.SubnetID, 0, ev.err, now)
		if class != awsutils.Denied && class != awsutils.Throttled {
			// The device index may be taken, or the limit reached, by an ENI that this node does not know.
			c.resyncSoon(now)
		}
		c.compensate(op, now)
	}
}

// lookUp asks EC2 what became of a call. The number of tries is kept: it bounds the whole.
func (c *controller) lookUp(op *operation, now time.Time) {
	op.stage = stageCheck
	c.again(op, awsutils.Timeout, now)
}

func (c *controller) attachChecked(op *operation, ev evCalled, now time.Time) {
	switch class := classOf(ev.err); {
	case ev.err != nil && class != awsutils.NotFound:
		c.again(op, class, now)
	case ev.err != nil || len(ev.enis) == 0:
		// Just created, and EC2's readers may lag behind its writers.
		if op.tries++; op.tries < maxAttach {
			c.again(op, class, now)
			return
		}
		c.compensate(op, now)
	case ev.enis[0].InstanceID == c.id.InstanceID && ev.enis[0].AttachmentID != "":
		op.device = ev.enis[0].Device
		c.attached(op, ev.enis[0].AttachmentID, now)
	case op.tries < maxAttach:
		op.stage = stageAttach
		c.begin(op, now)
	default:
		c.refused(warmpool.OpCreate, op.spec.SubnetID, 0, fmt.Errorf("%s cannot be attached", op.eni), now)
		c.compensate(op, now)
	}
}

func classOf(err error) awsutils.Class {
	if err == nil {
		return awsutils.Other
	}
	return awsutils.Classify(err)
}

// compensate takes an ENI away again that could not be attached. What its last Attach did may be unknown, so a
// deletion that is refused looks at the attachment.
func (c *controller) compensate(op *operation, now time.Time) {
	c.end(op)
	c.startDelete(op.eni, reasonUndo, now)
}

// attached takes the new ENI among the node's. It serves pods when its interface is there and the host is ready.
func (c *controller) attached(op *operation, attachment string, now time.Time) {
	eni := op.created
	eni.Device, eni.Card, eni.AttachmentID, eni.InstanceID = op.device, c.card, attachment, c.id.InstanceID
	eni.Type, eni.SubnetID, eni.Description, eni.Tags = "interface", op.spec.SubnetID, op.spec.Description, op.spec.Tags
	c.succeeded(warmpool.OpCreate, op.spec.SubnetID, now)
	if op.prefix {
		c.succeeded(warmpool.OpPrefix, op.spec.SubnetID, now)
	}
	c.lastGrowth = now
	if e := c.enis[eni.ID]; e != nil {
		c.end(op) // a Describe was faster
		return
	}
	e := &iface{ENI: eni, cidr: c.subnets[eni.SubnetID], managed: true, touched: now}
	c.enis[e.ID] = e
	c.end(op)
	c.hold(e, now)
	for _, p := range poolOf(&e.ENI) {
		c.lagging(e, p, now.Add(settleTime))
	}
	c.protect(e, now)
	c.startLink(e, now)
}

// hold takes a managed ENI and its addresses into the ledger.
func (c *controller) hold(e *iface, now time.Time) {
	primary := e.ID == c.id.PrimaryENI
	c.yield(e.ID, single(e.Primary), now)
	err := c.store.AddENI(datastore.ENI{ID: e.ID, Device: e.Device, Card: e.Card, Primary: primary, Address: e.Primary, Since: now})
	if err != nil {
		c.clash(e.ID, single(e.Primary), err, now)
		return
	}
	e.held = true
	delete(c.clashes, single(e.Primary))
	for _, p := range poolOf(&e.ENI) {
		c.addBlock(e.ID, p, now)
	}
	c.dirty, c.unsaved = true, true
	c.log(slog.LevelInfo, "ENI attached", "eni", e.ID, "device", e.Device, "addresses", len(e.Secondary), "prefixes", len(e.Prefixes))
}

// poolOf is what lies on an ENI for pods.
func poolOf(e *awsutils.ENI) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(e.Secondary)+len(e.Prefixes))
	for _, ip := range e.Secondary {
		out = append(out, single(ip))
	}
	return append(out, e.Prefixes...)
}

func single(ip netip.Addr) netip.Prefix { return netip.PrefixFrom(ip, ip.BitLen()) }

func (c *controller) addBlock(eni string, p netip.Prefix, now time.Time) {
	c.yield(eni, p, now)
	if _, err := c.store.AddBlock(eni, p, now); err != nil {
		c.clash(eni, p, err, now)
		return
	}
	delete(c.clashes, p)
	if c.denied[p] == eni {
		c.acquit(p, now)
	}
	c.dirty, c.unsaved = true, true
	if e := c.enis[eni]; e != nil {
		c.lagging(e, p, now)
	}
}

// protect has an ENI that this node created deleted with the instance.
func (c *controller) protect(e *iface, now time.Time) {
	if c.set.NoProvisioning || !e.managed || e.DeleteOnTermination || e.AttachmentID == "" || e.ID == c.id.PrimaryENI || !c.own(e.ENI) {
		return
	}
	for _, op := range c.ops {
		if op.kind == opProtect && op.eni == e.ID {
			return
		}
	}
	op := c.newOp(opProtect, stageCall, now)
	op.eni, op.attach = e.ID, e.AttachmentID
	c.begin(op, now)
}

// protectStep: without DeleteOnTermination the ENI outlives the node, but pods can use it; so this is only retried.
func (c *controller) protectStep(op *operation, ev evCalled, now time.Time) {
	class := classOf(ev.err)
	e := c.enis[op.eni]
	switch {
	case ev.err == nil:
		if e != nil {
			e.DeleteOnTermination = true
		}
		c.end(op)
	case class == awsutils.NotFound, e == nil, c.removing(e):
		c.end(op)
	default:
		c.again(op, class, now)
	}
}

// startLink waits for the ENI's interface.
func (c *controller) startLink(e *iface, now time.Time) {
	op := c.newOp(opLink, stageCall, now)
	op.eni = e.ID
	c.begin(op, now)
}

func (c *controller) linkStep(op *operation, ev evCalled, now time.Time) {
	e := c.enis[op.eni]
	c.end(op)
	if e == nil || c.removing(e) || c.stopping {
		return
	}
	if ev.err == nil {
		e.link, c.dirty, c.applyAt = true, true, time.Time{}
		c.lagging(e, netip.Prefix{}, now.Add(settleTime))
		return
	}
	e.notReady = ev.err.Error()
	if e.notReadySince.IsZero() {
		e.notReadySince = now
	}
	if err := c.startRemove(e, "its interface does not appear", now); err != nil {
		c.log(slog.LevelError, "interface does not appear", "eni", e.ID, "error", err)
		c.startLink(e, now) // pods of an earlier life hold its addresses
	}
}

// startAssign begins an assignment of addresses or prefixes.
func (c *controller) startAssign(a warmpool.Action, now time.Time) {
	e := c.enis[a.ENI]
	if e == nil || e.busy != nil {
		return
	}
	op := c.newOp(opAssign, stageCall, now)
	op.eni, op.device, op.n, op.reason = a.ENI, e.Device, a.N, a.Reason
	op.prefix = a.Kind == warmpool.AssignPrefixes
	if a.Dense {
		// Where there are fewer of them, the next plan brings in the rest.
		if op.want = c.besides(e, a.N); len(op.want) > 0 {
			op.n = len(op.want)
		}
	}
	e.busy = op
	c.unsaved = true
	c.begin(op, now)
}

// startUnassign begins to give back unused addresses or prefixes.
func (c *controller) startUnassign(a warmpool.Action, now time.Time) {
	e := c.enis[a.ENI]
	if e == nil || e.busy != nil {
		return
	}
	prefixes := a.Kind == warmpool.UnassignPrefixes
	blocks := c.store.Reserve(a.ENI, prefixes, a.N, now)
	if len(blocks) == 0 {
		return
	}
	op := c.newOp(opUnassign, stageCommit, now)
	op.eni, op.device, op.n, op.blocks, op.prefix, op.reason = a.ENI, e.Device, len(blocks), blocks, prefixes, a.Reason
	e.busy = op
	c.unsaved = true
	c.lastShrink = now
	// A crash must not leave a journal from which the next life hands out what EC2 has taken back.
	c.next.ops = append(c.next.ops, op)
}

func (c *controller) addressStep(op *operation, ev evCalled, now time.Time) {
	e := c.enis[op.eni]
	if e == nil {
		c.end(op)
		return
	}
	if op.stage == stageCheck {
		c.addressesChecked(op, e, ev, now)
		return
	}
	kind, target := warmpool.OpAssign, e.SubnetID
	if op.kind == opUnassign {
		kind, target = warmpool.OpUnassign, e.ID
	}
	if ev.err == nil {
		c.succeeded(kind, target, now)
		if op.kind == opAssign {
			c.lastGrowth = now
			for _, p := range poolOf(&awsutils.ENI{Secondary: ev.addrs, Prefixes: ev.prefixes}) {
				c.addBlock(e.ID, p, now)
				c.lagging(e, p, now.Add(settleTime))
			}
			if op.prefix {
				c.succeeded(warmpool.OpPrefix, target, now)
			}
		} else {
			c.unassigned(e, op.blocks, now)
		}
		c.end(op)
		return
	}
	switch class := awsutils.Classify(ev.err); {
	case op.kind == opUnassign:
		c.refused(kind, target, op.n, ev.err, now)
	case len(op.want) > 0 && (class == awsutils.InUse || class == awsutils.Other || class == awsutils.InsufficientAddresses):
		// Somebody else has one of them. From now on EC2 chooses.
		c.refusals = c.refusals.Refused(warmpool.OpDense, target, warmpool.CauseExhausted, op.n, ev.err.Error(), c.rand.Float64(), now)
	default:
		c.refusedBlocks(op, kind, target, ev.err, now)
	}
	switch class := awsutils.Classify(ev.err); {
	case class == awsutils.Timeout, class == awsutils.AddressLimit, class == awsutils.NotFound,
		class == awsutils.Other && op.kind == opUnassign:
		// EC2 did what this node does not know of: the call itself, or something before it. That an address is not
		// the ENI's any more has no code of its own.
		c.lookUp(op, now)
	default:
		c.store.Unreserve(e.ID, op.blocks, now)
		c.end(op)
	}
}

func (c *controller) unassigned(e *iface, blocks []netip.Prefix, now time.Time) {
	for _, p := range blocks {
		c.lagging(e, p, now.Add(settleTime))
	}
	if err := c.store.RemoveBlocks(e.ID, blocks); err != nil {
		c.log(slog.LevelError, "address given back, but held", "eni", e.ID, "error", err)
	}
	c.dirty, c.unsaved = true, true
}

// addressesChecked takes over what EC2 says of an ENI after a call with an unknown outcome.
func (c *controller) addressesChecked(op *operation, e *iface, ev evCalled, now time.Time) {
	class := classOf(ev.err)
	if ev.err != nil && class != awsutils.NotFound {
		c.again(op, class, now)
		return
	}
	c.store.Unreserve(e.ID, op.blocks, now)
	c.end(op)
	if len(ev.enis) == 0 || ev.enis[0].InstanceID != c.id.InstanceID {
		// Gone or detached: only a look at the whole node says, and it may be believed at once.
		e.touched = time.Time{}
		c.doubts[doubt{mac: e.MAC.String()}] = &sighting{since: now, last: now, firm: true}
		c.suspect(now)
		c.resyncSoon(now)
		return
	}
	if op.kind == opAssign {
		c.lastGrowth = now
	}
	c.compare(e, ev.enis[0], now)
}
