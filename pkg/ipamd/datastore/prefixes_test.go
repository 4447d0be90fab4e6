package datastore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func cidr(text string) netip.Prefix { return netip.MustParsePrefix(text) }

// withPrefixes is a ledger in prefix mode with two usable ENIs that hold the blocks given.
func withPrefixes(t *testing.T, first, second []string) *Store {
	t.Helper()
	s := New(30*time.Second, 0)
	s.PreferPrefixes()
	for i, blocks := range [][]string{first, second} {
		id := fmt.Sprintf("eni-%d", i)
		must(t, s.AddENI(ENI{ID: id, Device: i, Primary: i == 0, Address: netip.AddrFrom4([4]byte{10, 0, 99, byte(i + 1)})}))
		must(t, s.SetPhase(id, Wired))
		must(t, s.SetPhase(id, Usable))
		for _, b := range blocks {
			_, err := s.AddBlock(id, cidr(b), t0)
			must(t, err)
			s.ReadyBlocks(id, []netip.Prefix{cidr(b)}, t0)
		}
	}
	return s
}

func TestFullestPrefixFirst(t *testing.T) {
	t.Parallel()
	s := withPrefixes(t, []string{"10.0.1.0/28", "10.0.1.16/28"}, []string{"10.0.2.0/28", "10.0.3.1/32"})
	for i := range 20 {
		want := cidr("10.0.1.0/28")
		if i >= 16 {
			want = cidr("10.0.1.16/28")
		}
		if a := s.mustAssign(t, i, t0); !want.Contains(a.Address) {
			t.Fatalf("pod %d gets %s, want one of %s", i, a.Address, want)
		}
	}
	for i := range 14 { // the first prefix has 2 pods left, the second 4
		_, err := s.Release(key(i), t0)
		must(t, err)
	}
	later := t0.Add(10 * time.Minute)
	for i := range 12 {
		if a := s.mustAssign(t, 100+i, later); !cidr("10.0.1.16/28").Contains(a.Address) {
			t.Fatalf("%s is not of the fullest prefix", a.Address)
		}
	}
	if a := s.mustAssign(t, 200, later); !cidr("10.0.1.0/28").Contains(a.Address) {
		t.Errorf("%s is not of the next fullest prefix", a.Address)
	}
	for i := range 13 + 16 {
		if a := s.mustAssign(t, 300+i, later); a.Address == ip("10.0.3.1") {
			t.Error("a single address while there are prefixes")
		}
	}
	if a := s.mustAssign(t, 400, later); a.Address != ip("10.0.3.1") {
		t.Errorf("%s, and a single address is free", a.Address)
	}
	check(t, s)
}

func TestReserveKeepsPrefixesWithPodsAndCoolingAddresses(t *testing.T) {
	t.Parallel()
	s := withPrefixes(t, []string{"10.0.1.0/28", "10.0.1.16/28", "10.0.1.32/28", "10.0.9.1/32"}, nil)
	for i := range 17 {
		s.mustAssign(t, i, t0)
	}
	_, err := s.Release(key(16), t0) // cools in the second prefix
	must(t, err)
	st := s.Snapshot(t0).ENIs[0]
	if p := st.Prefixes; p.Blocks != 3 || p.Idle != 1 || p.Total != 48 || p.Assigned != 16 || p.Cooling != 1 || p.Free != 31 || st.Free != 32 {
		t.Errorf("%+v", st)
	}
	if got := s.Reserve("eni-0", true, 9, t0); !slices.Equal(got, []netip.Prefix{cidr("10.0.1.32/28")}) {
		t.Errorf("reserved %v", got)
	}
	if got := s.Reserve("eni-0", false, 9, t0); !slices.Equal(got, []netip.Prefix{cidr("10.0.9.1/32")}) {
		t.Errorf("reserved %v", got)
	}
	if got := s.Reserve("eni-0", true, 9, t0.Add(30*time.Second)); !slices.Equal(got, []netip.Prefix{cidr("10.0.1.16/28")}) {
		t.Errorf("after the cooldown %v", got)
	}
	if err := s.RemoveBlocks("eni-0", []netip.Prefix{cidr("10.0.1.0/28")}); !errors.Is(err, ErrInUse) {
		t.Errorf("a prefix with pods is removed: %v", err)
	}
	check(t, s)
}

// TestRandomPrefixes runs random operations over prefixes and single addresses of the same range, in either mode.
func TestRandomPrefixes(t *testing.T) {
	t.Parallel()
	const steps = 2000
	for _, seed := range sequences(t, steps) {
		r := rand.New(rand.NewPCG(seed, 17))
		s := withPrefixes(t, nil, nil)
		now := t0
		if r.IntN(2) == 0 {
			s.prefixes = false
		}
		held := map[Key]netip.Addr{}
		released := map[netip.Addr]time.Time{}
		random := func() netip.Prefix {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(16 * r.IntN(6))}), 28)
			if r.IntN(3) == 0 {
				p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(r.IntN(96))}), 32)
			}
			return p
		}
		for step := range steps {
			now = now.Add(time.Duration(r.IntN(8)) * time.Second)
			id, p := fmt.Sprintf("eni-%d", r.IntN(2)), random()
			switch r.IntN(8) {
			case 0, 1:
				if _, err := s.AddBlock(id, p, now); err == nil && r.IntN(4) > 0 {
					s.ReadyBlocks(id, []netip.Prefix{p}, now)
				}
			case 2, 3, 4:
				k := key(r.IntN(60))
				was, holds := held[k]
				a, _, err := s.Assign(k, Meta{}, now)
				switch {
				case holds && a.Address != was:
					t.Fatalf("seed %d, step %d: had %s, gets %s", seed, step, was, a.Address)
				case err == nil && !holds:
					if at, ok := released[a.Address]; ok && now.Sub(at) < 30*time.Second {
						t.Fatalf("seed %d, step %d: %s was released %s ago", seed, step, a.Address, now.Sub(at))
					}
					for _, ip := range held {
						if ip == a.Address {
							t.Fatalf("seed %d, step %d: %s twice", seed, step, ip)
						}
					}
					held[k] = a.Address
				}
			case 5:
				k := key(r.IntN(60))
				if a, err := s.Release(k, now); err == nil {
					released[a.Address] = now
					delete(held, k)
				}
			case 6:
				got := s.Reserve(id, r.IntN(2) == 0, 1+r.IntN(3), now)
				for _, p := range got {
					for _, ip := range held {
						if p.Contains(ip) {
							t.Fatalf("seed %d, step %d: %s of a pod is given back", seed, step, ip)
						}
					}
				}
				if r.IntN(2) == 0 {
					s.Unreserve(id, got, now)
				} else {
					must(t, s.RemoveBlocks(id, got))
				}
			case 7:
				s.Quarantine(p.Addr(), r.IntN(3) == 0, now)
			}
			if step%5 == 0 {
				check(t, s)
				for _, e := range s.Snapshot(now).ENIs {
					if c := e.Counts; c.Total != c.Assigned+c.Free+c.Cooling+c.Quarantined+c.Arriving+c.Leaving {
						t.Fatalf("seed %d, step %d: %+v", seed, step, e)
					}
				}
			}
		}
	}
}
