package ipamd

import (
	"log/slog"
	"maps"
	"slices"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/datastore"
)

// In IMDS-only mode IMDS is the truth, with patience: it is believed slowly, and what a pod holds is never taken away.
const (
	// addReads equal answers in a row bring something in; confirmAdd is between them.
	addReads   = 2
	confirmAdd = time.Second
	// goneReads answers in a row, over goneAfter, take something away; confirmGone is between them.
	goneReads   = 3
	goneAfter   = time.Minute
	confirmGone = 31 * time.Second
)

// patiencePause is how long until the next read: sooner while something has to be confirmed.
func (c *controller) patiencePause() time.Duration {
	pause := walkEvery
	for d, s := range c.doubts {
		switch {
		case d.extra && s.reads < addReads:
			return confirmAdd
		case !d.extra:
			pause = confirmGone
		}
	}
	return pause
}

// bePatient takes over what IMDS has said often enough.
func (c *controller) bePatient(now time.Time) {
	waiting := false
	for _, d := range slices.SortedFunc(maps.Keys(c.doubts), doubt.compare) {
		s, e := c.doubts[d], c.byMAC(d.mac)
		switch {
		case d.extra && s.reads < addReads:
			waiting = true
		case d.extra && e == nil:
			c.meet(c.twice(d.mac), now)
		case d.extra && !d.block.IsValid():
			c.found(e)
		case d.extra:
			c.addBlock(e.ID, d.block, now)
		case s.reads < goneReads || now.Sub(s.since) < goneAfter:
		case d.block.IsValid():
			c.vanished(e, d.block, now)
		default:
			c.missing(e, now)
		}
	}
	c.weigh(now)
	if !waiting || c.synced() {
		c.verified = now
	}
	c.planBy(0, now)
}

// twice is an ENI as the last two answers have it.
func (c *controller) twice(mac string) awsutils.ENI {
	find := func(answer []awsutils.ENI) awsutils.ENI {
		for _, x := range answer {
			if x.MAC.String() == mac {
				return x
			}
		}
		return awsutils.ENI{}
	}
	now, before := find(c.answer), find(c.before)
	now.Secondary, now.Prefixes = common(now.Secondary, before.Secondary), common(now.Prefixes, before.Prefixes)
	now.InstanceID = c.id.InstanceID
	return now
}

func common[T comparable](a, b []T) []T {
	return slices.DeleteFunc(slices.Clone(a), func(x T) bool { return !slices.Contains(b, x) })
}

// found takes back an ENI that was lost.
func (c *controller) found(e *iface) {
	e.lost = false
	if c.store.SetPhase(e.ID, datastore.Discovered) == nil {
		c.dirty, c.applyAt = true, time.Time{}
	}
	c.log(slog.LevelInfo, "lost ENI is back", "eni", e.ID)
}
