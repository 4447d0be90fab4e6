package warmpool

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// conserved checks that every address of the subnets is free or on an ENI.
func (n *node) conserved() error {
	for subnet, size := range n.sizes {
		held := n.subnets[subnet]
		for _, e := range n.enis {
			if e.Subnet != subnet {
				continue
			}
			held++ // its own
			for _, b := range e.blocks {
				held += b.size
			}
		}
		if held != size || n.subnets[subnet] < 0 {
			return fmt.Errorf("subnet %s of %d addresses: %d free, %d in all", subnet, size, n.subnets[subnet], held)
		}
	}
	return nil
}

// TestZoneProperties runs random loads in either mode in a zone of up to four subnets that can be exhausted, some of
// which must not be used. No pod is refused while a subnet that may be used has an address that an ENI can take.
func TestZoneProperties(t *testing.T) { manySequences(t, zoneProperty) }

func zoneProperty(r *rand.Rand) error {
	limits := Limits{InstanceType: "x", ENIs: 1 + r.IntN(5), IPsPerENI: 1 + r.IntN(8)}
	targets := Targets{Prefixes: r.IntN(2) == 0, WarmENI: r.IntN(3), WarmPrefix: r.IntN(2)}
	if r.IntN(2) == 0 {
		targets.WarmIP, targets.MinimumIP = r.IntN(8), r.IntN(20)
	}
	n := newNode(r, targets, limits)
	n.subnets, n.sizes = map[string]int{}, map[string]int{}
	for i := range 1 + r.IntN(4) {
		id := string(rune('s' + i))
		n.sizes[id] = 2 + r.IntN(120)
		n.subnets[id] = n.sizes[id]
		if r.IntN(4) > 0 {
			n.offered = append(n.offered, id)
		}
	}
	n.subnets["s"]--
	r.Shuffle(len(n.offered), func(i, j int) { n.offered[i], n.offered[j] = n.offered[j], n.offered[i] })
	n.state.Zone = Zone{Discover: true, Subnets: []string{"s"}}
	for range 5 + r.IntN(40) {
		switch r.IntN(4) {
		case 0:
			n.waiting += 1 + r.IntN(12)
		case 1:
			for range 1 + r.IntN(12) {
				n.depart()
			}
		case 2:
			if r.IntN(4) == 0 {
				n.noPrefix = n.now.Add(time.Duration(r.IntN(300)) * time.Second)
			}
		}
		n.settle()
		d, err := n.plan()
		if err != nil {
			return n.fail("%v", err)
		}
		if r.IntN(2) == 0 {
			n.now = n.now.Add(time.Duration(r.IntN(20000)) * time.Millisecond)
		} else {
			n.next(d.Wake)
		}
	}
	// The load stands still: everybody who waits is served or refused with a reason, and the calls become few.
	start := n.now
	for n.now.Sub(start) < 3*time.Hour {
		n.settle()
		if v, hopeless := Hopeless(n.view(), n.targets, n.limits, n.now); hopeless && n.waiting > 0 {
			if room := n.reachable(); v.Reason == "" || room && v.Cause == CauseLimit {
				return n.fail("refused: %+v, although there is room", v)
			}
			n.waiting = 0
		}
		d, err := n.plan()
		if err != nil {
			return n.fail("%v", err)
		}
		if !n.next(d.Wake) {
			break
		}
	}
	if n.waiting > 0 {
		return n.fail("%d pods starve", n.waiting)
	}
	before := n.calls
	for rested := n.now; n.now.Sub(rested) < time.Hour; {
		n.settle()
		d, err := n.plan()
		if err != nil {
			return n.fail("%v", err)
		}
		if !n.next(d.Wake) {
			break
		}
	}
	if asked := n.calls - before; asked > 4*4*(1+len(n.offered)) {
		return n.fail("%d calls in an hour in which nothing happens", asked)
	}
	return nil
}

// reachable tells whether an ENI with room lies in a subnet with addresses, or a new one could.
func (n *node) reachable() bool {
	for _, e := range n.view().ENIs {
		if e.serves() && e.room(n.limits) > 0 && n.subnets[e.Subnet] > 0 {
			return true
		}
	}
	slots := len(n.enis) + len(n.making)
	return slots < n.limits.enis() && slices.ContainsFunc(n.state.Zone.Subnets, func(id string) bool { return n.subnets[id] > 1 })
}
