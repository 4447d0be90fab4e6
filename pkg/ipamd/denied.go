package ipamd

import (
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/warmpool"
)

// A call that IAM denies to one ENI is denied to the next one as well. The node asks for it every retryDenied at most,
// whichever ENI's turn it is, until it works; what the planner asks for is kept in its refusals instead.

// paced are the calls that operations repeat by themselves.
func paced(m method) bool { return m == callDelete || m == callProtect }

// putOff postpones a call that was denied a short while ago. Otherwise the next one has to wait.
func (c *controller) putOff(op *operation, m method, now time.Time) bool {
	at, denied := c.deniedUntil[m]
	switch {
	case !paced(m) || !denied:
		return false
	case now.Before(at) && m == callDelete && c.enis[op.eni] != nil:
		c.askWhereItIs(op, now)
		return true
	case now.Before(at):
		op.retryAt, op.waitsFor = at, m
		return true
	}
	c.deniedUntil[m] = now.Add(retryDenied)
	return false
}

// wasDenied notes that a call was denied, and when it may be made again.
func (c *controller) wasDenied(m method, now time.Time) time.Time {
	at := now.Add(retryDenied + time.Duration(c.rand.Float64()*float64(retryDenied)/10))
	if paced(m) {
		c.deniedUntil[m] = at
	}
	return at
}

// allowed lets those go on who wait for a right that is there now.
func (c *controller) allowed(m method, now time.Time) {
	if _, denied := c.deniedUntil[m]; !denied {
		return
	}
	delete(c.deniedUntil, m)
	for _, op := range c.ops {
		if op.waitsFor == m && op.retryAt.After(now) {
			op.retryAt = now
		}
	}
}

// keepAll has no ENI be removed until after the next try of the call that was denied: it could not be detached, or would
// be left behind by every shrinking of the pool.
func (c *controller) keepAll(why string, now time.Time) {
	const latest = 1 // of all jitters
	for _, e := range c.sorted() {
		c.refusals = c.refusals.Refused(warmpool.OpRemove, e.ID, warmpool.CauseDenied, 0, why, latest, now)
	}
}

// askWhereItIs finds out whether an ENI whose deletion is denied has left the node. EC2 looks at rights first, so the
// denial does not tell.
func (c *controller) askWhereItIs(op *operation, now time.Time) {
	op.undeletable, op.stage = true, stageCheck
	c.begin(op, now)
}

// detached drops an ENI that has left the node but cannot be deleted: its place is free for another one, and its
// deletion is tried again by itself.
func (c *controller) detached(op *operation, now time.Time) {
	c.letGo(op, now)
	c.forget(op.eni, now)
	op.stage = stageDelete
	c.again(op, awsutils.Denied, now)
}
