package ec2

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// change is one change of the cloud, prepared on copies and then carried out as a whole: first by the Plane, then in
// the state that everyone reads. If either preparing or the Plane fails, nothing has changed.
type change struct {
	c   *Cloud
	now time.Time

	vpcs      map[string]*VPC
	subnets   map[string]*Subnet
	groups    map[string]*SecurityGroup
	instances map[string]*Instance
	enis      map[string]*ENI // nil: deleted
	order     []string        // of ENIs, as first touched: an address leaves its old ENI before it joins the new one
	pools     map[string]*pool
	fresh     map[claim]bool       // IPv6 addresses and prefixes chosen in this change
	arrivals  map[string]time.Time // ENIs that now attach or detach; the zero time: no longer
	created   map[string]issued    // client tokens
}

// change carries out fn's changes, alone.
func (c *Cloud) change(fn func(*change) error) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	c.settleHeld()
	return c.changeHeld(fn)
}

// changeHeld is change for a holder of changing.
func (c *Cloud) changeHeld(fn func(*change) error) error {
	ch := &change{
		c: c, now: c.clock.Now(),
		vpcs: map[string]*VPC{}, subnets: map[string]*Subnet{}, groups: map[string]*SecurityGroup{},
		instances: map[string]*Instance{}, enis: map[string]*ENI{}, pools: map[string]*pool{},
		fresh: map[claim]bool{}, arrivals: map[string]time.Time{}, created: map[string]issued{},
	}
	if err := fn(ch); err != nil {
		return err
	}
	if err := ch.plane(); err != nil {
		return internal(err)
	}
	ch.commit()
	return nil
}

// eni gives an ENI to look at.
func (ch *change) eni(id string) (*ENI, bool) {
	if e, ok := ch.enis[id]; ok {
		return e, e != nil
	}
	e, ok := ch.c.enis[id]
	return e, ok
}

// edit gives an ENI to modify; it must exist.
func (ch *change) edit(id string) *ENI {
	e, staged := ch.enis[id]
	if !staged {
		e = ref(ch.c.enis[id].clone())
		ch.put(e)
	}
	return e
}

func (ch *change) put(e *ENI) {
	if _, staged := ch.enis[e.ID]; !staged {
		ch.order = append(ch.order, e.ID)
	}
	ch.enis[e.ID] = e
}

// remove deletes an ENI and frees what it holds.
func (ch *change) remove(id string) {
	e := ch.edit(id)
	p := ch.pool(e.SubnetID)
	p.give(e.Primary)
	for _, a := range e.Secondary {
		p.give(a)
	}
	for _, at := range e.Prefixes {
		p.givePrefix(at)
	}
	ch.enis[id] = nil
	ch.arrivals[id] = time.Time{}
}

// pool gives a subnet's pool to modify.
func (ch *change) pool(subnetID string) *pool {
	p, ok := ch.pools[subnetID]
	if !ok {
		p = ch.c.pools[subnetID].clone()
		ch.pools[subnetID] = p
	}
	return p
}

func (ch *change) subnet(id string) (*Subnet, bool) {
	if s, ok := ch.subnets[id]; ok {
		return s, true
	}
	s, ok := ch.c.subnets[id]
	return s, ok
}

// instance gives an instance to look at.
func (ch *change) instance(id string) (*Instance, bool) {
	if i, ok := ch.instances[id]; ok {
		return i, true
	}
	i, ok := ch.c.instances[id]
	return i, ok
}

// hasIPv6 says whether the IPv6 address or prefix, or a part of it, is held.
func (ch *change) hasIPv6(vpcID string, at netip.Prefix) bool {
	whole := claim{vpcID, around(at.Addr())}
	exact := claim{vpcID, at}
	if ch.fresh[exact] || ch.fresh[whole] || ch.c.index.owners[exact] != "" || ch.c.index.owners[whole] != "" {
		return true
	}
	if at != whole.at {
		return false
	}
	if ch.c.index.singles[whole] > 0 {
		return true
	}
	for f := range ch.fresh {
		if f.vpc == vpcID && at.Contains(f.at.Addr()) {
			return true
		}
	}
	return false
}

// plane has the network carry the change; if it cannot, the network is put back as far as it lets itself.
func (ch *change) plane() error {
	plane := ch.c.opts.Plane
	if plane == nil {
		return nil
	}
	for _, id := range ch.touchedVPCs() {
		v, subnets := ch.vpcAfter(id)
		if err := plane.SyncVPC(v, subnets); err != nil {
			ch.putVPCBack(id)
			return err
		}
	}
	for n, id := range ch.order {
		var err error
		e := ch.enis[id]
		_, existed := ch.c.enis[id]
		switch {
		case e != nil:
			err = plane.Sync(e.clone())
		case existed:
			err = plane.Remove(id)
		}
		if err != nil {
			ch.putBack(ch.order[:n+1])
			ch.c.log.Warn("network refused a change", "eni", id, "error", err)
			return err
		}
	}
	return nil
}

// putBack has the network carry the ENIs as they were before the change, the last touched first.
func (ch *change) putBack(ids []string) {
	for _, id := range slices.Backward(ids) {
		var err error
		if old, existed := ch.c.enis[id]; existed {
			err = ch.c.opts.Plane.Sync(old.clone())
		} else {
			err = ch.c.opts.Plane.Remove(id)
		}
		if err != nil {
			ch.c.log.Warn("network could not go back", "eni", id, "error", err)
		}
	}
}

// putVPCBack has the network carry the VPC as it was before the change. A VPC that was not there before has nothing
// in it that could be carried.
func (ch *change) putVPCBack(id string) {
	if _, existed := ch.c.vpcs[id]; !existed {
		return
	}
	before := &change{c: ch.c}
	v, subnets := before.vpcAfter(id)
	if err := ch.c.opts.Plane.SyncVPC(v, subnets); err != nil {
		ch.c.log.Warn("network could not go back", "vpc", id, "error", err)
	}
}

// touchedVPCs are the VPCs whose ranges or subnets change, sorted.
func (ch *change) touchedVPCs() []string {
	touched := map[string]struct{}{}
	for id := range ch.vpcs {
		touched[id] = struct{}{}
	}
	for _, s := range ch.subnets {
		touched[s.VPCID] = struct{}{}
	}
	return sortedKeys(touched)
}

// vpcAfter is a VPC with its subnets as they will be.
func (ch *change) vpcAfter(id string) (VPC, []Subnet) {
	v, ok := ch.vpcs[id]
	if !ok {
		v = ch.c.vpcs[id]
	}
	all := maps.Clone(ch.c.subnets)
	maps.Copy(all, ch.subnets)
	var subnets []Subnet
	for _, sid := range sortedKeys(all) {
		if all[sid].VPCID == id {
			subnets = append(subnets, all[sid].clone())
		}
	}
	return v.clone(), subnets
}

// commit puts the copies in place.
func (ch *change) commit() {
	c := ch.c
	c.state.Lock()
	maps.Copy(c.vpcs, ch.vpcs)
	maps.Copy(c.subnets, ch.subnets)
	maps.Copy(c.groups, ch.groups)
	maps.Copy(c.instances, ch.instances)
	maps.Copy(c.pools, ch.pools)
	for _, id := range ch.order {
		if old, ok := c.enis[id]; ok {
			c.index.remove(old)
		}
		if e := ch.enis[id]; e != nil {
			c.enis[id] = e
			c.index.add(e)
		} else {
			delete(c.enis, id)
		}
	}
	c.state.Unlock()

	c.tokens.keep(ch.created, ch.now)
	for _, id := range sortedKeys(ch.arrivals) {
		c.expect(id, ch.arrivals[id])
	}
}
