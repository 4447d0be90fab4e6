// Package fabric is the network of a simulated VPC, built of kernel namespaces: a router that forwards what a VPC
// would forward and nothing else, a host in the internet, a host on premises, and for every attached ENI a real
// interface, with the ENI's MAC, in the network namespace of its instance.
//
// An ENI is a veth pair. The router keeps one end of it, with a route for each assigned address and prefix, answers
// ARP on it for everything that it has a route to, and never asks for the instance's MAC itself. What is assigned is
// exactly what has a route: the source check is the reverse path, and a VPC's ranges lead nowhere otherwise. All
// else (public mapping, NAT gateway, isolation of VPCs from each other, counting) is one nftables table whose sets
// grow with ENIs and subnets, never with addresses.
//
// It differs from AWS in three things that a program can see. The router is a hop, so the TTL of packets between
// instances goes down by one. The internet gateway lets sources with a public mapping pass as they are: an internet
// host names the private source it saw. And IPv6 neighbours are reached by the router only (instances get a /128 as
// on EC2); it does not answer neighbour solicitations for others.
//
// The calling process needs CAP_NET_ADMIN and CAP_SYS_ADMIN in the user namespace that owns its network namespace,
// real root or not; it touches no namespace but those that it makes and those of AddNode.
package fabric

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/google/nftables"

	"vpccni/lab/ec2"
)

// DefaultMTU is the MTU of a VPC.
const DefaultMTU = 9001

// Options are what a fabric can be told; the zero value works.
type Options struct {
	Log *slog.Logger // nil: slog.Default()
	MTU int          // bytes; 0: DefaultMTU
	// MoreHosts are further hosts that are peered with every VPC as the one on premises is.
	MoreHosts []PeeredHost
}

// PeeredHost is a host outside of the VPCs that sees private addresses.
type PeeredHost struct {
	Name Host // at most 15 bytes, unique
	// Addr is its address with the length of its network, whose first address is the router's.
	Addr netip.Prefix
}

// Fabric carries what EC2 decides; it is an ec2.Plane. Its methods can be called from several goroutines.
type Fabric struct {
	log *slog.Logger
	mtu int
	v6  bool

	vpc   *namespace
	hosts map[Host]*namespace
	rules *ruleset

	mu      sync.Mutex // guards all below, and orders changes of the kernel's state
	nft     *nftables.Conn
	nodes   map[string]*namespace // by instance
	enis    map[string]ec2.ENI    // what EC2 wants, by ENI
	ports   map[string]*port      // what is plugged in, by ENI
	links   map[string]owner      // who has, or had, the router's link of that name
	vpcs    map[string]*vpcState
	applied shared
	numbers struct{ link, vpc uint32 }
}

var errClosed = errors.New("fabric is closed")

var _ ec2.Plane = (*Fabric)(nil)

// owner says whose a link of the router is.
type owner struct{ eni, instance string }

// New makes the namespaces of the router, the internet and on-prem; it knows no VPC and no node yet.
func New(o Options) (*Fabric, error) {
	f := &Fabric{
		log:   o.Log,
		mtu:   o.MTU,
		hosts: map[Host]*namespace{},
		rules: newRuleset(),
		nodes: map[string]*namespace{},
		enis:  map[string]ec2.ENI{},
		ports: map[string]*port{},
		links: map[string]owner{},
		vpcs:  map[string]*vpcState{},
	}
	if f.log == nil {
		f.log = slog.Default()
	}
	if f.mtu == 0 {
		f.mtu = DefaultMTU
	}
	if err := f.build(o.MoreHosts); err != nil {
		return nil, errors.Join(fmt.Errorf("build fabric: %w", err), f.Close())
	}
	return f, nil
}

// Close takes the network down. Namespaces go with the last process and socket in them.
func (f *Fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(f.ports)) {
		errs = append(errs, f.unplug(id))
	}
	if f.vpc != nil {
		for name := range f.hosts {
			if name != HostVPC {
				errs = append(errs, f.deleteLink(string(name)))
			}
		}
	}
	for _, ns := range f.nodes {
		ns.close()
	}
	for _, ns := range f.hosts {
		ns.close()
	}
	f.nft, f.vpc = nil, nil
	clear(f.nodes)
	clear(f.hosts)
	return errors.Join(errs...)
}

// Do runs fn on a thread inside one of the fabric's own namespaces. Sockets that fn opens stay in it.
func (f *Fabric) Do(host Host, fn func() error) error {
	f.mu.Lock()
	ns := f.hosts[host]
	f.mu.Unlock()
	if ns == nil {
		return fmt.Errorf("fabric has no host %q", host)
	}
	return ns.do(fn)
}

// AddNode says where the ENIs of an instance get plugged, and plugs in those that are attached already. The caller
// keeps netns.
func (f *Fabric) AddNode(instanceID string, netns *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vpc == nil {
		return errClosed
	}
	if f.nodes[instanceID] != nil {
		return fmt.Errorf("instance %s has a network namespace already", instanceID)
	}
	file, err := dup(netns)
	if err != nil {
		return fmt.Errorf("instance %s: %w", instanceID, err)
	}
	ns, err := openNamespace(file)
	if err != nil {
		return fmt.Errorf("instance %s: %w", instanceID, err)
	}
	f.nodes[instanceID] = ns
	var errs []error
	// By device index, so that interfaces appear in the order in which they got attached at launch.
	for _, id := range f.enisOf(instanceID) {
		errs = append(errs, f.apply(id))
	}
	return errors.Join(errs...)
}

// RemoveNode takes an instance's interfaces away and forgets its namespace; its ENIs stay attached as far as EC2 is
// concerned and are plugged in again by the next AddNode.
func (f *Fabric) RemoveNode(instanceID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range f.enisOf(instanceID) {
		if err := f.unplug(id); err != nil {
			f.log.Error("unplug eni of a removed node", "eni", id, "instance", instanceID, "err", err)
		}
	}
	if ns := f.nodes[instanceID]; ns != nil {
		ns.close()
		delete(f.nodes, instanceID)
	}
	if err := f.applyShared(); err != nil && !errors.Is(err, errClosed) {
		f.log.Error("update the router after a node was removed", "instance", instanceID, "err", err)
	}
}

// enisOf lists an instance's ENIs by network card and device index.
func (f *Fabric) enisOf(instanceID string) []string {
	var ids []string
	for id, e := range f.enis {
		if e.Attachment != nil && e.Attachment.InstanceID == instanceID {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b string) int {
		x, y := f.enis[a].Attachment, f.enis[b].Attachment
		return slices.Compare([]int{x.Card, x.Device}, []int{y.Card, y.Device})
	})
	return ids
}

// Sync makes the network carry the ENI as given. It can be repeated, and after an error it should be.
func (f *Fabric) Sync(e ec2.ENI) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.enis[e.ID] = cloneENI(e)
	return f.apply(e.ID)
}

// Remove takes an ENI out of the network. One that is not known is removed already.
func (f *Fabric) Remove(eniID string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.enis, eniID)
	return f.apply(eniID)
}

// SyncVPC makes the network carry a VPC's ranges and subnets. VPCs with ranges that overlap are refused.
func (f *Fabric) SyncVPC(v ec2.VPC, subnets []ec2.Subnet) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := checkVPC(v, f.vpcs); err != nil {
		return err
	}
	state := f.vpcs[v.ID]
	if state == nil {
		f.numbers.vpc++
		state = &vpcState{number: f.numbers.vpc}
		f.vpcs[v.ID] = state
	}
	state.VPC = v
	state.CIDRs = slices.Clone(v.CIDRs)
	state.subnets = slices.Clone(subnets)
	// An ENI is public or private with its subnet, and both sides of that have to change in one transaction: in between
	// it would be neither.
	for id, port := range f.ports {
		e := f.enis[id]
		if !attached(e) || e.VPCID != v.ID {
			continue
		}
		if spec, err := specOf(e, f.vpcs); err == nil {
			port.spec.public = spec.public
		}
	}
	errs := []error{f.applyShared()}
	for _, id := range slices.Sorted(maps.Keys(f.enis)) {
		if f.enis[id].VPCID == v.ID {
			errs = append(errs, f.apply(id))
		}
	}
	return errors.Join(errs...)
}

// apply brings one ENI from how it is plugged in to how EC2 wants it.
func (f *Fabric) apply(id string) error {
	e, ok := f.enis[id]
	if !ok || !attached(e) || f.nodes[e.Attachment.InstanceID] == nil {
		if f.ports[id] == nil {
			return nil
		}
		return errors.Join(f.unplug(id), f.applyShared())
	}
	spec, err := specOf(e, f.vpcs)
	if err != nil {
		return err
	}
	if p := f.ports[id]; p != nil && (p.spec.socket != spec.socket || !f.present(p)) {
		if err := f.unplug(id); err != nil {
			return err
		}
	}
	p := f.ports[id]
	if p == nil {
		if p, err = f.plug(id, spec); err != nil {
			return fmt.Errorf("plug eni %s into %s: %w", id, spec.instance, err)
		}
	}
	p.spec = spec
	if err := f.forward(p); err != nil {
		return fmt.Errorf("eni %s: %w", id, err)
	}
	return f.applyShared()
}

// cloneENI copies what the caller may change after Sync.
func cloneENI(e ec2.ENI) ec2.ENI {
	e.Secondary, e.Prefixes = slices.Clone(e.Secondary), slices.Clone(e.Prefixes)
	e.IPv6, e.IPv6Prefixes = slices.Clone(e.IPv6), slices.Clone(e.IPv6Prefixes)
	e.MAC = slices.Clone(e.MAC)
	if e.Attachment != nil {
		a := *e.Attachment
		e.Attachment = &a
	}
	return e
}
