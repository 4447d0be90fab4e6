package ec2

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jonboulle/clockwork"
)

// Options are what a Cloud is made of. The zero value is a cloud on the real clock, without a network, in which
// everything happens at once.
type Options struct {
	Clock             clockwork.Clock // nil: the real one
	Region, AccountID string          // default us-west-2, 123456789012
	// AttachDelay and DetachDelay are how long an ENI stays attaching and detaching, on the clock.
	AttachDelay, DetachDelay time.Duration
	// APILatency is added to every call over HTTP, on the clock.
	APILatency time.Duration
	Plane      Plane // nil: no network carries what is decided
	// Seed makes ids, MAC addresses and the choice of addresses reproducible. With seed 0 EC2 hands out the lowest
	// free address, which packs a subnet; with any other seed it scatters them, as the real one does, so that
	// subnets fragment.
	Seed uint64
	// PublicRange is where public addresses come from; default 198.18.0.0/16, which nobody on the internet has.
	PublicRange netip.Prefix
	Logger      *slog.Logger // nil: silent
}

// Cloud is an account of EC2 in one region. It is safe for concurrent use.
//
// Two locks guard it. A change holds changing from its first look at the state to its last call of the Plane, so that
// changes happen one after the other; it works on copies. state is held only while copies are put in place or read,
// so a slow Plane does not keep readers waiting. What is in the maps is never modified, only replaced.
type Cloud struct {
	opts  Options
	clock clockwork.Clock
	wall  clockwork.Clock // the clock that clients sign with
	log   *slog.Logger

	changing sync.Mutex
	source   *source              // guarded by changing
	due      map[string]time.Time // ENIs on their way in or out, and when they arrive; guarded by changing
	nextDue  atomic.Int64         // earliest of due in Unix nanoseconds, 0 if none
	tokens   tokens               // guarded by changing
	public   netip.Addr           // last public address handed out; guarded by changing

	state     sync.RWMutex // guards what follows; written with changing held as well
	vpcs      map[string]*VPC
	subnets   map[string]*Subnet
	groups    map[string]*SecurityGroup
	instances map[string]*Instance
	enis      map[string]*ENI
	pools     map[string]*pool // by subnet
	index     index

	keys     *keyring
	faults   faults
	throttle throttles
	requests requestLog
}

// New makes an empty cloud.
func New(o Options) *Cloud {
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	o.Region = cmp.Or(o.Region, "us-west-2")
	o.AccountID = cmp.Or(o.AccountID, "123456789012")
	if !o.PublicRange.IsValid() {
		o.PublicRange = netip.MustParsePrefix("198.18.0.0/16")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Cloud{
		opts: o, clock: o.Clock, wall: clockwork.NewRealClock(), log: o.Logger,
		source: newSource(o.Seed),
		due:    map[string]time.Time{}, tokens: newTokens(), public: o.PublicRange.Masked().Addr(),
		vpcs: map[string]*VPC{}, subnets: map[string]*Subnet{}, groups: map[string]*SecurityGroup{},
		instances: map[string]*Instance{}, enis: map[string]*ENI{}, pools: map[string]*pool{},
		index:    newIndex(),
		keys:     newKeyring(o.Clock, o.Seed),
		faults:   newFaults(o.Seed),
		throttle: throttles{clock: o.Clock},
		requests: newRequestLog(),
	}
}

// Region is the region's name.
func (c *Cloud) Region() string { return c.opts.Region }

// AccountID is the account's number.
func (c *Cloud) AccountID() string { return c.opts.AccountID }

// read calls fn with the state locked for reading. What is due is carried out first, unless there is a Plane: a Plane
// may read the cloud, so a read must never call the Plane. There the timers alone move ENIs on.
func (c *Cloud) read(fn func()) {
	if c.opts.Plane == nil {
		c.settle()
	}
	c.state.RLock()
	defer c.state.RUnlock()
	fn()
}

// lookup gives a copy of one thing.
func lookup[T any](c *Cloud, from map[string]*T, copyOf func(*T) T, id string) (found T, ok bool) {
	c.read(func() {
		var p *T
		if p, ok = from[id]; ok {
			found = copyOf(p)
		}
	})
	return found, ok
}

// list gives copies of the things that want accepts, sorted by id.
func list[T any](c *Cloud, from map[string]*T, copyOf func(*T) T, want func(*T) bool) []T {
	var found []T
	c.read(func() {
		for _, id := range sortedKeys(from) {
			if p := from[id]; want(p) {
				found = append(found, copyOf(p))
			}
		}
	})
	return found
}

// every is the wish of who wants all of them.
func every[T any](*T) bool { return true }

// VPC gives a VPC.
func (c *Cloud) VPC(id string) (VPC, bool) {
	return lookup(c, c.vpcs, (*VPC).clone, id)
}

// VPCs gives all VPCs, sorted by id.
func (c *Cloud) VPCs() []VPC {
	return list(c, c.vpcs, (*VPC).clone, every)
}

// Subnet gives a subnet.
func (c *Cloud) Subnet(id string) (Subnet, bool) {
	return lookup(c, c.subnets, (*Subnet).clone, id)
}

// Subnets gives the subnets of a VPC, sorted by id; those of all VPCs if the id is empty.
func (c *Cloud) Subnets(vpcID string) []Subnet {
	return list(c, c.subnets, (*Subnet).clone,
		func(s *Subnet) bool { return vpcID == "" || s.VPCID == vpcID })
}

// FreeAddresses is the number of free IPv4 addresses of a subnet, 0 if there is no such subnet.
func (c *Cloud) FreeAddresses(subnetID string) (n int) {
	c.read(func() {
		if p, ok := c.pools[subnetID]; ok {
			n = p.free
		}
	})
	return n
}

// SecurityGroup gives a security group.
func (c *Cloud) SecurityGroup(id string) (SecurityGroup, bool) {
	return lookup(c, c.groups, (*SecurityGroup).clone, id)
}

// SecurityGroups gives the security groups of a VPC, sorted by id; those of all VPCs if the id is empty.
func (c *Cloud) SecurityGroups(vpcID string) []SecurityGroup {
	return list(c, c.groups, (*SecurityGroup).clone,
		func(g *SecurityGroup) bool { return vpcID == "" || g.VPCID == vpcID })
}

// Instance gives an instance, also a terminated one.
func (c *Cloud) Instance(id string) (Instance, bool) {
	return lookup(c, c.instances, (*Instance).clone, id)
}

// Instances gives all instances, terminated ones included, sorted by id.
func (c *Cloud) Instances() []Instance {
	return list(c, c.instances, (*Instance).clone, every)
}

// ENI gives an ENI.
func (c *Cloud) ENI(id string) (ENI, bool) {
	return lookup(c, c.enis, (*ENI).clone, id)
}

// ENIs gives all ENIs, sorted by id.
func (c *Cloud) ENIs() []ENI {
	return list(c, c.enis, (*ENI).clone, every)
}

// ENIsOf gives the ENIs that are attached, attaching or detaching to the instance, by network card and device index.
func (c *Cloud) ENIsOf(instanceID string) []ENI {
	var found []ENI
	c.read(func() {
		for _, e := range c.attachedTo(instanceID) {
			found = append(found, e.clone())
		}
	})
	return found
}

// attachedTo is ENIsOf without copies; state or changing must be held.
func (c *Cloud) attachedTo(instanceID string) []*ENI {
	var found []*ENI
	for id := range c.index.attached[instanceID] {
		found = append(found, c.enis[id])
	}
	slices.SortFunc(found, func(a, b *ENI) int {
		return cmp.Or(cmp.Compare(a.Attachment.Card, b.Attachment.Card), cmp.Compare(a.Attachment.Device, b.Attachment.Device))
	})
	return found
}

// InstanceByAddress gives the instance that has the private address on one of its ENIs, as an address of its own or
// within a prefix.
func (c *Cloud) InstanceByAddress(a netip.Addr) (found Instance, ok bool) {
	c.read(func() {
		for _, vpcID := range sortedKeys(c.vpcs) {
			e, owned := c.enis[c.index.owner(vpcID, a)]
			if !owned || e.Attachment == nil {
				continue
			}
			var i *Instance
			if i, ok = c.instances[e.Attachment.InstanceID]; ok {
				found = i.clone()
				return
			}
		}
	})
	return found, ok
}
