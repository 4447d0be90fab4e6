package datastore

import (
	"errors"
	"fmt"
	"net/netip"
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
// check verifies everything that must hold at any time.
