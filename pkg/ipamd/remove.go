package ipamd

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

var errNoProvisioning = errors.New("somebody else provisions this node")

// detachTime is about what EC2 needs to detach an ENI. Asked to delete it before, it refuses, and the call is wasted.
const detachTime = 4 * time.Second

// startRemove begins the removal of an ENI without pods: no new pods, out of the host's network, detach, delete.
func (c *controller) startRemove(e *iface, reason string, now time.Time) error {
	if c.set.NoProvisioning {
		return errNoProvisioning
	}
	if err := c.store.Drain(e.ID); err != nil {
		return err
	}
	op := c.newOp(opRemove, stageDrain, now)
	op.eni, op.device, op.attach, op.reason = e.ID, e.Device, e.AttachmentID, reason
	e.busy = op
	c.dirty, c.applyAt, c.unsaved = true, time.Time{}, true
	op.netVer = c.netVersion + 1
	c.lastRemoval = now
	return nil
}

// keepLeaving takes back the removals that EC2 has not been asked for yet, or has not begun.
func (c *controller) keepLeaving() {
	for _, op := range c.operations() {
		e := c.enis[op.eni]
		if op.kind != opRemove || e == nil || op.calling || op.stage != stageDrain && op.stage != stageDetach {
			continue
		}
		c.end(op)
		if c.store.SetPhase(e.ID, datastore.Discovered) == nil {
			c.dirty, c.applyAt = true, time.Time{}
		}
		c.log(slog.LevelInfo, "ENI stays", "eni", e.ID, "reason", c.holdReason())
	}
}

// startDelete begins the deletion of an ENI that is detached, or about to be.
func (c *controller) startDelete(eni, reason string, now time.Time) {
	if c.set.NoProvisioning {
		return
	}
	for _, op := range c.ops {
		if op.eni == eni && (op.kind == opRemove || op.kind == opCreate) {
			return
		}
	}
	op := c.newOp(opRemove, stageDelete, now)
	op.eni, op.reason = eni, reason
	if e := c.enis[eni]; e != nil {
		op.attach, op.device, e.busy = e.AttachmentID, e.Device, op
	}
	c.unsaved = true
	c.begin(op, now)
}

// removing tells whether an ENI is on its way out.
func (c *controller) removing(e *iface) bool { return e.busy != nil && e.busy.kind == opRemove }

// drained goes on with removals whose ENIs the host's network has let go.
func (c *controller) drained(version uint64, now time.Time) {
	for _, op := range c.operations() {
		if op.kind != opRemove || op.stage != stageDrain || op.netVer > version {
			continue
		}
		// A crash must not leave a journal from which the next life serves an ENI that is being detached.
		op.stage, op.tries = stageCommit, 0
		c.next.ops = append(c.next.ops, op)
	}
}

func (c *controller) removeStep(op *operation, ev evCalled, now time.Time) {
	class := classOf(ev.err)
	switch op.stage {
	case stageDetach:
		c.detachAnswered(op, ev, class, now)
	case stageDelete:
		c.deleteAnswered(op, ev, class, now)
	case stageCheck:
		c.removalChecked(op, ev, class, now)
	}
}

func (c *controller) detachAnswered(op *operation, ev evCalled, class awsutils.Class, now time.Time) {
	switch {
	case ev.err == nil, class == awsutils.NotFound, class == awsutils.IncorrectState:
		// Detached, or being detached. EC2 refuses to delete it until that is done.
		c.letGo(op, now)
		op.stage, op.tries = stageDelete, 0
		op.retryAt = now.Add(detachTime + c.backoff(1, retryFirst, retryLong))
		c.unsaved = true
	case class == awsutils.Timeout:
		op.stage = stageCheck
		c.again(op, class, now)
	case class == awsutils.Denied, class == awsutils.Other && op.tries >= maxAttach:
		// It cannot go, so it may as well serve.
		e := c.enis[op.eni]
		if class == awsutils.Denied {
			c.keepAll(ev.err.Error(), now)
		} else {
			c.refusals = c.refusals.Refused(warmpool.OpRemove, op.eni, warmpool.CauseDenied, 0, ev.err.Error(), c.rand.Float64(), now)
		}
		c.end(op)
		if e != nil && c.store.SetPhase(e.ID, datastore.Discovered) == nil {
			c.dirty, c.applyAt = true, time.Time{}
		}
	default:
		c.again(op, class, now)
	}
}

// letGo forgets the addresses of an ENI that is being detached.
func (c *controller) letGo(op *operation, now time.Time) {
	if err := c.store.RemoveENI(op.eni); err != nil && c.enis[op.eni] != nil {
		c.log(slog.LevelError, "detached ENI is held", "eni", op.eni, "error", err)
	}
	c.pardon(op.eni)
	c.lastRemoval = now
}

func (c *controller) deleteAnswered(op *operation, ev evCalled, class awsutils.Class, now time.Time) {
	switch {
	case ev.err == nil, class == awsutils.NotFound:
		c.counters.ENIsRemoved++
		c.log(slog.LevelInfo, "ENI removed", "eni", op.eni, "reason", op.reason)
		c.end(op)
		c.forget(op.eni, now)
		c.succeeded(warmpool.OpRemove, op.eni, now)
	case class == awsutils.Denied:
		c.keepAll(ev.err.Error(), now)
		if c.enis[op.eni] == nil {
			c.again(op, class, now)
			return
		}
		c.wasDenied(callDelete, now)
		c.askWhereItIs(op, now)
	case op.tries%checkAfter == 0 && class != awsutils.Throttled:
		op.stage = stageCheck
		c.begin(op, now)
	default:
		c.again(op, class, now)
	}
}

// removalChecked goes on from what EC2 says of the ENI.
func (c *controller) removalChecked(op *operation, ev evCalled, class awsutils.Class, now time.Time) {
	switch {
	case class == awsutils.NotFound, ev.err == nil && len(ev.enis) == 0:
		c.letGo(op, now)
		c.end(op)
		c.forget(op.eni, now)
	case ev.err != nil:
		c.again(op, class, now)
	case ev.enis[0].AttachmentID != "" && ev.enis[0].InstanceID != c.id.InstanceID:
		// Somebody else has it now.
		c.letGo(op, now)
		c.end(op)
		c.forget(op.eni, now)
	case ev.enis[0].AttachmentID != "" && ev.enis[0].Status != statusDetaching:
		op.attach = ev.enis[0].AttachmentID
		c.enter(op, stageDetach, now)
	case op.undeletable && ev.enis[0].AttachmentID == "":
		op.made = callDelete
		c.detached(op, now)
	case op.undeletable:
		c.letGo(op, now)
		c.again(op, awsutils.Timeout, now)
	default:
		c.letGo(op, now)
		op.stage = stageDelete
		c.again(op, awsutils.Timeout, now)
	}
}

// forget drops an ENI that has left the node. EC2 may list it for a while; it is not taken in again.
func (c *controller) forget(eni string, now time.Time) {
	if e := c.enis[eni]; e != nil {
		c.lagging(e, netip.Prefix{}, now.Add(10*settleTime))
	}
	delete(c.enis, eni)
	for id, at := range c.gone {
		if now.Sub(at) > 10*settleTime {
			delete(c.gone, id)
		}
	}
	c.gone[eni] = now
}

// freeLost forgets a lost ENI with its last pod.
func (c *controller) freeLost(eni string, now time.Time) {
	e := c.enis[eni]
	if e == nil || !e.lost {
		return
	}
	if c.store.RemoveENI(eni) == nil {
		c.pardon(eni)
		delete(c.enis, eni)
		c.dirty, c.unsaved = true, true
		if len(c.clashes) > 0 {
			c.resyncSoon(now) // other ENIs of this node may have its addresses now
		}
		c.notify(false, NoticeLostENIFreed, "The last pod on "+eni+", which somebody detached, has gone")
		c.log(slog.LevelInfo, "lost ENI has no pods any more", "eni", eni)
	}
}
