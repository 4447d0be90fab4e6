package ipamd

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vpccni/pkg/awsutils"
)

// teller is IMDS: it says what the cloud has, unless twist makes something else of it.
type teller struct {
	cloud *cloud
	mu    sync.Mutex
	twist func(truth []awsutils.ENI, now time.Time) ([]awsutils.ENI, error)
	reads int
}

func (t *teller) Pools(_ context.Context, prefixes bool) ([]awsutils.ENI, error) {
	enis, err := t.ENIs(context.Background())
	return onlyPools(enis, prefixes), err
}

func (t *teller) ENIs(context.Context) ([]awsutils.ENI, error) {
	now := time.Now()
	truth := t.cloud.attached(now)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	if t.twist != nil {
		return t.twist(truth, now)
	}
	return truth, nil
}

// count is how often it was read.
func (t *teller) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reads
}

// say changes what it says.
func (t *teller) say(twist func(truth []awsutils.ENI, now time.Time) ([]awsutils.ENI, error)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.twist = twist
}

func onlyPools(enis []awsutils.ENI, prefixes bool) []awsutils.ENI {
	out := make([]awsutils.ENI, len(enis))
	for i, e := range enis {
		out[i] = awsutils.ENI{MAC: e.MAC, Primary: e.Primary, Secondary: e.Secondary}
		if prefixes {
			out[i].Prefixes = e.Prefixes
		}
	}
	return out
}

// attached is what IMDS knows of the instance's ENIs when it does not lag.
func (c *cloud) attached(now time.Time) (out []awsutils.ENI) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick(now)
	for _, id := range slices.Sorted(maps.Keys(c.enis)) {
		if e := clone(c.enis[id]); e.InstanceID == testInstance && e.Status == "in-use" {
			out = append(out, awsutils.ENI{ID: e.ID, MAC: e.MAC, Device: e.Device, SubnetID: e.SubnetID, SubnetCIDR: testCIDR,
				Primary: e.Primary, Secondary: e.Secondary, Prefixes: e.Prefixes, Status: "in-use"})
		}
	}
	return out
}

// liar is an IMDS that says something else for a while, and then something else again.
type liar struct {
	teller
	r       *rand.Rand
	honest  bool // at rest
	history []said
	mode    int
	left    int // answers until the mode changes
	frozen  []awsutils.ENI
}

type said struct {
	at   time.Time
	enis []awsutils.ENI
}

// tell answers; honestly says whether what it says is true.
func (l *liar) tell(now time.Time) (enis []awsutils.ENI, honestly bool, err error) {
	truth := l.cloud.attached(now)
	l.history = append(l.history, said{now, truth})
	if len(l.history) > 20 {
		l.history = l.history[1:]
	}
	if l.left--; l.left < 0 {
		l.mode, l.left = l.r.IntN(12), l.r.IntN(4)
		l.frozen = l.history[l.r.IntN(len(l.history))].enis
	}
	if l.honest {
		return truth, true, nil
	}
	for i := range truth {
		truth[i].Secondary, truth[i].Prefixes = slices.Clone(truth[i].Secondary), slices.Clone(truth[i].Prefixes)
	}
	some := &truth[l.r.IntN(len(truth))]
	switch l.mode {
	case 0: // leaves ENIs out
		return slices.DeleteFunc(truth, func(awsutils.ENI) bool { return l.r.IntN(2) == 0 }), false, nil
	case 1: // leaves addresses out
		for i := range truth {
			truth[i].Secondary = slices.DeleteFunc(truth[i].Secondary, func(netip.Addr) bool { return l.r.IntN(3) == 0 })
			truth[i].Prefixes = slices.DeleteFunc(truth[i].Prefixes, func(netip.Prefix) bool { return l.r.IntN(3) == 0 })
		}
		return truth, false, nil
	case 2: // is late
		return l.history[l.r.IntN(len(l.history))].enis, false, nil
	case 3: // is stuck
		return l.frozen, false, nil
	case 4: // says a MAC address twice
		return append(truth, *some), false, nil
	case 5: // gives the ENIs addresses of others
		some.Secondary = append(some.Secondary, testCIDR.Addr().Next().Next())
		return truth, false, nil
	case 6: // gives one ENI what is another's
		from := truth[l.r.IntN(len(truth))]
		some.Secondary, some.Prefixes = from.Secondary, from.Prefixes
		return truth, false, nil
	case 7: // knows an ENI that is not there
		return append(truth, awsutils.ENI{ID: "eni-ghost", MAC: net.HardwareAddr{2, 9, 9, 9, 9, 9}, Device: 7, SubnetID: testSubnet,
			SubnetCIDR: testCIDR, Primary: testCIDR.Addr().Next()}), false, nil
	case 8: // fails
		return nil, false, errors.New("imds: 500")
	case 9: // knows nothing
		return nil, false, nil
	}
	return truth, true, nil
}
