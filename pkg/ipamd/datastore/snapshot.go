package datastore

import (
	"net/netip"
	"slices"
	"time"
)

// Counts says what the addresses of an ENI, or of several, are doing. Total is the sum of the others.
type Counts struct {
	Total       int
	Assigned    int
	Free        int // can be handed out, if the ENI is usable
	Cooling     int
	Quarantined int
	Arriving    int // on the ENI, not yet ready on the host
	Leaving     int // on their way back to EC2
}

// Add adds up.
func (c Counts) Add(o Counts) Counts {
	return Counts{
		Total: c.Total + o.Total, Assigned: c.Assigned + o.Assigned, Free: c.Free + o.Free, Cooling: c.Cooling + o.Cooling,
		Quarantined: c.Quarantined + o.Quarantined, Arriving: c.Arriving + o.Arriving, Leaving: c.Leaving + o.Leaving,
	}
}

// ENIState is an ENI and what its addresses are doing.
type ENIState struct {
	ENI
	Phase  Phase
	Blocks int
	Counts
	// Prefixes is the part of all these that is in prefixes.
	Prefixes PrefixState
}

// PrefixState is what the prefixes of an ENI, and the addresses in them, are doing.
type PrefixState struct {
	Blocks int
	Idle   int // all of whose addresses are free
	Counts
}

// Snapshot is the ledger in figures, at one moment.
type Snapshot struct {
	ENIs []ENIState // by card, device, id
	// Unplaced counts allocations whose address is on no known ENI.
	Unplaced int
	// NextCooled is when the next address comes out of cooldown; zero if none cools.
	NextCooled time.Time
}

// Usable is the number of addresses that can be handed out now.
func (s Snapshot) Usable() int {
	n := 0
	for _, e := range s.ENIs {
		if e.Phase == Usable {
			n += e.Free
		}
	}
	return n
}

// Totals adds up all ENIs.
func (s Snapshot) Totals() Counts {
	var c Counts
	for _, e := range s.ENIs {
		c = c.Add(e.Counts)
	}
	return c
}

// Snapshot counts. Its cost grows with the number of ENIs, not of pods.
func (s *Store) Snapshot(now time.Time) Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	snap := Snapshot{Unplaced: len(s.unplaced)}
	for _, e := range s.enis {
		st := ENIState{ENI: e.ENI, Phase: e.phase, Blocks: len(e.blocks)}
		st.Assigned, st.Free, st.Cooling = e.assigned, e.free(), e.cooling.Len()
		st.Total = e.total
		st.Prefixes = e.prefixes.state()
		if e.unready > 0 || e.barred > 0 {
			e.countRest(&st.Counts)
		}
		if front := e.cooling.Front(); front != nil {
			t := front.Value.(*address).released.Add(s.cooldown)
			if snap.NextCooled.IsZero() || t.Before(snap.NextCooled) {
				snap.NextCooled = t
			}
		}
		snap.ENIs = append(snap.ENIs, st)
	}
	return snap
}

// countRest counts the addresses that are in no queue, which are few as a rule.
func (e *eni) countRest(c *Counts) {
	for _, b := range e.blocks {
		switch b.state {
		case arriving:
			c.Arriving += b.size - b.assigned
		case leaving:
			c.Leaving += b.size - b.assigned
		case ready:
			c.Quarantined += b.quarantined()
		}
	}
}

// AddressState is what an address is doing.
type AddressState string

// The states of an address.
const (
	StateAssigned    AddressState = "assigned"
	StateFree        AddressState = "free"
	StateCooling     AddressState = "cooling"
	StateQuarantined AddressState = "quarantined"
	StateArriving    AddressState = "arriving"
	StateLeaving     AddressState = "leaving"
)

// Address is one address that was ever handed out, or a block's only one.
type Address struct {
	Address  netip.Addr
	State    AddressState
	Holder   *Allocation // nil unless assigned
	Released time.Time   // when it was last released; zero if never
}

// Block is a secondary address or a prefix with those of its addresses that were ever handed out.
type Block struct {
	CIDR      netip.Prefix
	Addresses []Address // sorted
}

// ENIDetail is an ENI with everything on it.
type ENIDetail struct {
	ENIState
	Pool []Block // sorted
}

// Detail is the whole ledger, for people and for the state file.
type Detail struct {
	ENIs     []ENIDetail
	Unplaced []Allocation // by address
}

// Detail copies the whole ledger.
func (s *Store) Detail(now time.Time) Detail {
	snap := s.Snapshot(now)
	s.mu.Lock()
	defer s.mu.Unlock()
	var d Detail
	for _, st := range snap.ENIs {
		e := s.byID[st.ID]
		if e == nil {
			continue
		}
		ed := ENIDetail{ENIState: st}
		for _, b := range e.blocks {
			out := Block{CIDR: b.cidr}
			for _, a := range b.touched {
				out.Addresses = append(out.Addresses, a.describe())
			}
			if b.size == 1 && len(b.touched) == 0 {
				state := map[blockState]AddressState{arriving: StateArriving, ready: StateFree, leaving: StateLeaving}[b.state]
				out.Addresses = append(out.Addresses, Address{Address: b.cidr.Addr(), State: state})
			}
			slices.SortFunc(out.Addresses, func(x, y Address) int { return x.Address.Compare(y.Address) })
			ed.Pool = append(ed.Pool, out)
		}
		slices.SortFunc(ed.Pool, func(x, y Block) int { return x.CIDR.Compare(y.CIDR) })
		d.ENIs = append(d.ENIs, ed)
	}
	for _, h := range s.held {
		if h.addr == nil {
			d.Unplaced = append(d.Unplaced, h.allocation())
		}
	}
	return d
}

func (a *address) describe() Address {
	out := Address{Address: a.ip, Released: a.released}
	switch {
	case a.holder != nil:
		h := a.holder.allocation()
		out.State, out.Holder = StateAssigned, &h
	case a.block.state == leaving:
		out.State = StateLeaving
	case a.block.state == arriving:
		out.State = StateArriving
	case a.quarantined:
		out.State = StateQuarantined
	case a.queue == a.block.eni.cooling:
		out.State = StateCooling
	default:
		out.State = StateFree
	}
	return out
}

// Allocations lists who holds what, by address.
func (s *Store) Allocations() []Allocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Allocation, len(s.held))
	for i, h := range s.held {
		all[i] = h.allocation()
	}
	return all
}

// Held lists who holds what, by address. What the pointers point to never changes: a holding that did not change since
// the last time is the same pointer again.
func (s *Store) Held() []*Allocation {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*Allocation, len(s.held))
	for i, h := range s.held {
		all[i] = h.record()
	}
	return all
}

// Pool lists the blocks of an ENI, sorted. The slice is never changed by anybody; it is the same one until the pool
// changes.
func (s *Store) Pool(id string) []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	if e == nil {
		return nil
	}
	return e.pool
}

// Cooling is an address that may not be handed out before Until.
type Cooling struct {
	Address netip.Addr
	Until   time.Time
}

// Cooling lists what cools at the moment, in the pool or out of it, by address.
func (s *Store) Cooling(now time.Time) []Cooling {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Cooling
	add := func(ip netip.Addr, released time.Time) {
		if until := released.Add(s.cooldown); !released.IsZero() && until.After(now) {
			out = append(out, Cooling{ip, until})
		}
	}
	for ip, released := range s.memory {
		add(ip, released)
	}
	for _, e := range s.enis {
		for at := e.cooling.Front(); at != nil; at = at.Next() {
			a := at.Value.(*address)
			add(a.ip, a.released)
		}
		if e.unready == 0 {
			continue
		}
		for _, b := range e.blocks {
			if b.state == ready {
				continue
			}
			for _, a := range b.touched {
				if a.holder == nil {
					add(a.ip, a.released)
				}
			}
		}
	}
	slices.SortFunc(out, func(x, y Cooling) int { return x.Address.Compare(y.Address) })
	return out
}
