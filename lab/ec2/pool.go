package ec2

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

const (
	prefixBits = 28 // of a delegated IPv4 prefix
	prefixSize = 1 << (32 - prefixBits)
	wordBits   = 64
	// reservedHead addresses at the start of a subnet are AWS's: network, router, DNS, future use; the last one is
	// the broadcast address.
	reservedHead = 4
)

// pool is the bitmap of a subnet's IPv4 range: a set bit is an address that is reserved, assigned, or part of an
// assigned prefix.
type pool struct {
	cidr netip.Prefix
	base uint32
	used []uint64
	free int
}

// newPool makes the pool of a subnet; cidr is a masked IPv4 prefix of /16 to /28.
func newPool(cidr netip.Prefix) *pool {
	size := 1 << (32 - cidr.Bits())
	p := &pool{cidr: cidr, base: number(cidr.Addr()), used: make([]uint64, (size+wordBits-1)/wordBits), free: size}
	for i := size; i < len(p.used)*wordBits; i++ {
		p.used[i/wordBits] |= 1 << (i % wordBits)
	}
	for i := range reservedHead {
		p.set(i)
	}
	p.set(size - 1)
	return p
}

func (p *pool) clone() *pool {
	c := *p
	c.used = slices.Clone(p.used)
	return &c
}

func (p *pool) size() int              { return 1 << (32 - p.cidr.Bits()) }
func (p *pool) isUsed(i int) bool      { return p.used[i/wordBits]&(1<<(i%wordBits)) != 0 }
func (p *pool) addr(i int) netip.Addr  { return address(p.base + uint32(i)) }
func (p *pool) index(a netip.Addr) int { return int(number(a) - p.base) }

func (p *pool) set(i int) {
	p.used[i/wordBits] |= 1 << (i % wordBits)
	p.free--
}

func (p *pool) clear(i int) {
	p.used[i/wordBits] &^= 1 << (i % wordBits)
	p.free++
}

// isReserved says whether the address is one of AWS's five.
func (p *pool) isReserved(a netip.Addr) bool {
	i := p.index(a)
	return i < reservedHead || i == p.size()-1
}

// take marks one address as used; false if it is used already.
func (p *pool) take(a netip.Addr) bool {
	i := p.index(a)
	if p.isUsed(i) {
		return false
	}
	p.set(i)
	return true
}

// takeFree marks a free address as used, the first one at or after from (an index, taken modulo the size); false if
// there is none.
func (p *pool) takeFree(from int) (netip.Addr, bool) {
	if p.free == 0 {
		return netip.Addr{}, false
	}
	words := len(p.used)
	from %= p.size()
	for k := range words + 1 {
		w := (from/wordBits + k) % words
		free := ^p.used[w]
		switch k {
		case 0:
			free &= ^uint64(0) << (from % wordBits)
		case words:
			free &= 1<<(from%wordBits) - 1
		}
		if free != 0 {
			i := w*wordBits + bits.TrailingZeros64(free)
			p.set(i)
			return p.addr(i), true
		}
	}
	return netip.Addr{}, false
}

// give frees an address that was taken.
func (p *pool) give(a netip.Addr) {
	if i := p.index(a); p.isUsed(i) {
		p.clear(i)
	}
}

// takePrefix marks an aligned /28 as used; false unless all of it is free.
func (p *pool) takePrefix(at netip.Prefix) bool {
	return p.takeBlock(p.index(at.Addr()))
}

// takeFreePrefix marks a free /28 as used, the first one at or after from (an index of blocks, taken modulo their
// number); false if no aligned /28 is free.
func (p *pool) takeFreePrefix(from int) (netip.Prefix, bool) {
	blocks := p.size() / prefixSize
	for k := range blocks {
		i := (from + k) % blocks * prefixSize
		if p.takeBlock(i) {
			return netip.PrefixFrom(p.addr(i), prefixBits), true
		}
	}
	return netip.Prefix{}, false
}

func (p *pool) takeBlock(i int) bool {
	mask := uint64(1<<prefixSize-1) << (i % wordBits)
	if p.used[i/wordBits]&mask != 0 {
		return false
	}
	p.used[i/wordBits] |= mask
	p.free -= prefixSize
	return true
}

// givePrefix frees a /28 that was taken.
func (p *pool) givePrefix(at netip.Prefix) {
	i := p.index(at.Addr())
	p.used[i/wordBits] &^= uint64(1<<prefixSize-1) << (i % wordBits)
	p.free += prefixSize
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}
