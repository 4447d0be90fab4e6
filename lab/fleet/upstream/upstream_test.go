package upstream_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"vpccni/lab/fleet/upstream"
)

var now = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// pool makes a store with one ENI of n addresses, or prefixes, of which so many addresses are assigned.
func pool(t *testing.T, prefixes bool, blocks, assigned int) *upstream.Store {
	t.Helper()
	s := upstream.NewStore(30*time.Second, rand.New(rand.NewPCG(1, 2)))
	s.AddENI("eni-1", true, now.Add(-time.Hour))
	fill(s, "eni-1", 0, prefixes, blocks)
	for i := range assigned {
		if _, err := s.Assign(fmt.Sprintf("pod-%d", i), prefixes, now); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func fill(s *upstream.Store, eni string, net byte, prefixes bool, blocks int) {
	for i := range blocks {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, net, byte(i)}), 32)
		if prefixes {
			p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, net, byte(16 * i)}), 28)
		}
		s.AddBlocks(eni, p)
	}
}

func TestTooLow(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name             string
		blocks, assigned int
		t                upstream.Targets
		low              bool
	}{
		{"empty, E=1", 0, 0, upstream.Targets{WarmENI: 1, Slots: 14}, true},
		{"empty, E=0", 0, 0, upstream.Targets{Slots: 14}, true},
		{"empty, W=3", 0, 0, upstream.Targets{WarmIP: 3, Slots: 14}, true},
		{"3 free, W=1", 3, 0, upstream.Targets{WarmIP: 1, Slots: 14}, false},
		{"1 of 3 used, E=1", 3, 1, upstream.Targets{WarmENI: 1, Slots: 3}, true},
		{"1 of 3 used, E=0", 3, 1, upstream.Targets{Slots: 3}, false},
		{"3 of 3 used, E=1", 3, 3, upstream.Targets{WarmENI: 1, Slots: 3}, true},
		{"3 of 3 used, E=0", 3, 3, upstream.Targets{Slots: 3}, true},
		{"3 of 3 used, W=5, max-pods 3", 3, 3, upstream.Targets{WarmIP: 5, MaxPods: 3, Slots: 3}, false},
		{"prefixes: empty, X=1", 0, 0, upstream.Targets{Prefixes: true, WarmPrefix: 1, Slots: 16}, true},
		{"prefixes: empty, X=0", 0, 0, upstream.Targets{Prefixes: true, Slots: 16}, true},
		{"prefixes: one free, X=1", 1, 0, upstream.Targets{Prefixes: true, WarmPrefix: 1, Slots: 16}, false},
		{"prefixes: 1 used, X=1", 1, 1, upstream.Targets{Prefixes: true, WarmPrefix: 1, Slots: 16}, true},
		{"prefixes: 1 used, X=0", 1, 1, upstream.Targets{Prefixes: true, Slots: 16}, false},
		{"prefixes: 3 used, max-pods 4", 1, 3, upstream.Targets{Prefixes: true, WarmPrefix: 1, MaxPods: 4, Slots: 16}, false},
	} {
		if got := x.t.TooLow(pool(t, x.t.Prefixes, x.blocks, x.assigned).Stats(x.t.Prefixes)); got != x.low {
			t.Errorf("%s: too low is %v", x.name, got)
		}
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		prefixes            bool
		blocks, short, over int
	}{
		{false, 0, 5, 0}, {false, 2, 3, 0}, {false, 5, 0, 0},
		{true, 0, 1, 0}, {true, 2, 0, 1}, {true, 1, 0, 0},
	} {
		target := upstream.Targets{WarmIP: 5, Prefixes: x.prefixes, Slots: 14}
		short, over, enabled := target.Target(pool(t, x.prefixes, x.blocks, 0).Stats(x.prefixes))
		if short != x.short || over != x.over || !enabled {
			t.Errorf("%+v: short %d, over %d", x, short, over)
		}
	}
}

func TestWhichENIMayGo(t *testing.T) {
	t.Parallel()
	s := pool(t, false, 2, 2)
	for i, n := range []int{2, 1} {
		id := fmt.Sprintf("eni-%d", i+2)
		s.AddENI(id, false, now.Add(-time.Hour))
		fill(s, id, byte(i+1), false, n)
	}
	for _, x := range []struct {
		warm, minimum int
		goes          string
	}{{3, 1, ""}, {1, 5, ""}, {2, 4, "eni-3"}, {0, 3, ""}, {0, 2, "eni-2"}} {
		if got, _ := s.TakeENI(upstream.Targets{WarmIP: x.warm, MinimumIP: x.minimum, Slots: 14}, now); got != x.goes {
			t.Errorf("WARM_IP_TARGET=%d MINIMUM_IP_TARGET=%d: %q goes, want %q", x.warm, x.minimum, got, x.goes)
		}
	}
	e := s.AddENI("eni-9", false, now.Add(-time.Hour))
	e.Fixed = true
	if got, ok := s.TakeENI(upstream.Targets{Slots: 14}, now); ok {
		t.Errorf("%s goes, a trunk or EFA interface", got)
	}
	e.Fixed = false
	if _, ok := s.TakeENI(upstream.Targets{Slots: 14}, now); !ok {
		t.Error("an empty old ENI may go")
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	s := pool(t, false, 2, 1)
	first, err := s.Assign("pod-0", false, now)
	if st := s.Stats(false); err != nil || st.Assigned != 1 {
		t.Errorf("a repeated ADD: %s, %v, %+v", first, err, st)
	}
	if err := s.Unassign("nobody", now); err == nil || err.Error() != "datastore: unknown pod" {
		t.Errorf("DEL of an unknown pod: %v", err)
	}
	if err := s.Unassign("pod-0", now); err != nil {
		t.Fatal(err)
	}
	// Cooling addresses count as available, and are not given out.
	if st := s.Stats(false); st.Available() != 2 {
		t.Errorf("%+v", st)
	}
	later := now.Add(10 * time.Second)
	if ip, err := s.Assign("pod-1", false, later); err != nil || ip == first {
		t.Errorf("%s, %v", ip, err)
	}
	if _, err := s.Assign("pod-2", false, later); !errors.Is(err, upstream.ErrNoAddress) {
		t.Errorf("a cooling address was given out: %v", err)
	}
	// They are given back to EC2 before they have cooled.
	got := s.TakeFree(5, false, later)
	if len(got) != 1 || len(got[0].Blocks) != 1 || got[0].Blocks[0].Addr() != first || got[0].Cut != 20*time.Second {
		t.Errorf("returned %+v", got)
	}
}
