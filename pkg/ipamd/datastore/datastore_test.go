package datastore

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func ip(s string) netip.Addr       { return netip.MustParseAddr(s) }
func block1(s string) netip.Prefix { return netip.PrefixFrom(ip(s), ip(s).BitLen()) }

func key(n int) Key { return Key{"aws-cni", fmt.Sprintf("c%d", n), "eth0"} }

// newStore makes a ledger with usable ENIs; the first is primary. Each has its own address 10.0.<n>.1 and n addresses
// from 10.0.<n>.10 on.
func newStore(t *testing.T, counts ...int) *Store {
	t.Helper()
	s := New(30*time.Second, 0)
	for i, n := range counts {
		id := fmt.Sprintf("eni-%d", i)
		must(t, s.AddENI(ENI{ID: id, Device: i, Primary: i == 0, Address: ip(fmt.Sprintf("10.0.%d.1", i)), Since: t0}))
		var blocks []netip.Prefix
		for j := range n {
			blocks = append(blocks, block1(fmt.Sprintf("10.0.%d.%d", i, 10+j)))
		}
		for _, b := range blocks {
			if _, err := s.AddBlock(id, b, t0); err != nil {
				t.Fatal(err)
			}
		}
		must(t, s.SetPhase(id, Wired))
		must(t, s.SetPhase(id, Usable))
		s.ReadyBlocks(id, blocks, t0)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Store) mustAssign(t *testing.T, n int, at time.Time) Allocation {
	t.Helper()
	a, _, err := s.Assign(key(n), Meta{Pod: fmt.Sprint(n)}, at)
	must(t, err)
	return a
}

func TestAssignIsIdempotent(t *testing.T) {
	t.Parallel()
	s := newStore(t, 2)
	a := s.mustAssign(t, 1, t0)
	b, repeat, err := s.Assign(key(1), Meta{}, t0.Add(time.Hour))
	if !b.Time.Equal(t0.Add(time.Hour)) {
		t.Errorf("asked for again, and since %s", b.Time)
	}
	b.Time = a.Time
	if err != nil || !repeat || a != b {
		t.Errorf("%+v then %+v (repeat %v, %v)", a, b, repeat, err)
	}
	if n := s.Snapshot(t0).Totals().Assigned; n != 1 {
		t.Errorf("%d assigned", n)
	}
}

func TestOnlyUsableENIsServe(t *testing.T) {
	t.Parallel()
	s := New(0, 0)
	must(t, s.AddENI(ENI{ID: "e", Address: ip("10.0.0.1")}))
	_, err := s.AddBlock("e", block1("10.0.0.10"), t0)
	must(t, err)
	steps := []func(){
		func() {},
		func() { s.ReadyBlocks("e", []netip.Prefix{block1("10.0.0.10")}, t0) },
		func() { must(t, s.SetPhase("e", Wired)) },
	}
	for i, step := range steps {
		step()
		if _, _, err := s.Assign(key(1), Meta{}, t0); !errors.Is(err, ErrNoAddress) {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	must(t, s.SetPhase("e", Usable))
	s.mustAssign(t, 1, t0)
	must(t, s.SetPhase("e", Discovered))
	if _, _, err := s.Assign(key(1), Meta{}, t0); !errors.Is(err, ErrNotReady) {
		t.Errorf("repeat on an ENI that is not ready: %v", err)
	}
}

func TestReuseLateThenPack(t *testing.T) {
	t.Parallel()
	s := newStore(t, 2, 3)
	// Never used first, on the ENI with most pods; the primary one first when they are equal.
	first := s.mustAssign(t, 1, t0)
	if first.ENI != "eni-0" {
		t.Errorf("first on %s", first.ENI)
	}
	second := s.mustAssign(t, 2, t0)
	if second.ENI != "eni-0" {
		t.Errorf("second on %s: not packed", second.ENI)
	}
	third := s.mustAssign(t, 3, t0)
	// Released and out of cooldown, but not yet rested: the never used ones of the other ENI go first.
	_, err := s.Release(key(1), t0)
	must(t, err)
	at := t0.Add(40 * time.Second)
	fourth := s.mustAssign(t, 4, at)
	fifth := s.mustAssign(t, 5, at)
	if fourth.ENI != "eni-1" || fifth.ENI != "eni-1" {
		t.Errorf("reused %s and %s, though others were never used", fourth.Address, fifth.Address)
	}
	// Nothing else is left: the oldest out of cooldown.
	_, err = s.Release(key(3), t0.Add(time.Second))
	must(t, err)
	if sixth := s.mustAssign(t, 6, at); sixth.Address != first.Address {
		t.Errorf("got %s, want the one released first, %s (the other is %s)", sixth.Address, first.Address, third.Address)
	}
	// After 130 s it is as good as new, and packing decides again.
	_, err = s.Release(key(2), at)
	must(t, err)
	if a := s.mustAssign(t, 7, at.Add(131*time.Second)); a.Address != third.Address {
		t.Errorf("got %s, want %s on the fuller ENI", a.Address, third.Address)
	}
}

func TestCooldown(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1)
	a := s.mustAssign(t, 1, t0)
	_, err := s.Release(key(1), t0)
	must(t, err)
	snap := s.Snapshot(t0)
	if snap.Usable() != 0 || snap.Totals().Cooling != 1 || !snap.NextCooled.Equal(t0.Add(30*time.Second)) {
		t.Errorf("%+v", snap)
	}
	if _, _, err := s.Assign(key(2), Meta{}, t0.Add(29*time.Second)); !errors.Is(err, ErrNoAddress) {
		t.Errorf("cooling address handed out: %v", err)
	}
	if b := s.mustAssign(t, 2, t0.Add(30*time.Second)); b.Address != a.Address {
		t.Errorf("%s", b.Address)
	}
	// An address that its pod never got does not cool.
	_, err = s.Undo(key(2), t0.Add(31*time.Second))
	must(t, err)
	s.mustAssign(t, 3, t0.Add(31*time.Second))
}

func TestReleaseOfUnknownPod(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1)
	_, err := s.Release(key(9), t0)
	if !errors.Is(err, ErrUnknownPod) || !strings.Contains(err.Error(), "datastore: unknown pod") {
		t.Errorf("%v", err)
	}
	// An allocation from before allocation keys is found by the container alone.
	old := Key{"_migrated-from-cri", "c9", "unknown"}
	if left := s.Restore([]Allocation{{Key: old, Address: ip("10.0.0.10"), Time: t0}}); left != nil {
		t.Fatal(left)
	}
	if a, err := s.Release(key(9), t0); err != nil || a.Address != ip("10.0.0.10") {
		t.Errorf("%+v %v", a, err)
	}
}

func TestInvariantsAreEnforced(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1, 1)
	s.mustAssign(t, 1, t0)
	s.mustAssign(t, 2, t0)
	for name, err := range map[string]error{
		"remove an address with a pod":      s.RemoveBlocks("eni-1", []netip.Prefix{block1("10.0.1.10")}),
		"remove an ENI with pods":           s.RemoveENI("eni-1"),
		"drain an ENI with pods":            s.Drain("eni-1"),
		"remove the primary ENI":            s.RemoveENI("eni-0"),
		"drain the primary ENI":             s.Drain("eni-0"),
		"lose the primary ENI":              s.MarkLost("eni-0"),
		"from wired straight to draining":   s.SetPhase("eni-1", Draining),
		"an own address enters the pool":    second(s.AddBlock("eni-0", block1("10.0.1.1"), t0)),
		"a prefix with an own address":      second(s.AddBlock("eni-0", netip.MustParsePrefix("10.0.1.0/28"), t0)),
		"an address on two ENIs":            second(s.AddBlock("eni-0", block1("10.0.1.10"), t0)),
		"an ENI whose address is a pod's":   s.AddENI(ENI{ID: "eni-9", Address: ip("10.0.1.10")}),
		"an ENI twice":                      s.AddENI(ENI{ID: "eni-1"}),
		"an address for a sandbox with one": s.Reinstate(Allocation{Key: key(1), Address: ip("10.9.9.9")}),
		"an address with a pod to another":  s.Reinstate(Allocation{Key: key(7), Address: ip("10.0.1.10")}),
	} {
		if err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
	if got := s.Reserve("eni-1", false, 5, t0); got != nil {
		t.Errorf("reserved %v with a pod on it", got)
	}
	check(t, s)
}

func second(_ bool, err error) error { return err }

func TestUnplacedAllocationsBlockReuse(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1)
	stranger := ip("10.0.0.50")
	if left := s.Restore([]Allocation{
		{Key: key(1), Address: stranger, Time: t0},
		{Key: key(2), Address: stranger, Time: t0.Add(time.Second)},
		{Key: key(3), Address: ip("10.0.0.10"), Time: t0},
	}); len(left) != 1 || left[0].Key != key(2) {
		t.Fatalf("rejected %+v", left)
	}
	if n := s.Snapshot(t0).Unplaced; n != 1 {
		t.Errorf("%d unplaced", n)
	}
	if _, _, err := s.Assign(key(1), Meta{}, t0); !errors.Is(err, ErrNotReady) {
		t.Errorf("%v", err)
	}
	if n := len(s.Allocations()); n != 2 {
		t.Errorf("%d allocations to write down", n)
	}
	_, err := s.AddBlock("eni-0", block1("10.0.0.50"), t0)
	must(t, err)
	s.ReadyBlocks("eni-0", []netip.Prefix{block1("10.0.0.50")}, t0)
	if a, repeat, err := s.Assign(key(1), Meta{}, t0); err != nil || !repeat || a.ENI != "eni-0" {
		t.Errorf("%+v %v", a, err)
	}
	if _, _, err := s.Assign(key(9), Meta{}, t0); !errors.Is(err, ErrNoAddress) {
		t.Error("the address of a restored pod was handed out")
	}
	check(t, s)
}

func TestUnplacedReleasedCoolsWhenItAppears(t *testing.T) {
	t.Parallel()
	s := newStore(t, 0)
	s.Restore([]Allocation{{Key: key(1), Address: ip("10.0.0.50"), Time: t0}})
	_, err := s.Release(key(1), t0)
	must(t, err)
	_, err = s.AddBlock("eni-0", block1("10.0.0.50"), t0)
	must(t, err)
	s.ReadyBlocks("eni-0", []netip.Prefix{block1("10.0.0.50")}, t0)
	if _, _, err := s.Assign(key(2), Meta{}, t0.Add(10*time.Second)); !errors.Is(err, ErrNoAddress) {
		t.Errorf("%v", err)
	}
}

func TestAddressThatComesBackIsNotFresh(t *testing.T) {
	t.Parallel()
	s := newStore(t, 2)
	a := s.mustAssign(t, 1, t0)
	_, err := s.Release(key(1), t0)
	must(t, err)
	at := t0.Add(time.Minute)
	must(t, s.RemoveBlocks("eni-0", []netip.Prefix{single(a.Address)}))
	_, err = s.AddBlock("eni-0", single(a.Address), at)
	must(t, err)
	s.ReadyBlocks("eni-0", []netip.Prefix{single(a.Address)}, at)
	if b := s.mustAssign(t, 2, at); b.Address == a.Address {
		t.Error("an address used a minute ago went before one never used")
	}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func TestReserveAndReturn(t *testing.T) {
	t.Parallel()
	s := newStore(t, 4)
	s.mustAssign(t, 1, t0)
	s.mustAssign(t, 2, t0)
	_, err := s.Release(key(1), t0)
	must(t, err)
	got := s.Reserve("eni-0", false, 9, t0.Add(time.Second))
	if len(got) != 2 {
		t.Fatalf("reserved %v; one is held and one cools", got)
	}
	if _, _, err := s.Assign(key(3), Meta{}, t0.Add(time.Second)); !errors.Is(err, ErrNoAddress) {
		t.Error("a reserved address was handed out")
	}
	s.Unreserve("eni-0", got[:1], t0)
	must(t, s.RemoveBlocks("eni-0", got[1:]))
	s.mustAssign(t, 3, t0.Add(time.Second))
	check(t, s)
}

func TestAddressMovesWhileItsReturnIsUnanswered(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1, 0)
	got := s.Reserve("eni-0", false, 1, t0)
	if added, err := s.AddBlock("eni-1", got[0], t0); err != nil || !added {
		t.Fatalf("%v %v", added, err)
	}
	must(t, s.RemoveBlocks("eni-0", got)) // the late answer
	s.ReadyBlocks("eni-1", got, t0)
	if a := s.mustAssign(t, 1, t0); a.ENI != "eni-1" {
		t.Errorf("on %s", a.ENI)
	}
	check(t, s)
}

func TestAddressBecomesAnENIsOwnWhileItsReturnIsUnanswered(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1)
	got := s.Reserve("eni-0", false, 1, t0)
	must(t, s.AddENI(ENI{ID: "eni-1", Device: 1, Address: got[0].Addr()}))
	s.Unreserve("eni-0", got, t0)
	if _, _, err := s.Assign(key(1), Meta{}, t0); !errors.Is(err, ErrNoAddress) {
		t.Errorf("%v", err)
	}
	check(t, s)
}

func TestQuarantine(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1)
	a := s.mustAssign(t, 1, t0)
	s.Quarantine(a.Address, true, t0)
	_, err := s.Release(key(1), t0)
	must(t, err)
	at := t0.Add(time.Hour)
	if _, _, err := s.Assign(key(2), Meta{}, at); !errors.Is(err, ErrNoAddress) {
		t.Error("a quarantined address was handed out")
	}
	if n := s.Snapshot(at).Totals().Quarantined; n != 1 {
		t.Errorf("%d quarantined", n)
	}
	s.Quarantine(a.Address, false, at)
	s.mustAssign(t, 2, at)
	check(t, s)
}

func TestPrefixes(t *testing.T) {
	t.Parallel()
	s := newStore(t, 0)
	for _, p := range []string{"10.0.9.16/28", "2001:db8::/80"} {
		cidr := netip.MustParsePrefix(p)
		_, err := s.AddBlock("eni-0", cidr, t0)
		must(t, err)
	}
	s.Restore([]Allocation{{Key: key(100), Address: ip("10.0.9.16"), Time: t0}})
	s.ReadyBlocks("eni-0", []netip.Prefix{netip.MustParsePrefix("10.0.9.16/28")}, t0)
	seen := map[netip.Addr]bool{ip("10.0.9.16"): true}
	for i := range 15 {
		a := s.mustAssign(t, i, t0)
		if seen[a.Address] {
			t.Fatalf("%s twice", a.Address)
		}
		seen[a.Address] = true
	}
	if !seen[ip("10.0.9.31")] {
		t.Error("the last address of the prefix is not used")
	}
	if _, _, err := s.Assign(key(99), Meta{}, t0); !errors.Is(err, ErrNoAddress) {
		t.Errorf("a 17th: %v", err)
	}
	s.ReadyBlocks("eni-0", []netip.Prefix{netip.MustParsePrefix("2001:db8::/80")}, t0)
	if a := s.mustAssign(t, 99, t0); a.Address != ip("2001:db8::") {
		t.Errorf("first of a fresh /80 is %s", a.Address)
	}
	check(t, s)
}

func TestSnapshotSharesNothing(t *testing.T) {
	t.Parallel()
	s := newStore(t, 2)
	s.mustAssign(t, 1, t0)
	d := s.Detail(t0)
	d.ENIs[0].Pool[0].Addresses[0].Address = ip("1.2.3.4")
	d.ENIs[0].Pool[0].Addresses[0].Holder.ContainerID = "x"
	d.ENIs[0].Total = 99
	clear(d.ENIs)
	if e := s.Detail(t0); e.ENIs[0].Total != 2 || e.ENIs[0].Pool[0].Addresses[0].Holder.ContainerID != "c1" {
		t.Errorf("%+v", e)
	}
}

// checkBlock counts a block's addresses anew.
func checkBlock(t testing.TB, b *block) {
	t.Helper()
	var assigned, cooling, warm, rested, barred int
	for _, a := range b.touched {
		assigned += boolInt(a.holder != nil)
		barred += boolInt(a.quarantined)
		cooling += boolInt(a.queue == b.eni.cooling)
		warm += boolInt(a.queue == b.eni.warm)
		rested += boolInt(a.queue == b.eni.rested)
	}
	if assigned != b.assigned || cooling != b.cooling || warm != b.warm || rested != b.rested || barred != b.barred {
		t.Fatalf("%s counts %d %d %d %d %d, has %d %d %d %d %d", b.cidr, b.assigned, b.cooling, b.warm, b.rested, b.barred,
			assigned, cooling, warm, rested, barred)
	}
}

func checkPrefixes(t testing.TB, e *eni) {
	t.Helper()
	var assigned, rested, n int
	for _, b := range e.blocks {
		if b.isPrefix() {
			n, assigned, rested = n+1, assigned+b.assigned, rested+b.rested
		}
	}
	p := &e.prefixes
	sorted := slices.IsSortedFunc(p.blocks, func(x, y *block) int { return x.cidr.Compare(y.cidr) })
	if n != len(p.blocks) || assigned != p.assigned || rested != p.rested || !sorted {
		t.Fatalf("prefixes of %s: %d, %d assigned, %d rested, has %d, %d, %d", e.ID, len(p.blocks), p.assigned, p.rested, n, assigned, rested)
	}
	st := p.state()
	if st.Total != st.Assigned+st.Free+st.Cooling+st.Quarantined+st.Arriving+st.Leaving || st.Idle*16 > st.Free && st.Total < maxBlockSize {
		t.Fatalf("prefixes of %s do not add up: %+v", e.ID, st)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// check verifies everything that must hold at any time.
func check(t testing.TB, s *Store) {
	t.Helper()
	holders := map[Key]netip.Addr{}
	seen := map[netip.Addr]bool{}
	if len(s.held) != len(s.keys) || !slices.IsSortedFunc(s.held, func(x, y *holding) int { return x.ip.Compare(y.ip) }) {
		t.Fatalf("%d held, %d keys", len(s.held), len(s.keys))
	}
	for _, e := range s.enis {
		if !slices.Equal(e.pool, slices.SortedFunc(maps.Keys(e.blocks), netip.Prefix.Compare)) {
			t.Fatalf("pool of %s is %v", e.ID, e.pool)
		}
		var total, unready, barred int
		for _, b := range e.blocks {
			total += b.size
			if b.state != ready {
				unready++
			}
			barred += b.barred
			checkBlock(t, b)
		}
		checkPrefixes(t, e)
		if total != e.total || unready != e.unready || barred != e.barred {
			t.Fatalf("%s counts %d, %d, %d, has %d, %d, %d", e.ID, e.total, e.unready, e.barred, total, unready, barred)
		}
		var c struct{ assigned, queued, fresh int }
		for cidr, b := range e.blocks {
			if b.eni != e || b.cidr != cidr || cidr.Contains(e.Address) {
				t.Fatalf("block %s of %s is wrong", cidr, e.ID)
			}
			if b.state == ready {
				c.fresh += b.untouched()
			}
			for _, a := range b.touched {
				if seen[a.ip] || !cidr.Contains(a.ip) || s.addrs[a.ip] != a || a.block != b {
					t.Fatalf("address %s of %s is wrong", a.ip, e.ID)
				}
				seen[a.ip] = true
				free := a.holder == nil && !a.quarantined && b.state == ready
				if free != (a.queue != nil) {
					t.Fatalf("%s: free %v, queued %v", a.ip, free, a.queue != nil)
				}
				if free {
					c.queued++
				}
				if a.holder != nil {
					c.assigned++
					if a.holder.addr != a || s.keys[a.holder.key] != a.holder {
						t.Fatalf("holder of %s is wrong", a.ip)
					}
					holders[a.holder.key] = a.ip
				}
			}
		}
		if c.assigned != e.assigned || c.fresh != e.fresh || c.queued != e.cooling.Len()+e.warm.Len()+e.rested.Len() {
			t.Fatalf("%s counts %d/%d, has %+v", e.ID, e.assigned, e.fresh, c)
		}
		var last *address
		for at := e.warm.Front(); at != nil; at = at.Next() {
			if a := at.Value.(*address); last != nil && a.released.Before(last.released) {
				t.Fatalf("queue of %s out of order", e.ID)
			}
			last = at.Value.(*address)
		}
	}
	if len(seen) != len(s.addrs) {
		t.Fatalf("%d addresses known, %d on ENIs", len(s.addrs), len(seen))
	}
	if len(holders)+len(s.unplaced) != len(s.keys) {
		t.Fatalf("%d holders, %d unplaced, %d keys", len(holders), len(s.unplaced), len(s.keys))
	}
	for _, e := range s.Snapshot(time.Time{}).ENIs {
		if sum := e.Assigned + e.Free + e.Cooling + e.Quarantined + e.Arriving + e.Leaving; sum != e.Total {
			t.Fatalf("%s: %+v adds up to %d", e.ID, e.Counts, sum)
		}
	}
}

func BenchmarkAssignRelease(b *testing.B) {
	for _, n := range []int{100, 1000, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(30*time.Second, 0)
			for e := range 15 {
				id := fmt.Sprintf("eni-%d", e)
				_ = s.AddENI(ENI{ID: id, Device: e, Address: netip.AddrFrom4([4]byte{10, 1, byte(e), 1})})
				var blocks []netip.Prefix
				for i := range n / 15 {
					blocks = append(blocks, single(netip.AddrFrom4([4]byte{10, 2 + byte(e), byte(i >> 8), byte(i)})))
				}
				for _, p := range blocks {
					if _, err := s.AddBlock(id, p, t0); err != nil {
						b.Fatal(err)
					}
				}
				_ = s.SetPhase(id, Wired)
				_ = s.SetPhase(id, Usable)
				s.ReadyBlocks(id, blocks, t0)
			}
			keys := slices.Collect(func(yield func(Key) bool) {
				for i := range n {
					if !yield(key(i)) {
						return
					}
				}
			})
			now := t0
			b.ResetTimer()
			for i := range b.N {
				now = now.Add(time.Second)
				k := keys[i%(n/2)]
				if _, _, err := s.Assign(k, Meta{}, now); err != nil {
					b.Fatal(err)
				}
				if _, err := s.Release(k, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestReleaseGone(t *testing.T) {
	t.Parallel()
	s := newStore(t, 1)
	at := func(seconds int) time.Time { return t0.Add(time.Duration(seconds) * time.Second) }
	first := s.mustAssign(t, 1, at(10))
	if _, err := s.ReleaseGone(key(2), at(20), at(20)); !errors.Is(err, ErrUnknownPod) {
		t.Errorf("a sandbox that holds nothing: %v", err)
	}
	if _, err := s.ReleaseGone(key(1), at(9), at(20)); !errors.Is(err, ErrUnknownPod) {
		t.Errorf("gone before its address was asked for: %v", err)
	}
	// A repeated ADD makes it a new allocation.
	s.mustAssign(t, 1, at(20))
	if _, err := s.ReleaseGone(key(1), at(19), at(21)); !errors.Is(err, ErrUnknownPod) {
		t.Errorf("gone before its address was asked for again: %v", err)
	}
	if a, err := s.ReleaseGone(key(1), at(20), at(40)); err != nil || a.Address != first.Address {
		t.Errorf("released %+v, %v", a, err)
	}
	check(t, s)
	// It cools from when the sandbox went.
	if _, _, err := s.Assign(key(3), Meta{}, at(49)); !errors.Is(err, ErrNoAddress) {
		t.Errorf("assigned while it cools: %v", err)
	}
	s.mustAssign(t, 3, at(50))
	// A time to come is now.
	if _, err := s.ReleaseGone(key(3), at(500), at(60)); err != nil {
		t.Error(err)
	}
	if c := s.Cooling(at(60)); len(c) != 1 || !c[0].Until.Equal(at(90)) {
		t.Errorf("cooling: %+v", c)
	}
}

func TestReleaseGoneOfAnUnplacedAddress(t *testing.T) {
	t.Parallel()
	s := New(30*time.Second, 0)
	if rejected := s.Restore([]Allocation{{Key: key(1), Address: ip("10.0.0.10"), Time: t0}}); rejected != nil {
		t.Fatal(rejected)
	}
	_, err := s.ReleaseGone(key(1), t0.Add(10*time.Second), t0.Add(20*time.Second))
	must(t, err)
	if c := s.Cooling(t0.Add(20 * time.Second)); len(c) != 1 || !c[0].Until.Equal(t0.Add(40*time.Second)) {
		t.Errorf("cooling: %+v", c)
	}
}
