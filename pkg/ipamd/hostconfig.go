package ipamd

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/hostnet"
)

// network is the host's network: what it should be is computed from the ENIs, and applied as a whole.
type network struct {
	vpc        []netip.Prefix
	dirty      bool      // it may not be as it should be
	applying   bool      // an effApply is in flight
	repairing  bool      // and it only looks after what somebody else changed
	applyAt    time.Time // no effApply before
	applyFails int
	netVersion uint64 // counts effApply
	pace       hostnet.Pace
	repairAt   time.Time // when to look at what somebody else changed; zero: nothing was
	announced  announcements
}

// hostChanged hears that something of ours on the host may have been changed, by somebody else or by this daemon's own
// last Apply. Whatever Apply comes first puts it right.
func (c *controller) hostChanged(now time.Time) {
	if c.repairAt.IsZero() {
		c.repairAt = now
	}
	c.paceRepair()
}

func (c *controller) paceRepair() {
	if paced := c.pace.Next(); !c.repairAt.IsZero() && c.repairAt.Before(paced) {
		c.repairAt = paced
	}
}

// repaired counts what was put right, and says so.
func (c *controller) repaired(changes map[hostnet.Kind]int, by []string) {
	c.counters.Repairs++
	var kinds []string
	n := 0
	for _, kind := range slices.Sorted(maps.Keys(changes)) {
		c.counters.RepairsOf[kind] += uint64(changes[kind])
		kinds = append(kinds, fmt.Sprintf("%d %s", changes[kind], kind))
		n += changes[kind]
	}
	if len(by) == 0 {
		by = []string{"unknown"}
	}
	c.log(slog.LevelWarn, "host network put right: somebody else had changed it", "changes", n,
		"kinds", strings.Join(kinds, ", "), "by", strings.Join(by, ", "))
}

func (c *controller) vpcChanged(cidrs []netip.Prefix) {
	if slices.Equal(cidrs, c.vpc) {
		return
	}
	c.vpc = slices.Clone(cidrs)
	c.dirty, c.applyAt = true, time.Time{}
	c.log(slog.LevelInfo, "ranges of the VPC changed", "cidrs", c.vpc)
}

func (c *controller) applyIfDue(now time.Time) {
	if c.applying || len(c.enis) == 0 {
		return
	}
	repair := !c.repairAt.IsZero() && !now.Before(c.repairAt)
	if !repair && (!c.dirty || now.Before(c.applyAt)) {
		return
	}
	c.applying, c.repairing, c.dirty, c.repairAt = true, !c.dirty, false, time.Time{}
	c.netVersion++
	c.counters.Applies++
	c.emit(effApply{c.hostConfig(now)})
}

// hostConfig is what the host's network should be now.
func (c *controller) hostConfig(now time.Time) hostnet.Config {
	cfg := c.set.Host
	cfg.VPCCIDRs = slices.Clone(c.vpc)
	cfg.ENIs = nil
	for _, st := range c.store.Snapshot(now).ENIs {
		e := c.enis[st.ID]
		if e == nil || !e.link || !e.cidr.IsValid() || st.Phase == datastore.Draining {
			continue
		}
		cfg.ENIs = append(cfg.ENIs, hostnet.ENI{ID: e.ID, MAC: e.MAC, Device: e.Device, Card: e.Card,
			Primary: e.ID == c.id.PrimaryENI, Address: e.Primary, SubnetCIDR: e.cidr, Pool: c.store.Pool(e.ID)})
	}
	return cfg
}

// applied makes usable what the host's network is ready for, and nothing else.
func (c *controller) applied(ev evApplied, now time.Time) {
	c.applying = false
	c.pace.Did(now, ev.err != nil || c.repairing && ev.report.Writes > 0)
	c.paceRepair()
	if ev.err != nil {
		c.counters.ApplyErrors++
		c.applyFails++
		c.dirty, c.applyAt = true, now.Add(c.backoff(c.applyFails, retryFirst, retryLong))
		c.log(slog.LevelError, "host network not set up", "error", ev.err)
		return
	}
	if c.repairing && ev.report.Writes > 0 {
		c.repaired(ev.report.Changes, ev.report.By)
	}
	failed := false
	for _, x := range ev.cfg.ENIs {
		e := c.enis[x.ID]
		if e == nil {
			continue
		}
		if why := ev.report.NotReady[x.ID]; why != nil {
			failed = true
			c.notReady(e, why, now)
			continue
		}
		if e.notReady != "" {
			c.log(slog.LevelInfo, "ENI is ready", "eni", e.ID)
		}
		e.ready, e.notReady, e.notReadySince = true, "", time.Time{}
		c.serveOrNot(e)
		c.store.ReadyBlocks(e.ID, x.Pool, now)
		c.wired = c.wired || x.Primary && !e.lost
	}
	c.announce(ev.cfg.ENIs, ev.report.NotReady)
	if failed {
		c.applyFails++
		c.dirty, c.applyAt = true, now.Add(c.backoff(c.applyFails, retryFirst, retryLong))
	} else {
		c.applyFails = 0
	}
	c.drained(c.netVersion, now)
	c.planBy(0, now)
}

func (c *controller) notReady(e *iface, why error, now time.Time) {
	if e.notReady != why.Error() {
		c.counters.NotReady++
		c.log(slog.LevelWarn, "ENI is not ready", "eni", e.ID, "error", why)
	}
	e.notReady = why.Error()
	if e.notReadySince.IsZero() {
		e.notReadySince = now
	}
	if e.ready && c.synced() {
		c.resyncSoon(now) // somebody may have detached it
	}
	e.ready = false
	// What the ENI's pods have stays; it serves no new one until it is ready again.
	_ = c.store.SetPhase(e.ID, datastore.Discovered)
}
