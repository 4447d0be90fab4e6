package ipamd

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

// The states of an ENI in EC2's words.
const (
	statusAttaching = "attaching"
	statusDetaching = "detaching"
	statusAvailable = "available"
)

// truth is what EC2 said last, and when to ask again. EC2 is asked once at start; after that the node believes its own
// confirmed changes and asks only when one went wrong.
type truth struct {
	verified  time.Time // the last full answer; zero: none yet
	resyncAt  time.Time // when to ask for the node's ENIs
	observing uint64    // the operation that asks; 0: none
	scanAt    time.Time // when to look for own ENIs that are attached nowhere
	scanning  uint64
	observeNo int // failures of asking in a row
	// gone are the ENIs that left not long ago; EC2 may still list them.
	gone      map[string]time.Time
	inherited []checkpoint.Intent
}

// synced tells whether EC2 has said what the node has. Before that the pool is served, but not changed.
func (c *controller) synced() bool { return !c.verified.IsZero() }

// start restores what the last life knew and asks EC2 for the rest.
func (c *controller) start(now time.Time) {
	var allocs []datastore.Allocation
	for _, a := range c.restored.Allocations {
		allocs = append(allocs, datastore.Allocation{
			Key:     datastore.Key{NetworkName: a.NetworkName, ContainerID: a.ContainerID, IfName: a.IfName},
			Meta:    datastore.Meta{Namespace: a.Namespace, Pod: a.Pod, Interfaces: a.Interfaces},
			Address: a.Address, Time: a.Time,
		})
	}
	for _, a := range c.store.Restore(allocs) {
		c.log(slog.LevelError, "allocation conflicts with an older one", "ip", a.Address, "container", a.ContainerID)
	}
	j := c.restored.Journal
	known := j.InstanceID == c.id.InstanceID
	if known {
		for _, x := range j.Cooling {
			c.store.RestoreCooling(x.Address, x.Until, now)
		}
		c.inherited = slices.Clone(j.Intents)
	}
	if known && len(j.ENIs) > 0 {
		c.journalAt = now.Add(journalGrace)
	}
	// An ENI between its creation and its attachment, or after its detachment, is not among the instance's. Only a
	// journal can say that there is none.
	if !known || slices.ContainsFunc(j.Intents, func(i checkpoint.Intent) bool { return i.Kind != opAssign && i.Kind != opUnassign }) {
		c.scanAt = now
	}
	c.resyncAt = now
}

// resyncSoon asks EC2 for the whole node, but not more often than its answers can be new.
func (c *controller) resyncSoon(now time.Time) {
	at := now
	if next := c.verified.Add(settleTime); at.Before(next) {
		at = next
	}
	if c.resyncAt.IsZero() || at.Before(c.resyncAt) {
		c.resyncAt = at
	}
}

func (c *controller) scanSoon(now time.Time) {
	if at := now.Add(settleTime); c.scanAt.IsZero() || at.Before(c.scanAt) {
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
	if op.method == callDescribeByTag {
		c.scanned(op, ev, now)
		return
	}
	c.observing = 0
	if ev.err != nil {
		c.observeNo++
		wait := c.backoff(c.observeNo, retryFirst, retryLong)
		if awsutils.Classify(ev.err) == awsutils.Denied {
			wait = retryDenied
		}
		c.resyncAt = now.Add(wait)
		if !c.journalAt.IsZero() {
			c.adoptJournal(now)
		}
		return
	}
	c.observeNo, c.resyncAt, c.journalAt = 0, time.Time{}, time.Time{}
	c.counters.Resyncs++
	first := !c.synced()
	c.verified = now
	c.adopt(ev.enis, op.since, now)
	if first {
		// Addresses went on and off ENIs under these; the Describe has said how that ended.
		c.inherited = slices.DeleteFunc(c.inherited, func(i checkpoint.Intent) bool {
			return i.Kind == opAssign || i.Kind == opUnassign
		})
		c.unsaved = true
	}
}

// adopt makes the picture agree with what EC2 says the instance has.
func (c *controller) adopt(enis []awsutils.ENI, issued, now time.Time) {
	tooFresh := func(e *iface) bool { return e.touched.After(issued) || now.Sub(e.touched) < settleTime }
	seen := map[string]bool{}
	for _, d := range enis {
		seen[d.ID] = true
		switch e := c.enis[d.ID]; {
		case e == nil:
			c.meet(d, now)
		case e.busy != nil:
			// What becomes of it is being decided.
		case tooFresh(e):
			c.resyncAt = now.Add(2 * settleTime)
		default:
			e.AttachmentID, e.Description, e.Tags, e.Type = d.AttachmentID, d.Description, d.Tags, d.Type
			e.DeleteOnTermination = d.DeleteOnTermination
			c.compare(e, d, now)
			c.protect(e, now)
		}
	}
	for _, e := range c.sorted() {
		if seen[e.ID] || e.busy != nil {
			continue
		}
		if tooFresh(e) {
			c.resyncAt = now.Add(2 * settleTime)
			continue
		}
		c.missing(e, now)
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
	e := &iface{ENI: d, cidr: c.subnets[d.SubnetID], managed: c.manages(d), fixed: d.Type == "efa", found: now}
	c.enis[d.ID] = e
	switch {
	case !e.managed:
		c.log(slog.LevelInfo, "ENI is not managed", "eni", d.ID, "device", d.Device, "type", d.Type)
	case d.Status == statusDetaching:
		c.startDelete(d.ID, "found while being detached", now)
	default:
		c.hold(e, now)
		if !e.cidr.IsValid() {
			e.notReady, e.notReadySince = "the range of subnet "+d.SubnetID+" is not known", now
			c.log(slog.LevelError, "ENI cannot be used", "eni", e.ID, "error", e.notReady)
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
	if d.ID == c.id.PrimaryENI {
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
	if e.lost {
		e.lost = false
		if err := c.store.SetPhase(e.ID, datastore.Discovered); err == nil {
			c.dirty, c.applyAt = true, time.Time{}
		}
	}
	want := e.pool()
	have := c.store.Pool(e.ID)
	for _, p := range want {
		if slices.Contains(have, p) {
			c.quarantine(p, false, now)
			continue
		}
		c.addBlock(e.ID, p, now)
	}
	for _, p := range have {
		if slices.Contains(want, p) {
			continue
		}
		c.dirty, c.unsaved = true, true
		if err := c.store.RemoveBlocks(e.ID, []netip.Prefix{p}); err != nil {
			c.quarantine(p, true, now)
			c.log(slog.LevelError, "a pod holds an address that EC2 does not have on this ENI", "eni", e.ID, "address", p)
			continue
		}
		c.log(slog.LevelWarn, "address is gone from the ENI", "eni", e.ID, "address", p)
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
	case !e.managed:
		delete(c.enis, e.ID)
	case e.lost:
		c.freeLost(e.ID)
	case c.store.RemoveENI(e.ID) == nil:
		delete(c.enis, e.ID)
		c.dirty, c.unsaved = true, true
		c.log(slog.LevelWarn, "ENI is gone", "eni", e.ID)
	case c.store.MarkLost(e.ID) == nil:
		e.lost = true
		c.counters.ENIsLost++
		c.unsaved = true
		c.log(slog.LevelError, "ENI is gone, and pods hold its addresses", "eni", e.ID)
	}
	c.planBy(0, now)
}

// adoptJournal serves from what the last life held, until EC2 can be asked. Nothing is brought in or given back
// before that.
func (c *controller) adoptJournal(now time.Time) {
	c.journalAt = time.Time{}
	if c.synced() {
		return
	}
	for _, h := range c.restored.Journal.ENIs {
		mac, err := net.ParseMAC(h.MAC)
		cidr := h.SubnetCIDR
		if !cidr.IsValid() {
			cidr = c.subnets[h.SubnetID]
		}
		if err != nil || !h.Address.IsValid() || !cidr.IsValid() || c.enis[h.ID] != nil {
			continue
		}
		d := awsutils.ENI{ID: h.ID, MAC: mac, Device: h.Device, Card: h.Card, SubnetID: h.SubnetID, Primary: h.Address,
			InstanceID: c.id.InstanceID, DeleteOnTermination: true}
		for _, p := range h.Pool {
			if p.IsSingleIP() {
				d.Secondary = append(d.Secondary, p.Addr())
			} else {
				d.Prefixes = append(d.Prefixes, p)
			}
		}
		e := &iface{ENI: d, cidr: cidr, managed: true, link: true, found: now}
		c.enis[h.ID] = e
		c.hold(e, now)
	}
	c.applyAt = time.Time{}
	c.log(slog.LevelWarn, "EC2 does not answer: serving from the journal", "enis", len(c.enis))
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
			c.startDelete(d.ID, "left over from an earlier life", now)
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
