package ipamd

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
)

const (
	// journalGrace is how long EC2 has at start, before a journal that may be outdated is used as far as it can be.
	journalGrace = time.Second
	// verifySpread is the time over which the nodes of a cluster that restart together ask EC2: they serve from their
	// journals meanwhile.
	verifySpread = 30 * time.Second
)

// start restores what the last life knew. With a journal the node serves at once and asks EC2 a little later, or when
// a pod waits for what only EC2 can bring; without one it asks first.
func (c *controller) start(now time.Time) {
	c.started = now
	c.restoreAllocations()
	j := c.restored.Journal
	known := j.InstanceID == c.id.InstanceID
	if known {
		for _, x := range j.Cooling {
			c.store.RestoreCooling(x.Address, x.Until, now)
		}
		c.inherited = slices.Clone(j.Intents)
	}
	c.resyncBy(now)
	switch {
	case !known || len(j.ENIs) == 0:
	case j.Stale:
		c.journalAt = now.Add(journalGrace)
		c.log(slog.LevelWarn, "the journal is older than the state file: nobody gets an address by it before EC2 was asked")
	default:
		c.adoptJournal(now)
		if !c.set.IMDSOnly {
			c.resyncAt = now.Add(time.Duration(c.rand.Float64() * float64(verifySpread)))
		}
		if c.walks {
			c.graceAt = now.Add(walkGrace)
		}
	}
	// IMDS has no say where EC2 is asked first.
	c.walkAt = now
	if len(c.enis) == 0 && !c.set.IMDSOnly {
		c.walkAt = now.Add(c.walkPause())
	}
	// An ENI between its creation and its attachment, or after its detachment, is not among the instance's. Only a
	// journal can say that there is none.
	if !c.set.NoProvisioning && (!known || slices.ContainsFunc(j.Intents, func(i checkpoint.Intent) bool {
		return i.Kind != opAssign && i.Kind != opUnassign
	})) {
		c.scanAt = now
	}
}

func (c *controller) restoreAllocations() {
	var allocs []datastore.Allocation
	for _, a := range c.restored.Allocations {
		allocs = append(allocs, datastore.Allocation{
			Key:     datastore.Key{NetworkName: a.NetworkName, ContainerID: a.ContainerID, IfName: a.IfName},
			Meta:    datastore.Meta{Namespace: a.Namespace, Pod: a.Pod, Interfaces: a.Interfaces},
			Address: a.Address, Time: a.Time,
		})
	}
	for _, a := range c.store.Restore(allocs) {
		c.log(slog.LevelError, "allocation conflicts with an older one", "address", a.Address, "container", a.ContainerID)
	}
}

// adoptJournal serves from what the last life held, until EC2 is asked. Nothing is brought in or given back before
// that, and what the last life itself doubted, or was about to give back, serves nobody.
func (c *controller) adoptJournal(now time.Time) {
	c.journalAt = time.Time{}
	if c.synced() {
		return
	}
	for _, h := range c.restored.Journal.ENIs {
		mac, err := net.ParseMAC(h.MAC)
		cidr := h.SubnetCIDR
		if !cidr.IsValid() {
			cidr = c.subnets[h.SubnetID]
		}
		if err != nil || !h.Address.IsValid() || !cidr.IsValid() || c.enis[h.ID] != nil {
			continue
		}
		d := awsutils.ENI{ID: h.ID, MAC: mac, Device: h.Device, Card: h.Card, SubnetID: h.SubnetID, Primary: h.Address,
			InstanceID: c.id.InstanceID, DeleteOnTermination: true}
		for _, p := range h.Pool {
			if p.IsSingleIP() {
				d.Secondary = append(d.Secondary, p.Addr())
			} else {
				d.Prefixes = append(d.Prefixes, p)
			}
		}
		e := &iface{ENI: d, cidr: cidr, managed: true, link: true}
		if slices.ContainsFunc(c.inherited, func(i checkpoint.Intent) bool { return i.ENI == h.ID }) {
			e.touched = now // EC2's readers may lag behind what the last life did a moment ago
		}
		c.enis[h.ID] = e
		c.hold(e, now)
		for _, p := range c.doubtedOf(h) {
			c.doubts[doubt{mac: mac.String(), block: p}] = &sighting{since: now, last: now, firm: true}
		}
	}
	// What lies on the ENIs is old. An ENI may have been attached a moment ago; that one is gone the kernel knows first.
	clear(c.lag)
	for _, e := range c.enis {
		c.lagging(e, netip.Prefix{}, now.Add(settleTime))
	}
	c.suspect(now)
	c.applyAt = time.Time{}
	c.log(slog.LevelInfo, "serving from the journal", "enis", len(c.enis), "doubted", len(c.suspects))
}

// doubtedOf lists the blocks of a journaled ENI that serve nobody before EC2 was asked.
func (c *controller) doubtedOf(h checkpoint.HeldENI) []netip.Prefix {
	if c.restored.Journal.Stale {
		return h.Pool
	}
	return h.Doubted
}

// doubtful lists the blocks of an ENI that a restart must not serve from unasked.
func (c *controller) doubtful(e *iface) []netip.Prefix {
	if len(c.suspects) == 0 && len(c.denied) == 0 && e.busy == nil {
		return nil
	}
	var out []netip.Prefix
	for _, p := range c.store.Pool(e.ID) {
		if c.suspects[p] != "" || c.denied[p] != "" || c.leavingBlock(e, p) {
			out = append(out, p)
		}
	}
	return out
}
