package conntrack

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"
)

// sweeps are the calls of a Sweeper that runs on a fake clock.
type sweeps struct {
	*Sweeper
	clock *clockwork.FakeClock
	calls chan []netip.Addr
	fail  chan error
}

func newSweeps(t *testing.T) *sweeps {
	s := &sweeps{clock: clockwork.NewFakeClock(), calls: make(chan []netip.Addr), fail: make(chan error, 1)}
	s.Sweeper = NewSweeper(SweeperOptions{
		Forget: func(ctx context.Context, addrs []netip.Addr) (int, error) {
			select {
			case s.calls <- addrs:
			case <-ctx.Done():
			}
			select {
			case err := <-s.fail:
				return 0, err
			default:
				return len(addrs), nil
			}
		},
		Cooldown: 30 * time.Second, Clock: s.clock, Log: slog.New(slog.DiscardHandler),
	})
	return s
}

func (s *sweeps) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

// next moves the clock in small steps until there is a sweep, and returns the time it took and whom it was for.
func (s *sweeps) next(t *testing.T) (time.Duration, []netip.Addr) {
	t.Helper()
	began := s.clock.Now()
	deadline := time.After(time.Minute)
	for {
		select {
		case addrs := <-s.calls:
			return s.clock.Since(began).Round(time.Second), addrs
		case <-deadline:
			t.Fatal("no sweep")
		case <-time.After(2 * time.Millisecond):
			if s.clock.Since(began) < 40*time.Second {
				s.clock.Advance(100 * time.Millisecond)
			}
		}
	}
}

func (s *sweeps) want(t *testing.T, order ...[]netip.Addr) {
	t.Helper()
	for i, want := range order {
		if _, got := s.next(t); !slices.Equal(got, want) {
			t.Errorf("sweep %d is for %v, want %v", i, got, want)
		}
	}
}

func TestAddressesAreSweptTwiceAndTogether(t *testing.T) {
	t.Parallel()
	s := newSweeps(t)
	s.Released(gone, time.Time{})
	s.Released(stays, time.Time{})
	s.Cooling(third, s.clock.Now().Add(5*time.Second))
	s.Cooling(outside, time.Time{})
	s.run(t)
	s.want(t, []netip.Addr{gone, stays, outside}, []netip.Addr{third}, []netip.Addr{gone, stays})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) != 0 {
		t.Errorf("due: %v", s.due)
	}
}

func TestAFailedSweepIsRepeated(t *testing.T) {
	t.Parallel()
	s := newSweeps(t)
	s.fail <- errors.New("no memory")
	s.Released(gone, time.Time{})
	s.clock.Advance(fold)
	s.run(t)
	s.want(t, []netip.Addr{gone}, []netip.Addr{gone}, []netip.Addr{gone}) // the failed one, its repetition, the second one
}

// Heard of so late that its cooldown is over, an address is swept twice all the same.
func TestAReleaseHeardOfLate(t *testing.T) {
	t.Parallel()
	s := newSweeps(t)
	s.Released(third, s.clock.Now().Add(-time.Hour))
	s.run(t)
	s.want(t, []netip.Addr{third}, []netip.Addr{third})
}

// An address that is handed out before its time is swept first, and never again.
func TestHandOut(t *testing.T) {
	t.Parallel()
	s := newSweeps(t)
	s.Released(gone, time.Time{})
	s.Cooling(stays, s.clock.Now().Add(5*time.Second))
	s.run(t)
	given := make(chan netip.Addr)
	give := func(a netip.Addr) {
		s.HandOut(t.Context(), a)
		given <- a
	}
	go give(third) // has rested
	if a := <-given; a != third {
		t.Errorf("%s was handed out without a sweep", a)
	}
	go give(gone)
	s.want(t, []netip.Addr{gone})
	if a := <-given; a != gone {
		t.Errorf("%s was handed out", a)
	}
	s.want(t, []netip.Addr{stays}) // and not gone, which is somebody else's

	// Its only sweep is under way: it has to end first.
	s.Cooling(gone, time.Time{})
	s.clock.Advance(fold)
	s.fail <- errors.New("no memory")
	for ready := false; !ready; {
		s.mu.Lock()
		ready = s.now[gone]
		s.mu.Unlock()
	}
	go give(gone)
	for ready := false; !ready; {
		s.mu.Lock()
		ready = len(s.claims) == 1
		s.mu.Unlock()
	}
	s.want(t, []netip.Addr{gone}, []netip.Addr{gone}) // the one that fails, and the claim's
	<-given
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due)+len(s.claims) != 0 {
		t.Errorf("due: %v, %v", s.due, s.claims)
	}
}

// Nobody waits for a sweeper that has ended, or longer than the caller.
func TestHandOutEnds(t *testing.T) {
	t.Parallel()
	s := newSweeps(t)
	s.Released(gone, time.Time{})
	short, cancel := context.WithCancel(t.Context())
	cancel()
	s.HandOut(short, gone)
	s.Released(gone, time.Time{})
	s.Run(short)
	s.HandOut(t.Context(), gone)
}
