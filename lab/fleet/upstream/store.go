package upstream

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Errors of a Store.
var (
	// ErrNoAddress: no address of the pool is free.
	ErrNoAddress = errors.New("no address available")
	// ErrUnknownPod: the key holds nothing.
	ErrUnknownPod = errors.New("datastore: unknown pod")
)

// Store has a node's ENIs and addresses. Where upstream goes through a map, the order is random.
type Store struct {
	rand     *rand.Rand
	cooldown time.Duration
	enis     []*ENI
	holders  map[string]*address
}

// ENI is an ENI of the pool.
type ENI struct {
	ID      string
	Primary bool
	Fixed   bool // trunk and EFA interfaces, which are not deleted
	Since   time.Time
	cidrs   []*cidr
}

// cidr is an address, as a /32, or a prefix.
type cidr struct {
	netip.Prefix
	used map[netip.Addr]*address // ever handed out
}

type address struct {
	ip       netip.Addr
	at       *cidr
	key      string // empty: not assigned
	released time.Time
}

func (c *cidr) isPrefix() bool { return !c.IsSingleIP() }

func (c *cidr) size() int {
	if c.isPrefix() {
		return prefixSize
	}
	return 1
}

func (c *cidr) assigned() (n int) {
	for _, a := range c.used {
		if a.key != "" {
			n++
		}
	}
	return n
}

// NewStore makes an empty store.
func NewStore(cooldown time.Duration, r *rand.Rand) *Store {
	return &Store{rand: r, cooldown: cooldown, holders: map[string]*address{}}
}

// AddENI takes in an ENI; its age counts from now.
func (s *Store) AddENI(id string, primary bool, now time.Time) *ENI {
	e := &ENI{ID: id, Primary: primary, Since: now}
	s.enis = append(s.enis, e)
	return e
}

// AddBlocks adds addresses, as /32s, or prefixes to an ENI.
func (s *Store) AddBlocks(id string, blocks ...netip.Prefix) {
	for _, e := range s.enis {
		if e.ID != id {
			continue
		}
		for _, p := range blocks {
			e.cidrs = append(e.cidrs, &cidr{p, map[netip.Addr]*address{}})
		}
	}
}

// ENIs is how many there are.
func (s *Store) ENIs() int { return len(s.enis) }

// Stats sums up what is of the mode's kind; upstream's prefix counter has all prefixes.
func (s *Store) Stats(prefixes bool) (st Stats) {
	for _, e := range s.enis {
		for _, c := range e.cidrs {
			n := c.assigned()
			if c.isPrefix() {
				st.Prefixes++
				if n == 0 {
					st.FreePrefixes++
				}
			}
			if c.isPrefix() == prefixes {
				st.Total += c.size()
				st.Assigned += n
			}
		}
	}
	return st
}

// shuffled is a list in random order.
func shuffled[T any](s *Store, list []T) []T {
	list = slices.Clone(list)
	s.rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// Assign gives a key an address: the one that it has, or any one of any block.
func (s *Store) Assign(key string, prefixes bool, now time.Time) (netip.Addr, error) {
	if a := s.holders[key]; a != nil {
		return a.ip, nil
	}
	for _, e := range shuffled(s, s.enis) {
		for _, c := range shuffled(s, e.cidrs) {
			if c.isPrefix() != prefixes {
				continue
			}
			if ip, ok := s.unused(c, now); ok {
				a := &address{ip: ip, at: c, key: key}
				c.used[ip], s.holders[key] = a, a
				return ip, nil
			}
		}
	}
	return netip.Addr{}, ErrNoAddress
}

// unused finds an address of a block: one that was released and has cooled, or else one that was never used.
func (s *Store) unused(c *cidr, now time.Time) (netip.Addr, bool) {
	ip := c.Addr()
	var never netip.Addr
	for range c.size() {
		switch a := c.used[ip]; {
		case a == nil:
			if !never.IsValid() {
				never = ip
			}
		case a.key == "" && now.Sub(a.released) > s.cooldown:
			return ip, true
		}
		ip = ip.Next()
	}
	return never, never.IsValid()
}

// Unassign takes back what a key holds.
func (s *Store) Unassign(key string, now time.Time) error {
	a := s.holders[key]
	if a == nil {
		return ErrUnknownPod
	}
	a.key, a.released = "", now
	delete(s.holders, key)
	return nil
}

// Allocatable is the first ENI, in random order, with a free slot, and how many it has; 0 if there is none. Blocks of
// both kinds take one.
func (s *Store) Allocatable(slots int) (id string, room int) {
	for _, e := range shuffled(s, s.enis) {
		if !e.Fixed && len(e.cidrs) < slots {
			return e.ID, slots - len(e.cidrs)
		}
	}
	return "", 0
}

// IdleENI tells whether there is an ENI without pods that is not the primary one; neither age nor cooldown count.
func (s *Store) IdleENI() bool {
	return slices.ContainsFunc(s.enis, func(e *ENI) bool { return !e.Primary && !e.Fixed && e.assigned() == 0 })
}

func (e *ENI) assigned() (n int) {
	for _, c := range e.cidrs {
		n += c.assigned()
	}
	return n
}

// Returned is what went back to EC2, and how much of its cooldown was still to come.
type Returned struct {
	ENI    string
	Blocks []netip.Prefix
	Cut    time.Duration
}

// TakeFree takes up to n blocks without a pod out of the store, also those with addresses in cooldown.
func (s *Store) TakeFree(n int, prefixes bool, now time.Time) []Returned {
	var out []Returned
	for _, e := range shuffled(s, s.enis) {
		r := Returned{ENI: e.ID}
		for _, c := range shuffled(s, e.cidrs) {
			if n > 0 && c.isPrefix() == prefixes && c.assigned() == 0 {
				n--
				r.Blocks = append(r.Blocks, c.Prefix)
				r.Cut += s.cut(c, now)
				e.cidrs = slices.DeleteFunc(e.cidrs, func(x *cidr) bool { return x == c })
			}
		}
		if len(r.Blocks) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// cut is how much cooldown a block's addresses have before them.
func (s *Store) cut(c *cidr, now time.Time) (d time.Duration) {
	for _, a := range c.used {
		if a.key == "" {
			d += max(s.cooldown-now.Sub(a.released), 0)
		}
	}
	return d
}

// TakeENI takes an ENI out of the store that may be deleted; false if there is none.
func (s *Store) TakeENI(t Targets, now time.Time) (id string, ok bool) {
	for _, e := range shuffled(s, s.enis) {
		if s.deletable(e, t, now) {
			s.enis = slices.DeleteFunc(s.enis, func(x *ENI) bool { return x == e })
			return e.ID, true
		}
	}
	return "", false
}

func (s *Store) deletable(e *ENI, t Targets, now time.Time) bool {
	if e.Primary || e.Fixed || now.Sub(e.Since) < MinENIAge {
		return false
	}
	for _, c := range e.cidrs {
		for _, a := range c.used {
			if a.key != "" || now.Sub(a.released) <= s.cooldown {
				return false
			}
		}
	}
	var free, total, freeBlocks int
	for _, o := range s.enis {
		if o == e {
			continue
		}
		for _, c := range o.cidrs {
			n := c.assigned()
			if n == 0 {
				freeBlocks++
			}
			if c.isPrefix() == t.Prefixes {
				free += c.size() - n
				total += c.size()
			}
		}
	}
	warm, minimum := t.WarmIP, t.MinimumIP
	if t.Prefixes {
		warm, minimum = ceil(warm)*prefixSize, ceil(minimum)*prefixSize
	}
	switch {
	case warm != 0 && free < warm, minimum != 0 && total < minimum:
		return false
	case t.Prefixes && t.WarmPrefix != 0 && freeBlocks < t.WarmPrefix:
		return false
	}
	return true
}
