package datastore

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// model is the ledger written down as simply as possible: one list of addresses, looked through each time.
type model struct {
	addrs map[netip.Addr]*modelAddr
	keys  map[Key]netip.Addr
	phase map[string]Phase
}

type modelAddr struct {
	eni         string
	state       blockState
	holder      *Key
	released    time.Time
	asked       time.Time // by its holder
	quarantined bool
}

func (m *model) assigned(eni string) int {
	n := 0
	for _, a := range m.addrs {
		if a.eni == eni && a.holder != nil {
			n++
		}
	}
	return n
}

// choices are the addresses that the next Assign may pick.
func (m *model) choices(now time.Time) map[netip.Addr]bool {
	fresh, warm := map[netip.Addr]*modelAddr{}, map[netip.Addr]*modelAddr{}
	for ip, a := range m.addrs {
		if m.phase[a.eni] != Usable || a.state != ready || a.holder != nil || a.quarantined {
			continue
		}
		switch idle := now.Sub(a.released); {
		case a.released.IsZero(), idle >= DefaultRest:
			fresh[ip] = a
		case idle >= 30*time.Second:
			warm[ip] = a
		}
	}
	out := map[netip.Addr]bool{}
	most := -1
	for _, a := range fresh {
		most = max(most, m.assigned(a.eni))
	}
	for ip, a := range fresh {
		if m.assigned(a.eni) == most {
			out[ip] = true
		}
	}
	if len(out) > 0 {
		return out
	}
	var oldest time.Time
	for _, a := range warm {
		if oldest.IsZero() || a.released.Before(oldest) {
			oldest = a.released
		}
	}
	for ip, a := range warm {
		if a.released.Equal(oldest) {
			out[ip] = true
		}
	}
	return out
}

var (
	operations = flag.Int("operations", 20_000, "how many random operations")
	firstSeed  = flag.Uint64("seed", 0, "seed of the first sequence of operations; 0: any")
)

// sequences are the seeds of as many sequences of random operations as -operations asks for.
func sequences(t *testing.T, steps int) []uint64 {
	base := rand.Uint64()
	if *firstSeed != 0 {
		base = *firstSeed
	}
	n := max((*operations+steps-1)/steps, 1)
	t.Logf("%d operations, first seed %d", n*steps, base)
	seeds := make([]uint64, n)
	for i := range seeds {
		seeds[i] = base + uint64(i)
	}
	return seeds
}

// TestAgainstModel runs random operations against the ledger and the model.
func TestAgainstModel(t *testing.T) {
	t.Parallel()
	const steps = 2500
	for _, seed := range sequences(t, steps) {
		runModel(t, seed, steps)
	}
}

func runModel(t *testing.T, seed uint64, steps int) {
	r := rand.New(rand.NewPCG(seed, 7))
	now := t0
	s := New(30*time.Second, 0)
	m := &model{addrs: map[netip.Addr]*modelAddr{}, keys: map[Key]netip.Addr{}, phase: map[string]Phase{}}
	memory := map[netip.Addr]time.Time{}
	enis := []string{"eni-0", "eni-1", "eni-2", "eni-3"}
	addr := func(e int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(e), byte(10 + r.IntN(8))}) }
	keyOf := func() Key { return key(r.IntN(24)) }
	forget := func(ip netip.Addr) {
		if a := m.addrs[ip]; !a.released.IsZero() {
			memory[ip] = a.released
		}
		delete(m.addrs, ip)
	}
	for step := range steps {
		now = now.Add(time.Duration(r.IntN(12)) * time.Second)
		e := r.IntN(len(enis))
		id := enis[e]
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, step %d: %s", seed, step, fmt.Sprintf(format, args...))
		}
		switch op := r.IntN(16); op {
		case 0:
			err := s.AddENI(ENI{ID: id, Device: e, Primary: e == 0, Address: netip.AddrFrom4([4]byte{10, 0, byte(e), 1})})
			if _, known := m.phase[id]; known != (err != nil) {
				fail("AddENI: %v", err)
			}
			if err == nil {
				m.phase[id] = Discovered
			}
		case 1, 2:
			_ = s.SetPhase(id, Wired)
			_ = s.SetPhase(id, Usable)
			if p := m.phase[id]; p == Discovered || p == Wired {
				m.phase[id] = Usable
			}
		case 3, 4:
			ip := addr(e)
			added, err := s.AddBlock(id, single(ip), now)
			_, known := m.phase[id]
			if want := known && m.addrs[ip] == nil; added != want || (err != nil) != !known {
				fail("AddBlock %s: %v %v, want %v", ip, added, err, want)
			}
			if added {
				a := &modelAddr{eni: id, released: memory[ip]}
				if now.Sub(a.released) > DefaultRest {
					a.released = time.Time{}
				}
				delete(memory, ip)
				m.addrs[ip] = a
			}
		case 5, 6:
			var p []netip.Prefix
			for ip, a := range m.addrs {
				if a.eni == id && a.state == arriving {
					p = append(p, single(ip))
					a.state = ready
				}
			}
			s.ReadyBlocks(id, p, now)
		case 7, 8, 9, 10:
			k := keyOf()
			choices := m.choices(now)
			a, repeat, err := s.Assign(k, Meta{}, now)
			held, holds := m.keys[k]
			switch {
			case holds && m.phase[m.addrs[held].eni] == Discovered:
				if !errors.Is(err, ErrNotReady) {
					fail("repeat on an ENI not ready: %v", err)
				}
			case holds:
				if err != nil || !repeat || a.Address != held {
					fail("repeat: %+v %v, holds %s", a, err, held)
				}
			case len(choices) == 0:
				if !errors.Is(err, ErrNoAddress) {
					fail("assigned %s, nothing is free", a.Address)
				}
			case err != nil || !choices[a.Address]:
				fail("assigned %s (%v), one of %v is due", a.Address, err, slices.Collect(maps.Keys(choices)))
			default:
				m.keys[k] = a.Address
				m.addrs[a.Address].holder = &k
			}
			if ip, holds := m.keys[k]; holds {
				m.addrs[ip].asked = now
			}
		case 11, 12:
			k := keyOf()
			undo := r.IntN(4) == 0
			f, released := s.Release, now
			held, holds := m.keys[k]
			switch {
			case undo:
				f = s.Undo
			case r.IntN(3) == 0:
				released = now.Add(-time.Duration(r.IntN(40)) * time.Second)
				f = func(k Key, now time.Time) (Allocation, error) { return s.ReleaseGone(k, released, now) }
				holds = holds && !m.addrs[held].asked.After(released)
			}
			a, err := f(k, now)
			if holds != (err == nil) || holds && a.Address != held {
				fail("release: %+v %v, holds %s", a, err, held)
			}
			if holds {
				delete(m.keys, k)
				m.addrs[held].holder = nil
				if !undo {
					m.addrs[held].released = released
				}
			}
		case 13:
			got := s.Reserve(id, false, 1+r.IntN(3), now)
			for _, p := range got {
				a := m.addrs[p.Addr()]
				if a == nil || a.eni != id || a.holder != nil || a.quarantined || a.state != ready ||
					!a.released.IsZero() && now.Sub(a.released) < 30*time.Second {
					fail("reserved %s: %+v", p, a)
				}
			}
			if len(got) == 0 || r.IntN(2) == 0 {
				s.Unreserve(id, got, now)
				break
			}
			if err := s.RemoveBlocks(id, got); err != nil {
				fail("%v", err)
			}
			for _, p := range got {
				forget(p.Addr())
			}
		case 14:
			ip, on := addr(e), r.IntN(2) == 0
			s.Quarantine(ip, on, now)
			if a := m.addrs[ip]; a != nil {
				a.quarantined = on
			}
		case 15:
			err := s.Drain(id)
			_, known := m.phase[id]
			if ok := known && e != 0 && m.assigned(id) == 0; ok != (err == nil) {
				fail("drain %s: %v", id, err)
			}
			if err == nil {
				if r.IntN(2) == 0 {
					must(t, s.SetPhase(id, Discovered))
					m.phase[id] = Discovered
					break
				}
				must(t, s.RemoveENI(id))
				delete(m.phase, id)
				for ip, a := range m.addrs {
					if a.eni == id {
						forget(ip)
					}
				}
			}
		}
		if step%10 == 0 {
			check(t, s)
		}
		if n := s.Snapshot(now).Totals(); n.Assigned != len(m.keys) || n.Total != len(m.addrs) {
			fail("%+v, the model has %d of %d assigned", n, len(m.keys), len(m.addrs))
		}
	}
}
