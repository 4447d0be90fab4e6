package ipamd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/networkutils/hostnet"
)

// account is the cloud as an EC2 client sees it: every call takes a while.
type account struct {
	*cloud
	delay time.Duration
}

func (a account) wait() time.Time {
	time.Sleep(a.delay)
	return time.Now()
}

func (a account) DescribeENIs(_ context.Context, instance string) ([]awsutils.ENI, error) {
	return a.describe("DescribeENIs", a.wait(), func(e *awsutils.ENI) bool { return e.InstanceID == instance })
}

func (a account) DescribeENIsByID(_ context.Context, ids ...string) ([]awsutils.ENI, error) {
	return a.describe("DescribeENIsByID", a.wait(), func(e *awsutils.ENI) bool { return slices.Contains(ids, e.ID) })
}

func (a account) DescribeENIsByTag(_ context.Context, key, value string) ([]awsutils.ENI, error) {
	return a.describe("DescribeENIsByTag", a.wait(), func(e *awsutils.ENI) bool { return e.Tags[key] == value })
}

func (a account) DescribeSubnets(context.Context, string, string) ([]awsutils.Subnet, error) {
	return a.describeSubnets(a.wait())
}

func (a account) AssignAddresses(_ context.Context, eni string, addrs []netip.Addr) ([]netip.Addr, error) {
	return a.assignAddresses(eni, addrs, a.wait())
}

func (a account) CreateENI(_ context.Context, n awsutils.NewENI) (awsutils.ENI, error) {
	return a.create(n, a.wait())
}

func (a account) AttachENI(_ context.Context, eni, instance string, device, _ int) (string, error) {
	return a.attach(eni, instance, device, a.wait())
}

func (a account) DeleteOnTermination(_ context.Context, eni, att string) error {
	return a.protect(eni, att, a.wait())
}

func (a account) DetachENI(_ context.Context, att string) error { return a.detach(att, a.wait()) }
func (a account) DeleteENI(_ context.Context, eni string) error { return a.remove(eni, a.wait()) }

func (a account) AssignIPs(_ context.Context, eni string, n int) ([]netip.Addr, error) {
	return a.assign(eni, n, a.wait())
}

func (a account) UnassignIPs(_ context.Context, eni string, addrs []netip.Addr) error {
	return a.unassign(eni, addrs, a.wait())
}

func (a account) AssignPrefixes(_ context.Context, eni string, n int) ([]netip.Prefix, error) {
	return a.assignPrefixes(eni, n, a.wait())
}

func (a account) UnassignPrefixes(_ context.Context, eni string, prefixes []netip.Prefix) error {
	return a.unassignPrefixes(eni, prefixes, a.wait())
}

// host is a host network that believes what it is told, as far as the interfaces are there.
type host struct {
	cloud *cloud
	mu    sync.Mutex
	cfg   hostnet.Config
	fails func() error
	delay time.Duration
}

func (h *host) WaitLink(ctx context.Context, mac net.HardwareAddr) error {
	for {
		there, at := h.cloud.hasLink(mac, time.Now())
		if there {
			return nil
		}
		wait := time.Second
		if !at.IsZero() && time.Until(at) > 0 {
			wait = time.Until(at)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (h *host) Apply(_ context.Context, cfg hostnet.Config) (hostnet.Report, error) {
	time.Sleep(h.delay)
	return h.apply(cfg, time.Now())
}

func (h *host) apply(cfg hostnet.Config, now time.Time) (hostnet.Report, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fails != nil {
		if err := h.fails(); err != nil {
			return hostnet.Report{}, err
		}
	}
	r := hostnet.Report{Writes: 1, NotReady: map[string]error{}}
	for _, e := range cfg.ENIs {
		if there, _ := h.cloud.hasLink(e.MAC, now); !there {
			r.NotReady[e.ID] = errors.New("no interface with MAC " + e.MAC.String())
		}
	}
	h.cfg = cfg
	return r, nil
}

// disk keeps the last state that was made durable.
type disk struct {
	take  func() checkpoint.State
	mu    sync.Mutex
	state checkpoint.State
	fails func() error
	delay time.Duration
	saves int
}

func (d *disk) Commit(ctx context.Context) error {
	s := d.take()
	d.mu.Lock()
	delay := d.delay
	d.mu.Unlock()
	time.Sleep(delay)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.fails != nil {
		if err := d.fails(); err != nil {
			return err
		}
	}
	d.saves++
	d.state = s
	return nil
}

func (d *disk) slow(by time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.delay = by
}

func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.saves
}

func (d *disk) last() checkpoint.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

func (h *host) config() hostnet.Config {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cfg
}
