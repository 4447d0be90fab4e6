package datastore

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Assign gives a sandbox an address. A sandbox that holds one already gets the same again, as if it were new: what
// somebody says of the sandbox's past (ReleaseGone) does not count any more. ErrNoAddress says that none is usable
// now, ErrNotReady that the one it holds is on an ENI that cannot serve.
//
// The address is one that was never used or not for long, from the fullest prefix and the ENI with most pods, so that
// others become empty; if there is none, the one that has been out of cooldown for longest.
func (s *Store) Assign(key Key, meta Meta, now time.Time) (a Allocation, repeat bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.keys[key]; h != nil {
		h.time = now
		if h.addr == nil || h.addr.block.state != ready || h.addr.block.eni.phase == Discovered {
			return h.allocation(), true, fmt.Errorf("%s: %w", h.ip, ErrNotReady)
		}
		return h.allocation(), true, nil
	}
	s.advance(now)
	free := s.pick()
	if free == nil {
		return Allocation{}, false, ErrNoAddress
	}
	free.dequeue()
	h := &holding{key: key, meta: meta, ip: free.ip, time: now, addr: free}
	free.holder = h
	free.block.take()
	s.file(h)
	return h.allocation(), false, nil
}

// pick chooses the next address; it looks at ENIs and prefixes, of which there are few, never at all addresses.
func (s *Store) pick() *address {
	kinds := []func() *address{s.pickSingle, s.pickInPrefix}
	if s.prefixes {
		slices.Reverse(kinds)
	}
	for _, pick := range kinds {
		if a := pick(); a != nil {
			return a
		}
	}
	var oldest *address
	for _, e := range s.enis {
		if e.phase != Usable || e.warm.Len() == 0 {
			continue
		}
		if a := e.warm.Front().Value.(*address); oldest == nil || a.released.Before(oldest.released) {
			oldest = a
		}
	}
	return oldest
}

// pickSingle chooses a single address that was not used for long.
func (s *Store) pickSingle() *address {
	var best *eni
	for _, e := range s.enis {
		if e.phase == Usable && e.freshSingles() > 0 && (best == nil || e.assigned > best.assigned) {
			best = e
		}
	}
	if best == nil {
		return nil
	}
	if front := best.virgin.Front(); front != nil {
		b := front.Value.(*block)
		return s.touch(b, b.cidr.Addr())
	}
	for at := best.rested.Front(); at != nil; at = at.Next() {
		if a := at.Value.(*address); !a.block.isPrefix() {
			return a
		}
	}
	return nil
}

// pickInPrefix chooses an address of the fullest prefix that has one that was not used for long.
func (s *Store) pickInPrefix() *address {
	var best *block
	for _, e := range s.enis {
		if e.phase != Usable {
			continue
		}
		for _, b := range e.prefixes.blocks {
			if b.freshCount() > 0 && (best == nil || b.assigned > best.assigned ||
				b.assigned == best.assigned && e.assigned > best.eni.assigned) {
				best = b
			}
		}
	}
	if best == nil {
		return nil
	}
	if best.untouched() > 0 {
		for s.addrs[best.next] != nil {
			best.next = best.next.Next()
		}
		return s.touch(best, best.next)
	}
	var oldest *address
	for _, a := range best.touched {
		if a.queue == best.eni.rested && (oldest == nil || a.released.Before(oldest.released)) {
			oldest = a
		}
	}
	return oldest
}

// Release takes a sandbox's address back; it cools before it is handed out again. A sandbox that holds none ends in
// ErrUnknownPod.
func (s *Store) Release(key Key, now time.Time) (Allocation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.find(key)
	if h == nil {
		return Allocation{}, ErrUnknownPod
	}
	s.drop(h, now, now)
	return h.allocation(), nil
}

// ReleaseGone takes back the address of a sandbox that is gone since a time in the past; it has been cooling since
// then. A sandbox that holds none, or has asked for it later than that, ends in ErrUnknownPod.
func (s *Store) ReleaseGone(key Key, gone, now time.Time) (Allocation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.find(key)
	if h == nil || h.time.After(gone) {
		return Allocation{}, ErrUnknownPod
	}
	if gone.After(now) {
		gone = now
	}
	s.drop(h, gone, now)
	return h.allocation(), nil
}

// Undo takes an address back that its sandbox never got: it was not used, so it does not cool.
func (s *Store) Undo(key Key, now time.Time) (Allocation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.find(key)
	if h == nil {
		return Allocation{}, ErrUnknownPod
	}
	s.drop(h, time.Time{}, now)
	return h.allocation(), nil
}

// find looks a sandbox up, under its own name or the one that allocations from before allocation keys carry.
func (s *Store) find(key Key) *holding {
	if h := s.keys[key]; h != nil {
		return h
	}
	return s.keys[Key{NetworkName: migratedNetwork, ContainerID: key.ContainerID, IfName: migratedIfName}]
}

// drop ends a holding. The address cools from released on; the zero time says that it was not used.
func (s *Store) drop(h *holding, released, now time.Time) {
	s.unfile(h)
	if h.addr == nil {
		delete(s.unplaced, h.ip)
		if !released.IsZero() {
			s.memory[h.ip] = released
		}
		return
	}
	a := h.addr
	a.holder = nil
	a.block.untake()
	if !released.IsZero() {
		a.released = released
	}
	s.enqueue(a, now)
}

// Reinstate gives an address back to the sandbox it was released from, because the release could not be made durable.
func (s *Store) Reinstate(a Allocation) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hold(a)
}

// Restore takes allocations from an earlier life of the process. One whose address is not known is kept aside until
// the address appears. Of two for the same address or sandbox the older one stays; the others are returned.
func (s *Store) Restore(allocs []Allocation) (rejected []Allocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	allocs = slices.Clone(allocs)
	slices.SortStableFunc(allocs, func(x, y Allocation) int { return x.Time.Compare(y.Time) })
	for _, a := range allocs {
		if s.hold(a) != nil {
			rejected = append(rejected, a)
		}
	}
	return rejected
}

// RestoreCooling remembers that an address was released and may not be handed out before until.
func (s *Store) RestoreCooling(ip netip.Addr, until, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	released := until.Add(-s.cooldown)
	if released.After(now) {
		released = now
	}
	b := s.blockOf(ip)
	if b == nil {
		s.memory[ip] = released
		return
	}
	a := s.touch(b, ip)
	if a.holder != nil {
		return
	}
	a.dequeue()
	a.released = released
	s.enqueue(a, now)
}

// hold makes a sandbox the holder of a given address.
func (s *Store) hold(a Allocation) error {
	if s.keys[a.Key] != nil {
		return fmt.Errorf("sandbox %s: %w", a.ContainerID, ErrExists)
	}
	if !a.Address.IsValid() {
		return fmt.Errorf("sandbox %s has no address", a.ContainerID)
	}
	h := &holding{key: a.Key, meta: a.Meta, ip: a.Address, time: a.Time}
	b := s.blockOf(a.Address)
	if b == nil {
		if s.unplaced[a.Address] != nil {
			return fmt.Errorf("%s: %w", a.Address, ErrInUse)
		}
		s.unplaced[a.Address] = h
		s.file(h)
		return nil
	}
	at := s.touch(b, a.Address)
	if at.holder != nil {
		return fmt.Errorf("%s: %w", a.Address, ErrInUse)
	}
	at.dequeue()
	at.holder, h.addr = h, at
	b.take()
	s.file(h)
	return nil
}

// file and unfile keep the indexes of what is held.
func (s *Store) file(h *holding) {
	s.keys[h.key] = h
	at, _ := slices.BinarySearchFunc(s.held, h.ip, compareToAddr)
	s.held = slices.Insert(s.held, at, h)
}

func (s *Store) unfile(h *holding) {
	delete(s.keys, h.key)
	if at, found := slices.BinarySearchFunc(s.held, h.ip, compareToAddr); found {
		s.held = slices.Delete(s.held, at, at+1)
	}
}

func compareToAddr(h *holding, ip netip.Addr) int { return h.ip.Compare(ip) }

// Lookup returns what a sandbox holds.
func (s *Store) Lookup(key Key) (Allocation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.find(key)
	if h == nil {
		return Allocation{}, false
	}
	return h.allocation(), true
}

// record is the holding as a value of its own, the same one until the holding changes.
func (h *holding) record() *Allocation {
	eni := ""
	if h.addr != nil {
		eni = h.addr.block.eni.ID
	}
	if h.last == nil || h.last.ENI != eni || !h.last.Time.Equal(h.time) {
		a := h.allocation()
		h.last = &a
	}
	return h.last
}

func (h *holding) allocation() Allocation {
	a := Allocation{Key: h.key, Meta: h.meta, Address: h.ip, Time: h.time, Device: -1}
	if h.addr != nil {
		e := h.addr.block.eni
		a.ENI, a.Device, a.Card = e.ID, e.Device, e.Card
	}
	return a
}
