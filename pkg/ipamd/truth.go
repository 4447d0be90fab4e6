package ipamd

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/warmpool"
)

// The states of an ENI in EC2's words.
const (
	statusAttaching = "attaching"
	statusDetaching = "detaching"
	statusAvailable = "available"
)

// truth is what EC2 said last, and when to ask again. EC2 is asked once at start; after that the node believes its own
// confirmed changes and asks only when one went wrong, or when IMDS tells of a change that is not the node's
// (metadata.go).
type truth struct {
	verified  time.Time // the last full answer; zero: none yet
	resyncAt  time.Time // when to ask for the node's ENIs
	observing uint64    // the operation that asks; 0: none
	scanAt    time.Time // when to look for own ENIs that are attached nowhere
	scanning  uint64
	observeNo int  // failures of asking in a row
	blind     bool // the last time was denied: then a later answer of IMDS ends the doubts that an earlier one raised
	// gone are the ENIs that left not long ago; EC2 may still list them.
	gone      map[string]time.Time
	inherited []checkpoint.Intent
}

// synced tells whether EC2 has said what the node has. Before that the pool is served, but not changed.
func (c *controller) synced() bool { return !c.verified.IsZero() }

// resyncSoon asks EC2 for the whole node, but not more often than its answers can be new.
func (c *controller) resyncSoon(now time.Time) {
	c.resyncBy(later(now, c.verified.Add(settleTime)))
}

// resyncBy asks EC2 for the whole node at a time, or before. In IMDS-only mode nobody asks EC2.
func (c *controller) resyncBy(at time.Time) {
	if !c.set.IMDSOnly && (c.resyncAt.IsZero() || at.Before(c.resyncAt)) {
		c.resyncAt = at
	}
}

func (c *controller) scanSoon(now time.Time) {
	if at := now.Add(settleTime); !c.set.NoProvisioning && (c.scanAt.IsZero() || at.Before(c.scanAt)) {
		c.scanAt = at
	}
}

func (c *controller) observeIfDue(now time.Time) {
	if c.observing == 0 && !c.resyncAt.IsZero() && !now.Before(c.resyncAt) {
		op := c.newOp(opObserve, stageCall, now)
		op.method = callDescribe
		c.observing = op.id
		c.begin(op, now)
	}
	if c.scanning == 0 && c.synced() && !c.scanAt.IsZero() && !now.Before(c.scanAt) {
		op := c.newOp(opObserve, stageCall, now)
		op.method = callDescribeByTag
		c.scanning = op.id
		c.begin(op, now)
	}
}

func (c *controller) observeStep(op *operation, ev evCalled, now time.Time) {
	delete(c.ops, op.id)
	switch op.method {
	case callDescribeByTag:
		c.scanned(op, ev, now)
		return
	case callPools, callMetadata:
		c.walked(ev, now)
		return
	}
	c.observing = 0
	if ev.err != nil {
		c.observeNo++
		wait := c.backoff(c.observeNo, retryFirst, retryLong)
		c.blind = awsutils.Classify(ev.err) == awsutils.Denied
		if c.blind {
			wait = retryDenied
		}
		c.resyncAt = now.Add(wait)
		if !c.journalAt.IsZero() {
			c.adoptJournal(now)
		}
		return
	}
	c.blind = false
	c.observeNo, c.resyncAt, c.journalAt, c.graceAt = 0, time.Time{}, time.Time{}, time.Time{}
	c.counters.Resyncs++
	first := !c.synced()
	c.verified = now
	c.adopt(ev.enis, op.since, now)
	c.explain(ev.enis, op.since, now)
	if first {
		// Addresses went on and off ENIs under these; the Describe has said how that ended.
		c.inherited = slices.DeleteFunc(c.inherited, func(i checkpoint.Intent) bool {
			return i.Kind == opAssign || i.Kind == opUnassign
		})
		c.unsaved = true
	}
}

// tooFresh tells whether EC2's answer may be from before this node's last change of the ENI.
func (e *iface) tooFresh(issued, now time.Time) bool {
	return e.touched.After(issued) || now.Sub(e.touched) < settleTime
}

// adopt makes the picture agree with what EC2 says the instance has.
func (c *controller) adopt(enis []awsutils.ENI, issued, now time.Time) {
	// First what is gone: it may be on another ENI by now.
	c.dropGone(enis, issued, now)
	for _, d := range enis {
		e := c.enis[d.ID]
		if e != nil && e.AttachmentID == "" && !c.removing(e) { // known from the journal only
			c.describe(e, d, now)
		}
		switch {
		case e == nil:
			c.meet(d, now)
		case e.busy != nil:
			// What becomes of it is being decided.
			if len(c.clashes) > 0 {
				c.resyncBy(now.Add(2 * settleTime))
			}
		case e.tooFresh(issued, now):
			c.resyncAt = now.Add(2 * settleTime)
		default:
			c.describe(e, d, now)
			c.compare(e, d, now)
		}
	}
}

// describe takes over what EC2 says of an ENI beside what lies on it.
func (c *controller) describe(e *iface, d awsutils.ENI, now time.Time) {
	e.AttachmentID, e.Description, e.Tags, e.Type = d.AttachmentID, d.Description, d.Tags, d.Type
	e.DeleteOnTermination = d.DeleteOnTermination
	c.protect(e, now)
}

// dropGone takes what EC2 does not list any more out of the picture: ENIs, and blocks of those that stay.
func (c *controller) dropGone(enis []awsutils.ENI, issued, now time.Time) {
	listed := map[string]*awsutils.ENI{}
	for i := range enis {
		listed[enis[i].ID] = &enis[i]
	}
	for _, e := range c.sorted() {
		d := listed[e.ID]
		switch {
		case e.busy != nil:
		case d == nil && e.tooFresh(issued, now):
			c.resyncAt = now.Add(2 * settleTime)
		case d == nil:
			c.missing(e, now)
		case e.managed && !e.tooFresh(issued, now):
			c.dropBlocks(e, *d, now)
		}
	}
}

func (c *controller) dropBlocks(e *iface, d awsutils.ENI, now time.Time) {
	want := poolOf(&d)
	for _, p := range c.store.Pool(e.ID) {
		if !slices.Contains(want, p) {
			c.vanished(e, p, now)
		}
	}
}

// meet takes in an ENI that is attached and was not known.
func (c *controller) meet(d awsutils.ENI, now time.Time) {
	for _, op := range c.ops {
		if op.kind == opCreate && op.eni == d.ID {
			return // being attached; the operation knows
		}
	}
	if _, left := c.gone[d.ID]; left || d.Card != c.card {
		return
	}
	e := &iface{ENI: d, cidr: c.subnets[d.SubnetID], managed: c.manages(d), fixed: d.Type == "efa"}
	if !e.cidr.IsValid() {
		e.cidr = d.SubnetCIDR
	}
	c.enis[d.ID] = e
	c.lagging(e, netip.Prefix{}, now)
	if c.isReady {
		c.counters.ENIsFound++
	}
	switch {
	case !e.managed:
		c.log(slog.LevelInfo, "ENI is not managed", "eni", d.ID, "device", d.Device, "type", d.Type)
	case d.Status == statusDetaching:
		c.startDelete(d.ID, "found while being detached", now)
	default:
		c.hold(e, now)
		if !e.cidr.IsValid() {
			e.notReady, e.notReadySince = "the range of subnet "+d.SubnetID+" is not known", now
			c.log(slog.LevelWarn, "ENI cannot be used yet", "eni", e.ID, "error", e.notReady)
			c.startFind(e.notReady, now)
			return
		}
		c.protect(e, now)
		if d.Status == statusAttaching {
			c.startLink(e, now)
			return
		}
		e.link, c.applyAt = true, time.Time{}
	}
}

// manages tells whether an ENI is the CNI's to use.
func (c *controller) manages(d awsutils.ENI) bool {
	if d.ID == c.id.PrimaryENI || c.set.IMDSOnly { // IMDS knows neither type nor tags
		return true
	}
	if d.Type != "" && d.Type != "interface" && d.Type != "efa" {
		return false
	}
	if v, ok := d.Tags[tagNoManage]; ok {
		return v != "true"
	}
	return d.Tags[tagInstance] == c.id.InstanceID || !c.set.IgnoreUntagged
}

// own tells whether this node (in this or an earlier life) created an ENI.
func (c *controller) own(d awsutils.ENI) bool {
	return d.Tags[tagInstance] == c.id.InstanceID && strings.HasPrefix(d.Description, descriptionPre)
}

// compare makes an ENI's pool what EC2 says it is. What a pod holds stays; if EC2 does not know it, nobody gets it
// after that pod.
func (c *controller) compare(e *iface, d awsutils.ENI, now time.Time) {
	if !e.managed {
		return
	}
	e.Secondary, e.Prefixes = d.Secondary, d.Prefixes
	if !e.held {
		c.hold(e, now)
		return
	}
	if e.lost {
		c.found(e)
	}
	c.dropBlocks(e, d, now)
	have := c.store.Pool(e.ID)
	for _, p := range poolOf(&e.ENI) {
		if slices.Contains(have, p) {
			c.acquit(p, now)
			continue
		}
		c.counters.AddressesFound++
		c.addBlock(e.ID, p, now)
	}
}

// quarantine keeps the addresses of a block from being handed out, or lifts that.
func (c *controller) quarantine(p netip.Prefix, on bool, now time.Time) {
	n := 1
	if !p.IsSingleIP() {
		n = warmpool.PrefixSize
	}
	for ip := p.Addr(); n > 0; n, ip = n-1, ip.Next() {
		c.store.Quarantine(ip, on, now)
	}
}

// missing handles an ENI that EC2 does not list any more.
func (c *controller) missing(e *iface, now time.Time) {
	switch {
	case !e.managed || !e.held:
		delete(c.enis, e.ID)
	case e.lost:
		c.freeLost(e.ID, now)
	case c.store.RemoveENI(e.ID) == nil:
		c.pardon(e.ID)
		delete(c.enis, e.ID)
		c.dirty, c.unsaved = true, true
		c.counters.ENIsGone++
		c.log(slog.LevelWarn, "ENI is gone", "eni", e.ID)
	case c.store.MarkLost(e.ID) == nil:
		e.lost = true
		c.counters.ENIsLost++
		c.unsaved = true
		c.log(slog.LevelError, "ENI is gone, and pods hold its addresses", "eni", e.ID)
		c.notify(true, NoticeENILost, fmt.Sprintf("Somebody detached %s (device %d) while pods hold addresses of it: these pods have no network",
			e.ID, e.Device))
	}
	c.planBy(0, now)
}

// scanned deletes own ENIs that are attached nowhere: a life before this one was interrupted while it created or
// removed them.
func (c *controller) scanned(op *operation, ev evCalled, now time.Time) {
	c.scanning = 0
	if ev.err != nil {
		c.scanAt = now.Add(c.backoff(op.tries, retryLong, retryDenied))
		if awsutils.Classify(ev.err) == awsutils.Denied {
			c.scanAt = now.Add(retryDenied)
		}
		return
	}
	// EC2's readers may lag behind its writers: a creation begun just before this life shows up a little later.
	if slices.ContainsFunc(c.inherited, func(i checkpoint.Intent) bool { return now.Sub(i.Since) < settleTime }) {
		c.scanAt = now.Add(settleTime)
	} else {
		c.scanAt, c.inherited, c.unsaved = time.Time{}, nil, true
	}
	for _, d := range ev.enis {
		switch {
		case d.Status != statusAvailable || d.AttachmentID != "" || !c.own(d) || c.enis[d.ID] != nil:
		case c.beingCreated(d):
			c.scanAt = now.Add(retryLong)
		default:
			c.startDelete(d.ID, reasonLeftover, now)
		}
	}
}

// beingCreated tells whether an ENI may be one whose creation has no answer yet. The time of the creation is in its
// tags.
func (c *controller) beingCreated(d awsutils.ENI) bool {
	for _, op := range c.ops {
		if op.kind == opCreate && op.stage == stageCreate && op.spec.Tags[tagCreatedAt] == d.Tags[tagCreatedAt] {
			return true
		}
	}
	return false
}
