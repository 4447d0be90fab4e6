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

func TestAddressesAreSweptTwiceAndTogether(t *testing.T) {
	t.Parallel()
	s := newSweeps(t)
	s.Released(gone, time.Time{})
	s.Released(stays, time.Time{})
	s.Cooling(third, s.clock.Now().Add(5*time.Second))
	s.Cooling(outside, s.clock.Now().Add(time.Second)) // too late
	s.run(t)
	for i, want := range [][]netip.Addr{{gone, stays}, {third}, {gone, stays}} {
		if _, got := s.next(t); !slices.Equal(got, want) {
			t.Errorf("sweep %d is for %v, want %v", i, got, want)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) != 0 {
		t.Errorf("due: %v", s.due)
	}
}

func TestAFailedSweepIsRepeatedAndALateOneIsNot(t *testing.T) {
	t.Parallel()
	s := newSweeps(t)
	s.fail <- errors.New("no memory")
	s.Released(gone, time.Time{})
	s.clock.Advance(fold)
	s.run(t)
	for i := range 3 { // the failed one, its repetition, the second one
		if _, got := s.next(t); !slices.Equal(got, []netip.Addr{gone}) {
			t.Errorf("sweep %d is for %v", i, got)
		}
	}

	late := newSweeps(t)
	late.Released(gone, time.Time{})
	late.clock.Advance(29*time.Second + time.Millisecond) // stopped, or starved
	late.Released(stays, time.Time{})
	late.Released(third, late.clock.Now().Add(-29*time.Second-time.Millisecond)) // heard of late
	late.run(t)
	if _, got := late.next(t); !slices.Equal(got, []netip.Addr{stays}) {
		t.Errorf("the sweep after a pause is for %v: an address that may be another pod's", got)
	}
}
