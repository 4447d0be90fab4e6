package ec2

import (
	"cmp"
	"slices"
	"time"
)

// planeRetry is how long an ENI stays on its way after the Plane could not carry its arrival.
const planeRetry = time.Second

// expect notes that the ENI arrives (attached or available) at the given time, and sets a timer; the zero time means
// that it no longer does. changing must be held.
func (c *Cloud) expect(eniID string, at time.Time) {
	if at.IsZero() {
		delete(c.due, eniID)
	} else {
		c.due[eniID] = at
		c.clock.AfterFunc(at.Sub(c.clock.Now()), c.settle)
	}
	var next int64
	for _, t := range c.due {
		if n := t.UnixNano(); next == 0 || n < next {
			next = n
		}
	}
	c.nextDue.Store(next)
}

// settle moves on the ENIs whose time has come. Timers call it, and so does whoever is about to look: with a fake
// clock a timer's goroutine may be later than the reader.
func (c *Cloud) settle() {
	if !c.isDue() {
		return
	}
	c.changing.Lock()
	defer c.changing.Unlock()
	c.settleHeld()
}

func (c *Cloud) isDue() bool {
	next := c.nextDue.Load()
	return next != 0 && next <= c.clock.Now().UnixNano()
}

// settleHeld is settle for a holder of changing.
func (c *Cloud) settleHeld() {
	for c.isDue() {
		id := c.firstDue()
		err := c.changeHeld(func(ch *change) error {
			ch.arrive(id)
			return nil
		})
		if err != nil {
			c.log.Warn("network did not carry an ENI's arrival", "eni", id, "error", err)
			c.expect(id, c.clock.Now().Add(planeRetry))
		}
	}
}

// firstDue is the ENI that arrives first; of those at the same time the one with the lowest id.
func (c *Cloud) firstDue() string {
	return slices.MinFunc(sortedKeys(c.due), func(a, b string) int {
		return cmp.Compare(c.due[a].UnixNano(), c.due[b].UnixNano())
	})
}

// arrive ends an ENI's way in or out.
func (ch *change) arrive(id string) {
	ch.arrivals[id] = time.Time{}
	e := ch.edit(id)
	if e.Attachment.State == stateDetaching {
		e.Attachment = nil
		e.Status = statusAvailable
		return
	}
	e.Attachment.State = stateAttached
	e.Status = statusInUse
}

// startAttaching puts the ENI on the instance; it arrives at once if there is no delay.
func (ch *change) startAttaching(e *ENI, a Attachment, delay time.Duration) {
	a.State, a.Since = stateAttaching, ch.now
	e.Attachment, e.Status = &a, statusAttaching
	if delay <= 0 {
		ch.arrive(e.ID)
		return
	}
	ch.arrivals[e.ID] = ch.now.Add(delay)
}

// startDetaching takes the ENI off its instance; it is off at once if there is no delay.
func (ch *change) startDetaching(e *ENI, delay time.Duration) {
	e.Attachment.State, e.Status = stateDetaching, statusDetaching
	if delay <= 0 {
		ch.arrive(e.ID)
		return
	}
	ch.arrivals[e.ID] = ch.now.Add(delay)
}

// States of ENIs and of attachments.
const (
	statusAvailable = "available"
	statusAttaching = "attaching"
	statusInUse     = "in-use"
	statusDetaching = "detaching"

	stateAttaching = "attaching"
	stateAttached  = "attached"
	stateDetaching = "detaching"
)
