package ipamd

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
)

// requests are the ADDs and DELs that have no answer yet.
type requests struct {
	adds  map[uint64]*add
	queue []*add // ADDs without an address, first come first served
	// sandboxes have an ADD whose caller has not reported back.
	sandboxes map[datastore.Key]*sandbox
	// releasing counts the releases of a sandbox that are not durable yet.
	releasing map[datastore.Key]int
}

// add is an ADD without an answer.
type add struct {
	id       uint64
	req      AddRequest
	key      datastore.Key
	alloc    datastore.Allocation
	fresh    bool // it brought the address; it does not repeat an ADD
	since    time.Time
	assigned time.Time
	deadline time.Time
}

// sandbox tells whether an address may be taken back when the callers of its ADDs went away: only if an ADD of theirs
// brought it, and none of them got to know of it.
type sandbox struct {
	callers   int
	fresh     bool
	delivered bool
}

// del is a DEL that waits for its commit.
type del struct {
	id      uint64
	key     datastore.Key
	alloc   datastore.Allocation
	since   time.Time
	unknown bool // it released nothing, but an earlier DEL of the same sandbox did, or its ADD was taken back
}

func (s Sandbox) key() datastore.Key {
	return datastore.Key{NetworkName: s.NetworkName, ContainerID: s.ContainerID, IfName: s.IfName}
}

func (s Sandbox) incomplete() bool {
	return s.NetworkName == "" || s.ContainerID == "" || s.IfName == ""
}

func (c *controller) addRequested(ev evAdd, now time.Time) {
	c.counters.Adds++
	key := ev.req.key()
	a := &add{id: ev.id, req: ev.req, key: key, since: now, deadline: now.Add(c.set.AddWait)}
	if c.sandboxes[key] == nil {
		c.sandboxes[key] = &sandbox{}
	}
	c.sandboxes[key].callers++
	c.adds[a.id] = a
	switch {
	case ev.req.incomplete():
		c.refuse(a, &Refusal{CodeInvalid, "the request lacks a network name, a container id or an interface name"})
	case c.stopping:
		c.refuse(a, &Refusal{CodeShutdown, "ipamd is ending"})
	case len(c.queue) >= c.set.Queue:
		c.refuse(a, &Refusal{CodeQueueFull, fmt.Sprintf("%d pods of this node wait for an address already", len(c.queue))})
	default:
		c.queue = append(c.queue, a)
		c.serve(now)
		if slices.Contains(c.queue, a) {
			c.counters.AddsWaited++
		}
		c.planBy(foldWindow, now)
	}
}

// serve gives addresses to the ADDs that wait, first come first served. One that repeats an ADD whose address is not
// ready does not hold up those behind it.
func (c *controller) serve(now time.Time) {
	if len(c.queue) == 0 || !c.isReady {
		return
	}
	rest := c.queue[:0]
	for i, a := range c.queue {
		meta := datastore.Meta{Namespace: a.req.Namespace, Pod: a.req.Pod, Interfaces: 1}
		alloc, repeat, err := c.store.Assign(a.key, meta, now)
		if errors.Is(err, datastore.ErrNoAddress) {
			rest = append(rest, c.queue[i:]...)
			break
		}
		if err != nil {
			rest = append(rest, a)
			continue
		}
		a.alloc, a.fresh, a.assigned = alloc, !repeat, now
		if !repeat {
			c.sandboxes[a.key].fresh = true
		}
		c.next.adds = append(c.next.adds, a)
		c.planBy(foldWindow, now)
	}
	clear(c.queue[len(rest):])
	c.queue = rest
}

// refuse answers an ADD without an address.
func (c *controller) refuse(a *add, why *Refusal) {
	if c.adds[a.id] == nil {
		return
	}
	delete(c.adds, a.id)
	c.counters.AddsRefused[why.Code]++
	c.emit(effAdd{id: a.id, err: why})
	c.log(slog.LevelWarn, "no address for pod", "namespace", a.req.Namespace, "pod", a.req.Pod,
		"container", a.req.ContainerID, "code", why.Code, "reason", why.Reason)
}

// refuseAll answers every ADD that waits.
func (c *controller) refuseAll(why *Refusal) {
	for _, a := range c.queue {
		c.refuse(a, why)
	}
	c.queue = nil
}

// refuseHopeless answers the ADDs that wait for what will not come.
func (c *controller) refuseHopeless(now time.Time) {
	if len(c.queue) == 0 || !c.synced() || !c.isReady || c.set.NoProvisioning { // somebody else may bring some
		return
	}
	v, hopeless := warmpool.Hopeless(c.planState(now), c.set.Targets, c.limits, now)
	if !hopeless {
		return
	}
	code := CodeAtLimit
	switch v.Cause {
	case warmpool.CauseDenied:
		code = CodeDenied
	case warmpool.CauseExhausted, warmpool.CauseForbidden:
		code = CodeSubnetExhausted
	}
	if code == CodeAtLimit {
		c.noticeFull(v.Reason, len(c.queue), now)
	}
	c.refuseAll(&Refusal{code, v.Reason})
}

// expireAdds answers the ADDs that have waited long enough.
func (c *controller) expireAdds(now time.Time) {
	n := 0
	for n < len(c.queue) && !now.Before(c.queue[n].deadline) {
		c.refuse(c.queue[n], &Refusal{CodeWaitTimeout, fmt.Sprintf("no address within %s: %s", c.set.AddWait, c.waitingFor(now))})
		n++
	}
	c.queue = slices.Delete(c.queue, 0, n)
}

// addEnded hears that the caller of an ADD has its answer, or went away. An address that no caller got to know of goes
// back to the pool.
func (c *controller) addEnded(ev evAddEnded, now time.Time) {
	a := c.adds[ev.id]
	key := ev.key
	if a != nil {
		delete(c.adds, ev.id)
		c.queue = slices.DeleteFunc(c.queue, func(x *add) bool { return x == a })
		c.next.adds = slices.DeleteFunc(c.next.adds, func(x *add) bool { return x == a })
		c.counters.AddsRefused[CodeCancelled]++
	}
	s := c.sandboxes[key]
	if s == nil {
		return
	}
	s.callers--
	s.delivered = s.delivered || ev.delivered
	if s.callers > 0 {
		return
	}
	delete(c.sandboxes, key)
	if !s.fresh || s.delivered {
		return
	}
	c.takeBack(key, now)
}

// undelivered hears that a reply that was given reached nobody. The address goes back to the pool, unless somebody has
// asked for it since.
func (c *controller) undelivered(ev evUndelivered, now time.Time) {
	held, ok := c.store.Lookup(ev.key)
	if !ok || held.Address != ev.address || !held.Time.Equal(ev.time) || c.sandboxes[ev.key] != nil {
		return
	}
	c.takeBack(ev.key, now)
}

func (c *controller) takeBack(key datastore.Key, now time.Time) {
	alloc, err := c.undo(key, now)
	if err != nil {
		return
	}
	c.counters.Undone++
	c.planBy(foldWindow, now)
	c.log(slog.LevelInfo, "address taken back: its pod's ADD went away", "address", alloc.Address, "container", key.ContainerID)
}

func (c *controller) delRequested(ev evDel, now time.Time) {
	c.counters.Dels++
	key := ev.req.key()
	var alloc datastore.Allocation
	var err error
	if gone := ev.req.Gone; gone.IsZero() {
		alloc, err = c.releaseNow(key, now)
	} else {
		alloc, err = c.store.ReleaseGone(key, gone, now)
	}
	c.planBy(foldWindow, now)
	if err != nil {
		c.counters.DelsUnknown++
		if c.releasing[key] == 0 {
			c.emit(effDel{id: ev.id, err: err})
			return
		}
		// The address was released or taken back before, but a crash could still bring it back: the answer has to wait, too.
		c.next.dels = append(c.next.dels, &del{id: ev.id, key: key, unknown: true})
		return
	}
	c.releasing[key]++
	c.next.dels = append(c.next.dels, &del{id: ev.id, key: key, alloc: alloc, since: now})
	c.freeLost(alloc.ENI, now)
	c.freeDenied(alloc.ENI, now)
}

// releaseNow takes back what a sandbox holds, and refuses its ADDs that have no answer yet: they will not be needed.
func (c *controller) releaseNow(key datastore.Key, now time.Time) (datastore.Allocation, error) {
	var waited bool
	for _, a := range c.addsOf(key) {
		waited = true
		c.queue = slices.DeleteFunc(c.queue, func(x *add) bool { return x == a })
		c.next.adds = slices.DeleteFunc(c.next.adds, func(x *add) bool { return x == a })
		c.refuse(a, &Refusal{CodeCancelled, "a DEL of the same sandbox came first"})
	}
	release := c.store.Release
	if s := c.sandboxes[key]; s != nil {
		if waited && s.fresh && !s.delivered {
			release = c.store.Undo
		}
		s.fresh = false
	}
	return release(key, now)
}

// addsOf lists the ADDs of a sandbox that have no answer, by arrival.
func (c *controller) addsOf(key datastore.Key) []*add {
	var out []*add
	if s := c.sandboxes[key]; s == nil || s.callers == 0 {
		return nil
	}
	for _, a := range c.adds {
		if a.key == key {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, func(a, b *add) int { return int(int64(a.id) - int64(b.id)) })
	return out
}

// addReply is the answer for an allocation.
func (c *controller) addReply(a datastore.Allocation) AddReply {
	noSNAT := slices.Clone(c.vpc)
	if !c.set.Host.ExternalSNAT {
		noSNAT = append(noSNAT, c.set.Host.ExcludeSNATCIDRs...)
	}
	return AddReply{Address: a.Address, Device: a.Device, Table: names.RouteTable(a.Card, a.Device),
		ExternalSNAT: c.set.Host.ExternalSNAT, NoSNAT: noSNAT,
		PerPodRules: c.set.Host.RuleLayout == hostnet.LayoutPerPod, Time: a.Time}
}

func delReply(a datastore.Allocation) DelReply {
	r := DelReply{Address: a.Address, Device: a.Device}
	if a.ENI != "" {
		r.Table = names.RouteTable(a.Card, a.Device)
	}
	return r
}
