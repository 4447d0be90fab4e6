package datastore

import (
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// maxBlockSize caps what a block counts as. A /80 has more addresses than any node has pods.
const maxBlockSize = 1 << 16

// AddBlock puts a secondary address (/32, /128) or a prefix on an ENI. Nobody gets an address of it before
// ReadyBlocks. Allocations that waited for its addresses are placed. It reports whether the block is new.
func (s *Store) AddBlock(id string, cidr netip.Prefix, now time.Time) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	if e == nil {
		return false, fmt.Errorf("%s: %w", id, ErrUnknownENI)
	}
	if !cidr.IsValid() || cidr != cidr.Masked() {
		return false, fmt.Errorf("%s: %q is not an address or a prefix", id, cidr)
	}
	if e.blocks[cidr] != nil {
		return false, nil
	}
	for _, x := range s.enis {
		if x.Address.IsValid() && cidr.Contains(x.Address) {
			return false, fmt.Errorf("%s: %s contains %s, which %w on %s", id, cidr, x.Address, ErrPrimary, x.ID)
		}
	}
	if other := s.overlapping(cidr); other != nil && !s.left(other) {
		return false, fmt.Errorf("%s: %s overlaps %s of %s: %w", id, cidr, other.cidr, other.eni.ID, ErrExists)
	}
	b := &block{cidr: cidr, eni: e, size: blockSize(cidr), next: cidr.Addr()}
	e.blocks[cidr] = b
	at, _ := slices.BinarySearchFunc(e.pool, cidr, netip.Prefix.Compare)
	e.pool = slices.Insert(slices.Clone(e.pool), at, cidr)
	e.total += b.size
	e.unready++
	if b.isPrefix() {
		e.prefixes.add(b)
	}
	s.recall(b, now)
	return true, nil
}

// overlapping finds a block that shares an address with cidr. It asks for each address rather than each block while
// that is cheaper, which it is for everything but IPv6 prefixes.
func (s *Store) overlapping(cidr netip.Prefix) *block {
	if blockSize(cidr) < maxBlockSize {
		for ip := cidr.Addr(); cidr.Contains(ip); ip = ip.Next() {
			if b := s.blockOf(ip); b != nil {
				return b
			}
		}
		return nil
	}
	for _, e := range s.enis {
		for _, b := range e.blocks {
			if b.cidr.Overlaps(cidr) {
				return b
			}
		}
	}
	return nil
}

// left drops a block that is on its way back to EC2 and turns up elsewhere: EC2 has taken it back, although that
// answer is still out.
func (s *Store) left(b *block) bool {
	if b.state != leaving {
		return false
	}
	s.forget(b)
	return true
}

func blockSize(cidr netip.Prefix) int {
	free := cidr.Addr().BitLen() - cidr.Bits()
	if free >= 16 {
		return maxBlockSize
	}
	return 1 << free
}

// recall gives a new block what is known of its addresses: allocations that wait for them, and release times.
func (s *Store) recall(b *block, now time.Time) {
	for ip, h := range s.unplaced {
		if b.cidr.Contains(ip) {
			a := s.touch(b, ip)
			a.holder, h.addr = h, a
			b.take()
			delete(s.unplaced, ip)
		}
	}
	for ip, released := range s.memory {
		if released.Add(s.rest).Before(now) {
			delete(s.memory, ip)
			continue
		}
		if b.cidr.Contains(ip) {
			s.touch(b, ip).released = released
			delete(s.memory, ip)
		}
	}
}

// touch makes the record of an address that is used for the first time.
func (s *Store) touch(b *block, ip netip.Addr) *address {
	if a := s.addrs[ip]; a != nil {
		return a
	}
	a := &address{ip: ip, block: b}
	s.addrs[ip] = a
	b.touched = append(b.touched, a)
	if b.state == ready {
		b.eni.fresh--
	}
	if b.elem != nil && b.untouched() == 0 {
		b.eni.virgin.Remove(b.elem)
		b.elem = nil
	}
	return a
}

// ReadyBlocks says that the host's network is ready for blocks of an ENI. Unknown ones are passed over.
func (s *Store) ReadyBlocks(id string, cidrs []netip.Prefix, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	if e == nil {
		return
	}
	for _, cidr := range cidrs {
		if b := e.blocks[cidr]; b != nil && b.state == arriving {
			s.open(b, now)
		}
	}
}

// open makes a block's addresses available, as far as they are free.
func (s *Store) open(b *block, now time.Time) {
	b.state = ready
	b.eni.unready--
	if n := b.untouched(); n > 0 {
		b.eni.fresh += n
		if !b.isPrefix() {
			b.elem = b.eni.virgin.PushBack(b)
		}
	}
	for _, a := range b.touched {
		s.enqueue(a, now)
	}
}

// shut takes a block's addresses off the queues.
func (s *Store) shut(b *block) {
	if b.state == ready {
		b.eni.fresh -= b.untouched()
	}
	if b.elem != nil {
		b.eni.virgin.Remove(b.elem)
		b.elem = nil
	}
	for _, a := range b.touched {
		a.dequeue()
	}
}

// Reserve picks up to n blocks of an ENI, prefixes or single addresses, that can go back to EC2: ready, with no address
// assigned, cooling or quarantined. Those that were never used go first, then those unused for longest. Nobody gets an
// address of them until Unreserve.
func (s *Store) Reserve(id string, prefixes bool, n int, now time.Time) []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance(now)
	e := s.byID[id]
	if e == nil {
		return nil
	}
	var idle []*block
	for _, b := range e.blocks {
		if b.isPrefix() == prefixes && b.idle() {
			idle = append(idle, b)
		}
	}
	slices.SortFunc(idle, func(x, y *block) int {
		if c := x.lastReleased().Compare(y.lastReleased()); c != 0 {
			return c
		}
		return y.cidr.Addr().Compare(x.cidr.Addr())
	})
	var picked []netip.Prefix
	for _, b := range idle[:min(max(n, 0), len(idle))] {
		s.shut(b)
		b.state = leaving
		b.eni.unready++
		picked = append(picked, b.cidr)
	}
	slices.SortFunc(picked, netip.Prefix.Compare)
	return picked
}

func (b *block) lastReleased() time.Time {
	var last time.Time
	for _, a := range b.touched {
		if a.released.After(last) {
			last = a.released
		}
	}
	return last
}

// Unreserve takes back what Reserve gave: EC2 did not take the blocks.
func (s *Store) Unreserve(id string, cidrs []netip.Prefix, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	if e == nil {
		return
	}
	for _, cidr := range cidrs {
		if b := e.blocks[cidr]; b != nil && b.state == leaving {
			s.open(b, now)
		}
	}
}

// RemoveBlocks forgets blocks that EC2 has taken back. A block with an address that a pod holds stays, and the
// error says so.
func (s *Store) RemoveBlocks(id string, cidrs []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	if e == nil {
		return fmt.Errorf("%s: %w", id, ErrUnknownENI)
	}
	var errs []error
	for _, cidr := range cidrs {
		b := e.blocks[cidr]
		if b == nil {
			continue
		}
		if slices.ContainsFunc(b.touched, func(a *address) bool { return a.holder != nil }) {
			errs = append(errs, fmt.Errorf("%s of %s: %w", cidr, id, ErrInUse))
			continue
		}
		s.forget(b)
	}
	return errors.Join(errs...)
}

// forget drops a block but remembers when they were last used: EC2 may hand them back soon.
func (s *Store) forget(b *block) {
	e := b.eni
	s.shut(b)
	for _, a := range b.touched {
		if !a.released.IsZero() {
			s.memory[a.ip] = a.released
		}
		if a.quarantined {
			b.barred--
			e.barred--
		}
		delete(s.addrs, a.ip)
	}
	e.prefixes.drop(b)
	delete(e.blocks, b.cidr)
	if at, found := slices.BinarySearchFunc(e.pool, b.cidr, netip.Prefix.Compare); found {
		e.pool = slices.Delete(slices.Clone(e.pool), at, at+1)
	}
	e.total -= b.size
	if b.state != ready {
		e.unready--
	}
}

// Quarantine keeps an address from being handed out (again), or lifts that. A pod that holds it keeps it.
func (s *Store) Quarantine(ip netip.Addr, on bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.blockOf(ip)
	if b == nil {
		return
	}
	if s.addrs[ip] == nil && !on {
		return
	}
	a := s.touch(b, ip)
	switch {
	case on && !a.quarantined:
		b.barred++
		b.eni.barred++
	case !on && a.quarantined:
		b.barred--
		b.eni.barred--
	}
	a.quarantined = on
	a.dequeue()
	s.enqueue(a, now)
}

// enqueue puts an address into the queue it belongs to by the time of its release. Queues are ordered by that time,
// then by address, so that the order never depends on the order of calls.
func (s *Store) enqueue(a *address, now time.Time) {
	if a.holder != nil || a.quarantined || a.block.state != ready {
		return
	}
	e := a.block.eni
	queue := e.rested
	switch idle := now.Sub(a.released); {
	case a.released.IsZero():
	case idle < s.cooldown:
		queue = e.cooling
	case idle < s.rest:
		queue = e.warm
	}
	a.queue = queue
	a.block.tally(queue, 1)
	for at := queue.Back(); at != nil; at = at.Prev() {
		if x := at.Value.(*address); x.released.Before(a.released) ||
			x.released.Equal(a.released) && x.ip.Less(a.ip) {
			a.elem = queue.InsertAfter(a, at)
			return
		}
	}
	a.elem = queue.PushFront(a)
}

func (a *address) dequeue() {
	if a.queue != nil {
		a.block.tally(a.queue, -1)
		a.queue.Remove(a.elem)
		a.queue, a.elem = nil, nil
	}
}

// advance moves addresses whose time has come to the next queue. Each moves at most twice per release.
func (s *Store) advance(now time.Time) {
	for _, e := range s.enis {
		s.promote(e.cooling, s.cooldown, now)
		s.promote(e.warm, s.rest, now)
	}
}

func (s *Store) promote(queue *list.List, after time.Duration, now time.Time) {
	for at := queue.Front(); at != nil; at = queue.Front() {
		a := at.Value.(*address)
		if now.Sub(a.released) < after {
			return
		}
		a.dequeue()
		s.enqueue(a, now)
	}
}
