package hostnet

import (
	"context"
	"time"
)

// Two programs that undo each other's work must not keep the node busy. A repair comes at once when the last one is a
// while ago; from a streak of them on they come more and more rarely.
const (
	paceFirst  = 500 * time.Millisecond // the least time between two repairs
	paceLast   = 8 * time.Second
	streakGap  = 300 * time.Millisecond // what comes later than that after the pace would allow it is no answer to the last repair
	streakFree = 300                    // repairs of a streak that keep the first pace: two and a half minutes of it
)

// Pace spaces repairs. Its zero value has seen none.
type Pace struct {
	last   time.Time
	streak int
}

// Did notes a look at the host that ended just now, and whether there was something to repair.
func (p *Pace) Did(now time.Time, repaired bool) {
	switch {
	case !repaired:
		return
	case p.last.IsZero() || now.Sub(p.last) > p.between()+streakGap:
		p.streak = 1
	default:
		p.streak++
	}
	p.last = now
}

// Next is when the next look may be; the zero time says at once.
func (p *Pace) Next() time.Time {
	if p.last.IsZero() {
		return time.Time{}
	}
	return p.last.Add(p.between())
}

func (p *Pace) between() time.Duration {
	return min(paceFirst<<min(max(p.streak-streakFree, 0), 8), paceLast)
}

// until waits for a moment; it returns false when the context ended.
func (h *Host) until(ctx context.Context, t time.Time) bool {
	wait := t.Sub(h.clock.Now())
	if t.IsZero() || wait <= 0 {
		return ctx.Err() == nil
	}
	timer := h.clock.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.Chan():
		return true
	}
}
