package datastore

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

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
