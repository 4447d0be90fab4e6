package conntrack

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
)

// Times of the sweeps.
const (
	// fold is how long a release waits for others to share its sweep.
	fold = 10 * time.Millisecond
	// lastLook is how long before the end of an address's cooldown the second sweep is, and settle how long after its
	// release at least: by then the plugin has taken its routes away, and nothing can make connections any more.
	lastLook = 2 * time.Second
	settle   = 2 * time.Second
	// sweepTimeout bounds one sweep, and retry is the time before one that failed is tried again.
	sweepTimeout = 10 * time.Second
	retry        = time.Second
	// rest is how many times as long as a sweep took the next one waits: a node with very many connections and many
	// short pods spends no more than a tenth of a processor on them. Pods that wait for an address do not wait for that.
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
// again. The second time is for clients that went on after the first one, while the pod's routes were still there or not
// everybody had heard that the pod is gone. An address that is handed out before that is swept then, while nobody can
// reach it: after a short cooldown, or because its pod went while ipamd was away. Addresses that are due at the same time
// share a sweep.
type Sweeper struct {
	o     SweeperOptions
	wake  chan struct{}
	ended chan struct{} // closed when Run has returned

	mu sync.Mutex // guards what follows
	// due are the sweeps to come of each address, by time.
	due map[netip.Addr][]time.Time
	// now are the addresses of the sweep that is under way.
	now    map[netip.Addr]bool
	claims []claim
}

// claim is an address that is about to be handed out.
type claim struct {
	addr netip.Addr
	done chan struct{}
}

// NewSweeper returns a Sweeper that does nothing before Run.
func NewSweeper(o SweeperOptions) *Sweeper {
	return &Sweeper{o: o, wake: make(chan struct{}, 1), ended: make(chan struct{}), due: map[netip.Addr][]time.Time{}}
}

// Released says that an address was let go of. It cools since then, or, if since is zero, from now on. Released does not
// block.
func (s *Sweeper) Released(addr netip.Addr, since time.Time) {
	now := s.o.Clock.Now()
	if since.IsZero() || since.After(now) {
		since = now
	}
	last := since.Add(s.o.Cooldown - lastLook)
	if soonest := now.Add(settle); last.Before(soonest) {
		last = soonest
	}
	s.add(addr, now.Add(fold), last)
}

// Cooling says that an address that is nobody's may be handed out again at a time that was set in an earlier life of the
// process. The zero time is for one that may be handed out already.
func (s *Sweeper) Cooling(addr netip.Addr, until time.Time) {
	at := until.Add(-lastLook)
	if soonest := s.o.Clock.Now().Add(fold); at.Before(soonest) {
		at = soonest
	}
	s.add(addr, at)
}

func (s *Sweeper) add(addr netip.Addr, at ...time.Time) {
	s.mu.Lock()
	s.due[addr] = at
	s.mu.Unlock()
	s.signal()
}

func (s *Sweeper) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// HandOut returns once no connection of an earlier owner of the address is left, and calls off its sweeps: from then on
// its connections are the next owner's. It returns at once if the address has rested long enough. A sweep that fails,
// or takes longer than ctx, does not keep a pod from its address.
func (s *Sweeper) HandOut(ctx context.Context, addr netip.Addr) {
	s.mu.Lock()
	if s.due[addr] == nil && !s.now[addr] {
		s.mu.Unlock()
		return
	}
	delete(s.due, addr)
	c := claim{addr, make(chan struct{})}
	s.claims = append(s.claims, c)
	s.mu.Unlock()
	s.signal()
	select {
	case <-c.done:
	case <-ctx.Done():
	case <-s.ended:
	}
}

// Run sweeps until ctx ends.
func (s *Sweeper) Run(ctx context.Context) {
	defer close(s.ended)
	var resting time.Time // until then only claims count
	for ctx.Err() == nil {
		now := s.o.Clock.Now()
		addrs, claims, next := s.take(now, resting)
		if len(addrs) > 0 {
			s.sweep(ctx, addrs, claims)
			resting = s.o.Clock.Now().Add(min(rest*s.o.Clock.Since(now), maxRest))
			continue
		}
		s.wait(ctx, now, next)
	}
}

// wait returns at a time, when something is added, or when ctx ends. The zero time never comes.
func (s *Sweeper) wait(ctx context.Context, now, until time.Time) {
	var expired <-chan time.Time
	if !until.IsZero() {
		timer := s.o.Clock.NewTimer(until.Sub(now))
		defer timer.Stop()
		expired = timer.Chan()
	}
	select {
	case <-ctx.Done():
	case <-s.wake:
	case <-expired:
	}
}

// take removes what is due, and says when the next one is.
func (s *Sweeper) take(now, resting time.Time) (addrs []netip.Addr, claims []claim, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	claims, s.claims = s.claims, nil
	s.now = map[netip.Addr]bool{}
	for _, c := range claims {
		s.now[c.addr] = true
	}
	for addr, at := range s.due {
		first := at[0]
		if len(claims) == 0 && first.Before(resting) {
			first = resting
		}
		if now.Before(first) {
			if next.IsZero() || first.Before(next) {
				next = first
			}
			continue
		}
		s.now[addr] = true
		if s.due[addr] = at[1:]; len(at) == 1 {
			delete(s.due, addr)
		}
	}
	return slices.SortedFunc(maps.Keys(s.now), netip.Addr.Compare), claims, next
}

func (s *Sweeper) sweep(ctx context.Context, addrs []netip.Addr, claims []claim) {
	began := s.o.Clock.Now()
	limited, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	n, err := s.o.Forget(limited, addrs)
	switch {
	case err != nil && ctx.Err() == nil:
		s.o.Log.Warn("connections of released addresses not forgotten", "addresses", len(addrs), "error", err)
	case n > 0:
		s.o.Log.Debug("connections of released addresses forgotten", "addresses", len(addrs), "connections", n, "took", s.o.Clock.Since(began))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range claims {
		delete(s.now, c.addr)
		close(c.done)
	}
	if err != nil {
		again := s.o.Clock.Now().Add(retry)
		for addr := range s.now {
			if !s.claimed(addr) {
				s.due[addr] = append([]time.Time{again}, s.due[addr]...)
			}
		}
	}
	s.now = nil
}

// claimed tells whether an address was asked for since its sweep began. The caller holds the mutex.
func (s *Sweeper) claimed(addr netip.Addr) bool {
	return slices.ContainsFunc(s.claims, func(c claim) bool { return c.addr == addr })
}
