package ipamd

import (
	"errors"
	"log/slog"
	"time"

	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
)

// commitRetry is the wait after a failed commit that nobody waits for.
const commitRetry = time.Second

// commits are what has to be durable before anybody hears of it. One commit is in flight at a time; whatever happens
// meanwhile shares the next one.
type commits struct {
	current *batch // in flight; nil if none is
	next    batch
	unsaved bool      // something changed that nobody waits for
	failed  bool      // the last commit failed
	notTill time.Time // after a failure: no commit before, unless a request waits
	// commitAt is when a commit that nobody waits for is due again.
	commitAt time.Time
}

// batch is who waits for a commit.
type batch struct {
	adds []*add
	dels []*del
	ops  []*operation // to begin their calls
	// undone are sandboxes whose address was taken back. Nobody waits, but a DEL of theirs would.
	undone []datastore.Key
}

// urgent tells whether a request waits for the commit.
func (b batch) urgent() bool { return len(b.adds)+len(b.dels) > 0 }

func (c *controller) commitIfDue(now time.Time) {
	c.commitAt = time.Time{}
	if c.current != nil || !c.next.urgent() && len(c.next.ops) == 0 && !c.unsaved {
		return
	}
	if !c.next.urgent() && c.failed && now.Before(c.notTill) {
		c.commitAt = c.notTill
		return
	}
	b := c.next
	c.current, c.next, c.unsaved = &b, batch{}, false
	c.emit(effCommit{})
}

// committed answers those who waited for the commit. If it failed, what they asked for is undone: nobody may hold an
// address that a restart would forget, or believe an address released that a restart would bring back.
func (c *controller) committed(err error, now time.Time) {
	b := c.current
	if b == nil {
		return
	}
	c.current, c.failed = nil, err != nil
	if err != nil {
		c.counters.CommitErrors++
		c.unsaved, c.notTill = true, now.Add(commitRetry)
		c.log(slog.LevelError, "state not durable", "error", err)
	}
	if err != nil {
		c.next.undone = append(c.next.undone, b.undone...)
	} else {
		for _, key := range b.undone {
			c.released(key)
		}
	}
	// Releases first: who hears of them has to do so before he hears that the address is another pod's.
	for _, d := range b.dels {
		c.delCommitted(d, err, now)
	}
	for _, a := range b.adds {
		c.addCommitted(a, err, now)
	}
	for _, op := range b.ops {
		switch {
		case c.ops[op.id] != op:
		case err != nil:
			// An ENI that the journal does not know of is leaked by a crash, and no pod can be given its addresses
			// while nothing can be made durable.
			c.next.ops = append(c.next.ops, op)
		default:
			c.begin(op, now)
		}
	}
}

func (c *controller) addCommitted(a *add, err error, now time.Time) {
	if c.adds[a.id] == nil {
		return // its caller went away, or a DEL came
	}
	if err == nil {
		delete(c.adds, a.id)
		c.counters.AddsServed++
		reply := c.addReply(a.alloc)
		reply.Waited, reply.Recorded = a.assigned.Sub(a.since), now.Sub(a.assigned)
		s := c.sandboxes[a.key]
		reply.Sole = a.fresh && s != nil && s.callers == 1
		c.emit(effAdd{id: a.id, reply: reply})
		return
	}
	if s := c.sandboxes[a.key]; s != nil && s.fresh && !s.delivered {
		s.fresh = false
		if _, undoErr := c.undo(a.key, now); undoErr != nil && !errors.Is(undoErr, datastore.ErrUnknownPod) {
			err = errors.Join(err, undoErr)
		}
	}
	c.refuse(a, &Refusal{CodeStorage, "the address could not be recorded: " + err.Error()})
}

// undo takes back an address that nobody got to know of. Until that is durable a crash brings it back, so a DEL has to
// wait: the runtime says it once.
func (c *controller) undo(key datastore.Key, now time.Time) (datastore.Allocation, error) {
	alloc, err := c.store.Undo(key, now)
	if err == nil {
		c.unsaved = true
		c.releasing[key]++
		c.next.undone = append(c.next.undone, key)
	}
	return alloc, err
}

// released hears that a release is durable, or that it is none.
func (c *controller) released(key datastore.Key) {
	if c.releasing[key]--; c.releasing[key] <= 0 {
		delete(c.releasing, key)
	}
}

func (c *controller) delCommitted(d *del, err error, now time.Time) {
	if !d.unknown {
		c.released(d.key)
	}
	switch {
	case err != nil:
		if !d.unknown {
			if undo := c.store.Reinstate(d.alloc); undo != nil {
				c.log(slog.LevelError, "release stays, although it is not durable", "address", d.alloc.Address, "error", undo)
			}
		}
		c.emit(effDel{id: d.id, err: &Refusal{CodeStorage, "the release could not be recorded: " + err.Error()}})
	case d.unknown:
		c.emit(effDel{id: d.id, err: datastore.ErrUnknownPod})
	default:
		reply := delReply(d.alloc)
		reply.Recorded = now.Sub(d.since)
		c.emit(effDel{id: d.id, reply: reply})
	}
}

// records are what was last handed over to be made durable.
type records struct {
	held   []*datastore.Allocation
	stored []*checkpoint.Allocation // of each
}

// update follows the ledger; what did not change is the same as before. Both lists are by address.
func (r *records) update(held []*datastore.Allocation) []*checkpoint.Allocation {
	stored := make([]*checkpoint.Allocation, len(held))
	at := 0
	for i, a := range held {
		for at < len(r.held) && r.held[at].Address.Less(a.Address) {
			at++
		}
		if at < len(r.held) && r.held[at] == a {
			stored[i] = r.stored[at]
			continue
		}
		stored[i] = &checkpoint.Allocation{
			NetworkName: a.NetworkName, ContainerID: a.ContainerID, IfName: a.IfName, Address: a.Address, Time: a.Time,
			Namespace: a.Namespace, Pod: a.Pod, Interfaces: a.Interfaces,
		}
	}
	r.held, r.stored = held, stored
	return stored
}

// durable is everything that must not be forgotten.
func (c *controller) durable(now time.Time) checkpoint.State {
	snap := c.snapshot(now)
	s := checkpoint.State{Journal: snap.Journal}
	for _, a := range snap.Allocations {
		s.Allocations = append(s.Allocations, *a)
	}
	return s
}

// snapshot is the same for the writer. What it costs grows with the changes since the last one, but for a pointer per pod.
func (c *controller) snapshot(now time.Time) checkpoint.Snapshot {
	s := checkpoint.Snapshot{Allocations: c.records.update(c.store.Held())}
	s.Journal.InstanceID = c.id.InstanceID
	for _, e := range c.sorted() {
		if !e.managed || c.removing(e) {
			continue
		}
		s.Journal.ENIs = append(s.Journal.ENIs, checkpoint.HeldENI{ID: e.ID, MAC: e.MAC.String(), Device: e.Device,
			Card: e.Card, Pool: c.store.Pool(e.ID), Address: e.Primary, SubnetID: e.SubnetID, SubnetCIDR: e.cidr,
			Doubted: c.doubtful(e)})
	}
	if !c.synced() && len(s.Journal.ENIs) == 0 && c.restored.Journal.InstanceID == c.id.InstanceID {
		// Nothing is known yet: what the last life knew is worth more.
		s.Journal.ENIs = c.restored.Journal.ENIs
	}
	for _, x := range c.store.Cooling(now) {
		s.Journal.Cooling = append(s.Journal.Cooling, checkpoint.Cooling{Address: x.Address, Until: x.Until})
	}
	s.Journal.Intents = c.intents()
	return s
}
