package datastore

import (
	"container/list"
	"net/netip"
	"slices"
)

// isPrefix tells a prefix from a single address.
func (b *block) isPrefix() bool { return b.size > 1 }

// take and untake count the addresses that sandboxes hold.
func (b *block) take() {
	b.assigned++
	b.eni.assigned++
	b.eni.prefixes.assigned += b.inPrefix()
}

func (b *block) untake() {
	b.assigned--
	b.eni.assigned--
	b.eni.prefixes.assigned -= b.inPrefix()
}

func (b *block) inPrefix() int {
	if b.isPrefix() {
		return 1
	}
	return 0
}

// tally keeps the number of addresses in each of the ENI's queues.
func (b *block) tally(queue *list.List, by int) {
	switch queue {
	case b.eni.cooling:
		b.cooling += by
	case b.eni.warm:
		b.warm += by
	case b.eni.rested:
		b.rested += by
		b.eni.prefixes.rested += by * b.inPrefix()
	}
}

// freshCount is how many addresses were never used or not for long and could be handed out now.
func (b *block) freshCount() int {
	if b.state != ready {
		return 0
	}
	return b.untouched() + b.rested
}

// idle tells whether the block can go back to EC2.
func (b *block) idle() bool {
	return b.state == ready && b.assigned+b.cooling+b.barred == 0
}

// quarantined is how many addresses nobody holds and nobody may have.
func (b *block) quarantined() int {
	n := 0
	for i := 0; b.barred > 0 && i < len(b.touched); i++ {
		if a := b.touched[i]; a.quarantined && a.holder == nil {
			n++
		}
	}
	return n
}

// freshSingles is how many single addresses were never used or not for long.
func (e *eni) freshSingles() int { return e.virgin.Len() + e.rested.Len() - e.prefixes.rested }

// prefixes are the prefixes of an ENI, sorted.
type prefixes struct {
	blocks   []*block
	assigned int // addresses
	rested   int // addresses
}

func (p *prefixes) add(b *block) {
	at, _ := slices.BinarySearchFunc(p.blocks, b.cidr, compareToCIDR)
	p.blocks = slices.Insert(p.blocks, at, b)
}

func (p *prefixes) drop(b *block) {
	p.blocks = slices.DeleteFunc(p.blocks, func(x *block) bool { return x == b })
}

func compareToCIDR(b *block, cidr netip.Prefix) int { return b.cidr.Compare(cidr) }

// state counts. Its cost grows with the number of prefixes, not of pods.
func (p *prefixes) state() PrefixState {
	st := PrefixState{Blocks: len(p.blocks)}
	for _, b := range p.blocks {
		st.Total += b.size
		st.Assigned += b.assigned
		switch b.state {
		case arriving:
			st.Arriving += b.size - b.assigned
		case leaving:
			st.Leaving += b.size - b.assigned
		case ready:
			barred := b.quarantined()
			st.Quarantined += barred
			st.Cooling += b.cooling
			st.Free += b.size - b.assigned - b.cooling - barred
		}
		if b.idle() {
			st.Idle++
		}
	}
	return st
}
