package conntrack

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
)

// Times of the sweeps.
const (
	// fold is how long a release waits for others to share its sweep.
	fold = 10 * time.Millisecond
	// lastLook is how long before the end of an address's cooldown the second sweep is, and margin how long before it
	// it is too late: then the connections may be those of the address's next owner.
	lastLook = 2 * time.Second
	margin   = time.Second
	// sweepTimeout bounds one sweep, and retry is the time before one that failed is tried again.
	sweepTimeout = 10 * time.Second
	retry        = time.Second
	// rest is how many times as long as a sweep took the next one waits: a node with very many connections and many
	// short pods spends no more than a tenth of a processor on them.
	rest    = 9
	maxRest = 5 * time.Second
)

// SweeperOptions are what a Sweeper needs.
type SweeperOptions struct {
	// Forget deletes the connections of addresses and says how many there were.
	Forget func(context.Context, []netip.Addr) (int, error)
	// Cooldown is the time for which a released address is nobody's.
	Cooldown time.Duration
	Clock    clockwork.Clock
	Log      *slog.Logger
}

// Sweeper forgets the connections of each address twice: when it is released, and shortly before it may be handed out
// again. The second time is for clients that went on after the first one, while not everybody had heard that the pod is
// gone. Addresses that are due at the same time share a sweep.
type Sweeper struct {
	o    SweeperOptions
	wake chan struct{}

	mu  sync.Mutex // guards due
	due []sweep
}

// sweep is a look at one address, not before at and not after end.
type sweep struct {
	addr    netip.Addr
	at, end time.Time
}

// NewSweeper returns a Sweeper that does nothing before Run.
func NewSweeper(o SweeperOptions) *Sweeper {
	return &Sweeper{o: o, wake: make(chan struct{}, 1)}
}

// Released says that an address was let go of. It cools since then, or, if since is zero, from now on. Released does not
// block.
func (s *Sweeper) Released(addr netip.Addr, since time.Time) {
	now := s.o.Clock.Now()
	if since.IsZero() || since.After(now) {
		since = now
	}
	s.add(sweep{addr, now.Add(fold), since.Add(max(s.o.Cooldown-margin, fold))})
	s.Cooling(addr, since.Add(s.o.Cooldown))
}

// Cooling says that an address may be handed out again at a time that was set in an earlier life of the process.
func (s *Sweeper) Cooling(addr netip.Addr, until time.Time) {
	at := until.Add(-lastLook)
	if now := s.o.Clock.Now(); at.Before(now.Add(fold)) {
		return // released just now, or too late
	}
	s.add(sweep{addr, at, until.Add(-margin)})
}

func (s *Sweeper) add(w sweep) {
	s.mu.Lock()
	s.due = append(s.due, w)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	for ctx.Err() == nil {
		now := s.o.Clock.Now()
		addrs, next := s.take(now)
		if len(addrs) > 0 {
			s.sweep(ctx, addrs)
			s.wait(ctx, min(rest*s.o.Clock.Since(now), maxRest))
			continue
		}
		var timer clockwork.Timer
		var expired <-chan time.Time
		if !next.IsZero() {
			timer = s.o.Clock.NewTimer(next.Sub(now))
			expired = timer.Chan()
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-expired:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

func (s *Sweeper) wait(ctx context.Context, d time.Duration) {
	timer := s.o.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.Chan():
	}
}

// take removes what is due, drops what is too late, and says when the next one is due.
func (s *Sweeper) take(now time.Time) (addrs []sweep, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.due[:0]
	for _, w := range s.due {
		switch {
		case now.Before(w.at):
			rest = append(rest, w)
			if next.IsZero() || w.at.Before(next) {
				next = w.at
			}
		case !now.After(w.end):
			addrs = append(addrs, w)
		}
	}
	clear(s.due[len(rest):])
	s.due = rest
	return addrs, next
}

func (s *Sweeper) sweep(ctx context.Context, due []sweep) {
	addrs := make([]netip.Addr, len(due))
	for i, w := range due {
		addrs[i] = w.addr
	}
	began := s.o.Clock.Now()
	limited, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	n, err := s.o.Forget(limited, addrs)
	switch {
	case err != nil && ctx.Err() == nil:
		s.o.Log.Warn("connections of released addresses not forgotten", "addresses", len(addrs), "error", err)
		for _, w := range due {
			w.at = s.o.Clock.Now().Add(retry)
			s.add(w)
		}
	case n > 0:
		s.o.Log.Debug("connections of released addresses forgotten", "addresses", len(addrs), "connections", n, "took", s.o.Clock.Since(began))
	}
}
