// Package datastore is the ledger of a node's addresses: which ENIs the node has, which addresses and prefixes lie on
// them, and which sandbox holds which address. It does no I/O, reads no clock and writes no log; the time is a
// parameter.
//
// One mutex guards everything. Values that go out share no memory with the ledger, or memory that nobody changes.
//
// Three rules hold whatever the caller does: an address that a pod holds is never removed, an ENI's own address never
// enters the pool, and an ENI with pods (or the primary one) is never drained or removed.
package datastore

import (
	"cmp"
	"container/list"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// DefaultRest is how long an address stays unused before it counts as fresh again. A connection attempt in SYN_SENT
// keeps its conntrack entry for 120 s, so a client that still tries to reach the old pod could reach the new one.
const DefaultRest = 130 * time.Second

// The names under which allocations of pods are kept that were started before a CNI wrote allocation keys.
const (
	migratedNetwork = "_migrated-from-cri"
	migratedIfName  = "unknown"
)

// Errors that callers tell apart.
var (
	// ErrUnknownPod: the sandbox holds no address. Plugins in the field look for this very text.
	ErrUnknownPod = errors.New("datastore: unknown pod")
	// ErrNoAddress: no address is usable now.
	ErrNoAddress = errors.New("no usable address")
	// ErrNotReady: the sandbox holds an address, but its ENI cannot serve (yet).
	ErrNotReady = errors.New("the address that the sandbox holds is not usable yet")
	// ErrInUse: a pod holds the address, or an address of the ENI.
	ErrInUse = errors.New("in use by a pod")
	// ErrPrimary: an ENI's own address cannot be a pod's, and the primary ENI cannot leave.
	ErrPrimary = errors.New("is primary")
	// ErrUnknownENI: the ledger has no such ENI.
	ErrUnknownENI = errors.New("unknown ENI")
	// ErrExists: the ENI or address is in the ledger already.
	ErrExists = errors.New("exists already")
	// ErrPhase: the ENI cannot go from its phase to the one wanted.
	ErrPhase = errors.New("not possible in this phase")
)

// Phase is where an ENI is in its life. Only a usable one serves pods.
type Phase string

// The phases of an ENI. An ENI that is gone is not in the ledger.
const (
	Discovered Phase = "discovered" // attached, the host's network is not ready for it
	Wired      Phase = "wired"      // the host's network is ready, but no new pods are to be served
	Usable     Phase = "usable"     // serves pods
	Draining   Phase = "draining"   // without pods, on its way out
	Lost       Phase = "lost"       // EC2 has it no more, but pods live on it
)

// transitions lists where an ENI may go from each phase.
var transitions = map[Phase][]Phase{
	Discovered: {Wired, Draining, Lost},
	Wired:      {Usable, Discovered, Draining, Lost},
	Usable:     {Wired, Discovered, Draining, Lost},
	Draining:   {Discovered},
	Lost:       {Discovered},
}

// Key names one interface of one pod sandbox.
type Key struct {
	NetworkName string
	ContainerID string
	IfName      string
}

// Meta says whose sandbox it is.
type Meta struct {
	Namespace  string
	Pod        string
	Interfaces int // that the pod asked for; 0 is read as 1
}

// Allocation is an address held by a sandbox.
type Allocation struct {
	Key
	Meta
	Address netip.Addr
	Time    time.Time
	// ENI, Device and Card say where the address is. ENI is empty for an allocation that is not placed.
	ENI    string
	Device int
	Card   int
}

// ENI is what the ledger knows of an interface.
type ENI struct {
	ID      string
	Device  int
	Card    int
	Primary bool
	// Address is the ENI's own.
	Address netip.Addr
	// Since is when the ENI came into the ledger.
	Since time.Time
}

// Store is the ledger. Use New.
type Store struct {
	mu       sync.Mutex
	prefixes bool // pods get addresses of prefixes first, else single ones
	cooldown time.Duration
	rest     time.Duration

	enis  []*eni // by card, device, id
	byID  map[string]*eni
	addrs map[netip.Addr]*address // addresses that were ever touched
	keys  map[Key]*holding
	held  []*holding // all of keys, by address: the state file is written in this order, often
	// unplaced are allocations whose address is on no known ENI. They block the reuse of the address and are placed
	// when it appears.
	unplaced map[netip.Addr]*holding
	// memory has the release times of addresses that are not in the pool now but may come back to it.
	memory map[netip.Addr]time.Time
}

// holding is an allocation and, once placed, its address.
type holding struct {
	key  Key
	meta Meta
	ip   netip.Addr
	time time.Time
	addr *address
	last *Allocation // what record returned
}

// New makes an empty ledger. Released addresses cool for cooldown and count as fresh after rest (DefaultRest if 0).
func New(cooldown, rest time.Duration) *Store {
	if rest == 0 {
		rest = DefaultRest
	}
	cooldown = max(cooldown, 0)
	return &Store{
		cooldown: cooldown,
		rest:     max(rest, cooldown),
		byID:     map[string]*eni{},
		addrs:    map[netip.Addr]*address{},
		keys:     map[Key]*holding{},
		unplaced: map[netip.Addr]*holding{},
		memory:   map[netip.Addr]time.Time{},
	}
}

// PreferPrefixes has pods get addresses of prefixes as long as one is fresh, and single ones after that. Without it it is
// the other way round. What a node holds of the kind that it does not want any more empties that way.
func (s *Store) PreferPrefixes() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prefixes = true
}

// eni is an interface with the queues of its unassigned addresses, each ordered by the time of release.
type eni struct {
	ENI
	phase    Phase
	blocks   map[netip.Prefix]*block
	pool     []netip.Prefix // the keys of blocks, sorted; replaced, never changed
	total    int            // addresses of all blocks
	unready  int            // blocks that are not ready
	barred   int            // addresses in quarantine, held or not
	assigned int
	cooling  *list.List // of *address: released less than cooldown ago
	warm     *list.List // of *address: out of cooldown, not yet fresh
	rested   *list.List // of *address: fresh again
	virgin   *list.List // of *block: single addresses, ready, never touched
	fresh    int        // untouched addresses in ready blocks
	prefixes prefixes
}

// free is the number of addresses that could be handed out if the ENI is usable.
func (e *eni) free() int { return e.fresh + e.rested.Len() + e.warm.Len() }

// blockState says whether a block's addresses may be handed out.
type blockState int

const (
	arriving blockState = iota // EC2 has it, the host's network is not ready for it
	ready
	leaving // on its way back to EC2
)

// block is a secondary address (/32, /128) or a prefix.
type block struct {
	cidr    netip.Prefix
	eni     *eni
	state   blockState
	size    int
	touched []*address
	next    netip.Addr    // candidate for the next untouched address
	elem    *list.Element // in eni.virgin
	// What the addresses are doing, by the queue they are in.
	assigned, cooling, warm, rested, barred int
}

// untouched is the number of addresses that no sandbox ever held.
func (b *block) untouched() int { return b.size - len(b.touched) }

// address is an address that was handed out at least once, or is quarantined.
type address struct {
	ip          netip.Addr
	block       *block
	holder      *holding
	released    time.Time // zero: never
	quarantined bool
	queue       *list.List
	elem        *list.Element
}

// AddENI takes an interface into the ledger, in phase Discovered.
func (s *Store) AddENI(d ENI) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[d.ID] != nil {
		return fmt.Errorf("%s: %w", d.ID, ErrExists)
	}
	if b := s.blockOf(d.Address); b != nil && !s.left(b) {
		return fmt.Errorf("%s: own address %s is in the pool of another ENI: %w", d.ID, d.Address, ErrExists)
	}
	e := &eni{ENI: d, phase: Discovered, blocks: map[netip.Prefix]*block{},
		cooling: list.New(), warm: list.New(), rested: list.New(), virgin: list.New()}
	s.byID[d.ID] = e
	at, _ := slices.BinarySearchFunc(s.enis, e, compareENIs)
	s.enis = slices.Insert(s.enis, at, e)
	return nil
}

func compareENIs(a, b *eni) int {
	return cmp.Or(cmp.Compare(a.Card, b.Card), cmp.Compare(a.Device, b.Device), cmp.Compare(a.ID, b.ID))
}

// SetPhase moves an ENI on. Draining and Lost have methods of their own, which check for pods.
func (s *Store) SetPhase(id string, to Phase) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	switch {
	case e == nil:
		return fmt.Errorf("%s: %w", id, ErrUnknownENI)
	case e.phase == to:
		return nil
	case to == Draining || to == Lost || !slices.Contains(transitions[e.phase], to):
		return fmt.Errorf("%s: from %s to %s: %w", id, e.phase, to, ErrPhase)
	}
	e.phase = to
	return nil
}

// Drain begins the removal of an ENI: it serves no pod any more. It fails if the ENI is primary or has pods.
func (s *Store) Drain(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.removable(id)
	if err != nil {
		return err
	}
	if e.phase == Lost {
		return fmt.Errorf("%s: from %s to %s: %w", id, e.phase, Draining, ErrPhase)
	}
	e.phase = Draining
	return nil
}

// MarkLost records that EC2 has the ENI no more. It serves no new pod; those on it keep their addresses.
func (s *Store) MarkLost(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byID[id]
	switch {
	case e == nil:
		return fmt.Errorf("%s: %w", id, ErrUnknownENI)
	case e.Primary:
		return fmt.Errorf("%s %w", id, ErrPrimary)
	}
	e.phase = Lost
	return nil
}

// RemoveENI forgets an ENI and its addresses. It fails if the ENI is primary or has pods.
func (s *Store) RemoveENI(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.removable(id)
	if err != nil {
		return err
	}
	for _, b := range e.blocks {
		s.forget(b)
	}
	delete(s.byID, id)
	s.enis = slices.DeleteFunc(s.enis, func(x *eni) bool { return x == e })
	return nil
}

func (s *Store) removable(id string) (*eni, error) {
	e := s.byID[id]
	switch {
	case e == nil:
		return nil, fmt.Errorf("%s: %w", id, ErrUnknownENI)
	case e.Primary:
		return nil, fmt.Errorf("%s %w", id, ErrPrimary)
	case e.assigned > 0:
		return nil, fmt.Errorf("%s: %d addresses %w", id, e.assigned, ErrInUse)
	}
	return e, nil
}

// blockOf finds the block that contains an address, touched or not.
func (s *Store) blockOf(ip netip.Addr) *block {
	if a := s.addrs[ip]; a != nil {
		return a.block
	}
	if !ip.IsValid() {
		return nil
	}
	for _, e := range s.enis {
		if b := e.blocks[netip.PrefixFrom(ip, ip.BitLen())]; b != nil {
			return b
		}
		for _, bits := range prefixBits {
			p, err := ip.Prefix(bits)
			if b := e.blocks[p]; err == nil && b != nil {
				return b
			}
		}
	}
	return nil
}

// prefixBits are the lengths of the prefixes that EC2 gives to ENIs: /28 (IPv4) and /80 (IPv6).
var prefixBits = []int{28, 80}
