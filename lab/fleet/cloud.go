package fleet

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"vpccni/lab/ec2"
	"vpccni/lab/fleet/vtime"
	"vpccni/pkg/awsutils"
)

// actions are what nodes ask of EC2.
var actions = []string{
	"AssignPrivateIpAddresses", "AttachNetworkInterface", "CreateNetworkInterface", "CreateTags", "DeleteNetworkInterface",
	"DescribeInstances", "DescribeInstanceTypes", "DescribeNetworkInterfaces", "DescribeSubnets", "DetachNetworkInterface",
	"ModifyNetworkInterfaceAttribute", "UnassignPrivateIpAddresses",
}

// clusterName is CLUSTER_NAME of every node.
const clusterName = "fleet"

// buildCloud makes EC2 with its VPC and subnets.
func (f *fleet) buildCloud() ([]ec2.Subnet, error) {
	f.ledger = newLedger(f.world)
	// With a seed EC2 scatters addresses, as the real one does.
	f.cloud = ec2.New(ec2.Options{Clock: f.world.Clock(), Seed: f.cfg.Seed | 1, Plane: f.ledger,
		AttachDelay: f.cfg.AttachDelay, DetachDelay: f.cfg.DetachDelay})
	perRange := 1 << (f.cfg.SubnetBits - 16)
	n := max(f.cfg.Subnets, 1)
	if n > 200*perRange {
		return nil, fmt.Errorf("%d subnets of /%d are more than a VPC has room for", n, f.cfg.SubnetBits)
	}
	var ranges []netip.Prefix
	for i := range (n + perRange - 1) / perRange {
		ranges = append(ranges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16))
	}
	var err error
	if f.vpc, err = f.cloud.CreateVPC(ranges...); err != nil {
		return nil, err
	}
	var subnets []ec2.Subnet
	for i := range n {
		at := uint32(i%perRange) << (32 - f.cfg.SubnetBits)
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / perRange), byte(at >> 8), byte(at)}), f.cfg.SubnetBits)
		s, err := f.cloud.CreateSubnet(ec2.Subnet{VPCID: f.vpc.ID, Zone: "us-west-2" + string(rune('a'+i%3)), CIDR: cidr})
		if err != nil {
			return nil, err
		}
		subnets = append(subnets, s)
		f.subnets[s.ID] = s.CIDR
	}
	for _, action := range actions {
		b, ok := f.cfg.Buckets[action]
		if !ok {
			b = f.cfg.Buckets[""]
		}
		f.cloud.SetThrottle(action, b.Burst, b.PerSecond)
	}
	return subnets, nil
}

// wire carries requests to the cloud, and takes its time.
type wire struct {
	world   *vtime.World
	to      http.RoundTripper
	latency time.Duration
}

// Do is aws.HTTPClient's.
func (l wire) Do(r *http.Request) (*http.Response, error) {
	trip := time.Duration((0.5 + l.world.Float64()) * float64(l.latency))
	if err := l.world.Sleep(r.Context(), trip/2); err != nil {
		return nil, err
	}
	resp, err := l.to.RoundTrip(r)
	// The answer is lost on one who does not wait for it.
	if lost := l.world.Sleep(r.Context(), trip-trip/2); lost != nil {
		return nil, lost
	}
	return resp, err
}

func (f *fleet) wire() wire {
	return wire{world: f.world, to: f.cloud.Transport(), latency: f.cfg.Latency}
}

// keys gives an instance's credentials.
type keys struct {
	cloud    *ec2.Cloud
	instance string
}

// Retrieve is aws.CredentialsProvider's.
func (k keys) Retrieve(context.Context) (aws.Credentials, error) {
	c := k.cloud.Credentials(k.instance)
	return aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken,
		CanExpire: true, Expires: c.Expiration}, nil
}

// ledger follows every ENI as the network sees it: what addresses are taken from the VPC, and which interfaces are
// there.
type ledger struct {
	world    *vtime.World
	enis     map[string]held
	attached map[string]string             // by MAC: the instance whose interface is there
	plugged  map[string]map[string]ec2.ENI // by instance and id: the ENIs whose interfaces are there
	pool     integral                      // addresses for pods
	all      integral                      // and the ENIs' own
}

type held struct {
	pool     int
	mac      string
	instance string // that the interface is on
}

func newLedger(w *vtime.World) *ledger {
	return &ledger{world: w, enis: map[string]held{}, attached: map[string]string{},
		plugged: map[string]map[string]ec2.ENI{}, pool: integral{w: w, at: w.Now()},
		all: integral{w: w, at: w.Now()}}
}

// Sync is ec2.Plane's.
func (l *ledger) Sync(e ec2.ENI) error {
	was, known := l.enis[e.ID]
	now := held{pool: len(e.Secondary) + 16*len(e.Prefixes), mac: e.MAC.String()}
	if e.Attachment != nil && e.Attachment.State == "attached" {
		now.instance = e.Attachment.InstanceID
	}
	l.enis[e.ID] = now
	l.pool.add(now.pool - was.pool)
	l.all.add(now.pool - was.pool)
	if !known {
		l.all.add(1)
	}
	l.unplug(e.ID, was)
	if now.instance != "" {
		l.attached[now.mac] = now.instance
		if l.plugged[now.instance] == nil {
			l.plugged[now.instance] = map[string]ec2.ENI{}
		}
		l.plugged[now.instance][e.ID] = e
	}
	return nil
}

func (l *ledger) unplug(id string, was held) {
	delete(l.attached, was.mac)
	delete(l.plugged[was.instance], id)
}

// Remove is ec2.Plane's.
func (l *ledger) Remove(id string) error {
	was := l.enis[id]
	delete(l.enis, id)
	l.unplug(id, was)
	l.pool.add(-was.pool)
	l.all.add(-was.pool - 1)
	return nil
}

// SyncVPC is ec2.Plane's.
func (l *ledger) SyncVPC(ec2.VPC, []ec2.Subnet) error { return nil }

// integral is a number over time.
type integral struct {
	w     *vtime.World
	level int
	peak  int
	at    time.Time
	hours float64
}

func (i *integral) add(n int) {
	i.settle()
	i.level += n
	i.peak = max(i.peak, i.level)
}

func (i *integral) settle() {
	now := i.w.Now()
	i.hours += float64(i.level) * now.Sub(i.at).Hours()
	i.at = now
}

// metadata is an instance's IMDS: what EC2 has attached to it, at once.
type metadata struct {
	f        *fleet
	instance string
}

// Pools is ipamd.Metadata's.
func (m metadata) Pools(ctx context.Context, prefixes bool) ([]awsutils.ENI, error) {
	enis, err := m.ENIs(ctx)
	for i := range enis {
		enis[i] = awsutils.ENI{MAC: enis[i].MAC, Primary: enis[i].Primary, Secondary: enis[i].Secondary, Prefixes: enis[i].Prefixes}
		if !prefixes {
			enis[i].Prefixes = nil
		}
	}
	return enis, err
}

// ENIs is ipamd.Metadata's.
func (m metadata) ENIs(ctx context.Context) ([]awsutils.ENI, error) {
	if err := m.f.world.Sleep(ctx, imdsTime); err != nil {
		return nil, err
	}
	var enis []awsutils.ENI
	for id, e := range m.f.ledger.plugged[m.instance] {
		enis = append(enis, awsutils.ENI{ID: id, MAC: e.MAC, Device: e.Attachment.Device, Card: e.Attachment.Card, SubnetID: e.SubnetID,
			SubnetCIDR: m.f.subnets[e.SubnetID], Primary: e.Primary, Secondary: e.Secondary, Prefixes: e.Prefixes, InstanceID: m.instance})
	}
	slices.SortFunc(enis, func(a, b awsutils.ENI) int { return cmp.Or(a.Card-b.Card, a.Device-b.Device) })
	return enis, nil
}
