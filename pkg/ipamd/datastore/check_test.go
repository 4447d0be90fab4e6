package datastore

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"
)

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
