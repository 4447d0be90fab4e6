package datastore

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

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
