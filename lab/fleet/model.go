package fleet

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"vpccni/lab/ec2"
	"vpccni/lab/fleet/upstream"
	"vpccni/pkg/awsutils"
)

// model is a node whose pool upstream's algorithm manages: its decisions from lab/fleet/upstream, and around them the
// calls that it makes, in its order, with its waits and repetitions, in one loop that does one thing at a time. The SDK
// repeats its calls as it does by default: three attempts, no rate limit of its own.
//
// Left out, and all to its advantage: the 30 s for which a start waits for the API server, what its checkpoint and its
// iptables cost an ADD, and the faults that are listed as its weaknesses.
type model struct {
	f        *fleet
	instance ec2.Instance
	primary  ec2.ENI
	targets  upstream.Targets
	store    *upstream.Store
	api      *sdk.Client
	ctx      context.Context
	serving  bool

	lastDecrease time.Time
	lastAction   time.Time
	pausedTill   time.Time // for want of addresses in the subnet
}

const (
	modelInstanceTag = "node.k8s.amazonaws.com/instance_id"
	modelClusterTag  = "cluster.k8s.amazonaws.com/name"
)

func newModel(f *fleet, i ec2.Instance) *model {
	limits, _ := awsutils.LimitsOf(i.Type)
	prefixes := f.env.PrefixDelegation && limits.TakesPrefixes()
	enis := limits.ENIs
	if f.env.MaxENI > 0 {
		enis = min(enis, f.env.MaxENI)
	}
	ctx, _ := f.world.Context()
	return &model{
		f: f, instance: i, primary: f.cloud.ENIsOf(i.ID)[0], ctx: ctx,
		targets: upstream.Targets{WarmENI: f.env.WarmENITarget, WarmIP: f.env.WarmIPTarget, MinimumIP: f.env.MinimumIPTarget,
			WarmPrefix: f.env.WarmPrefixTarget, Prefixes: prefixes, MaxPods: MaxPods(i.Type, prefixes), ENIs: enis, Slots: limits.IPv4PerENI - 1},
		store: upstream.NewStore(f.env.IPCooldown, rand.New(rand.NewPCG(f.cfg.Seed, f.rand.Uint64()))),
		api: sdk.New(sdk.Options{Region: f.cloud.Region(), BaseEndpoint: aws.String("http://ec2.simulated"), HTTPClient: f.wire(),
			Credentials: aws.NewCredentialsCache(keys{f.cloud, i.ID}), Retryer: awsutils.RetryOn(retry.NewStandard(), f.world)}),
	}
}

func (m *model) now() time.Time                 { return m.f.world.Now() }
func (m *model) sleep(d time.Duration) bool     { return m.f.world.Sleep(m.ctx, d) == nil }
func (m *model) repeat(p backoff) func() bool   { return p.begin(m) }
func (m *model) jitter(share float64) float64   { return 1 + share*m.f.world.Float64() }
func (m *model) add(p *pod, answer func(error)) { answer(m.assign(p)) }

func (m *model) assign(p *pod) error {
	if !m.serving {
		return errAway
	}
	_, err := m.store.Assign(p.container, m.targets.Prefixes, m.now())
	return err
}

func (m *model) del(p *pod) {
	if m.store.Unassign(p.container, m.now()) == nil {
		m.f.tally.cool(m.f.env.IPCooldown)
	}
}

// backoff is upstream's way to repeat.
type backoff struct {
	first  time.Duration
	jitter float64
	tries  int
}

// The longest wait of each.
const longestBackoff = time.Minute

var (
	tagBackoff    = backoff{500 * time.Millisecond, 0.3, 5}
	detachBackoff = backoff{200 * time.Millisecond, 0.15, 12}
	deleteBackoff = backoff{500 * time.Millisecond, 0.15, 12}
	imdsBackoff   = backoff{100 * time.Millisecond, 0.15, 12}
)

// begin makes a function that waits before each try but the first, and says whether there is one.
func (b backoff) begin(m *model) func() bool {
	wait, n := b.first, 0
	return func() bool {
		n++
		switch {
		case n == 1:
			return true
		case n > b.tries || !m.sleep(time.Duration(float64(wait)*m.jitter(b.jitter))):
			return false
		}
		wait = min(2*wait, longestBackoff)
		return true
	}
}

// boot is the start of the process, and then its loop.
func (m *model) boot(ready func()) {
	if !m.sleep(processTime) {
		return
	}
	describe := func() error {
		_, err := m.api.DescribeNetworkInterfaces(m.ctx, &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{m.primary.ID}})
		return err
	}
	for try := 1; describe() != nil; try++ {
		// A node start that fails is repeated by kubelet.
		if !m.sleep(10 * time.Millisecond * time.Duration(try)) {
			return
		}
	}
	for again := m.repeat(tagBackoff); again(); {
		if _, err := m.api.CreateTags(m.ctx, &sdk.CreateTagsInput{Resources: []string{m.primary.ID}, Tags: m.tags()}); err == nil {
			break
		}
	}
	m.setUp(m.primary.ID, true, nil)
	// The set of security groups is new to the process, so it is set on every ENI.
	_, _ = m.api.ModifyNetworkInterfaceAttribute(m.ctx, &sdk.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: &m.primary.ID,
		Groups: m.primary.Groups})
	if st := m.stats(); m.targets.TooLow(st) {
		m.increase(st)
	}
	m.serving = true
	ready()
	m.f.world.Go(m.lookForLeaks)
	for m.sleep(upstream.HalfTick) {
		m.tick()
		if !m.sleep(upstream.HalfTick) {
			return
		}
		// What IMDS says is what the store has: to reconcile costs nothing here but its place in time.
		if m.now().Sub(m.lastAction) > upstream.ReconcilePace {
			m.lastAction = m.now()
		}
	}
}

func (m *model) tags() []types.Tag {
	return []types.Tag{{Key: aws.String(modelInstanceTag), Value: &m.instance.ID}, {Key: aws.String(modelClusterTag), Value: aws.String(clusterName)},
		{Key: aws.String("eks:eni:owner"), Value: aws.String("amazon-vpc-cni")}}
}

func (m *model) stats() upstream.Stats { return m.store.Stats(m.targets.Prefixes) }

// tick is one look at the pool. Growth, or else a return of addresses, and then the removal of an ENI, all from the
// same figures.
func (m *model) tick() {
	st := m.stats()
	switch {
	case m.targets.TooLow(st):
		m.increase(st)
	case m.targets.TooHigh(st) && m.now().Sub(m.lastDecrease) >= upstream.DecreasePace:
		m.decrease()
		m.lastDecrease, m.lastAction = m.now(), m.now()
	}
	if m.targets.TryRemove(st, m.store.IdleENI()) {
		if id, ok := m.store.TakeENI(m.targets, m.now()); ok {
			m.freeENI(id)
		}
	}
}

// increase fills one ENI that has room, or makes a new one.
func (m *model) increase(st upstream.Stats) {
	if m.now().Before(m.pausedTill) {
		return
	}
	want := m.targets.Want(st)
	if want == 0 {
		return
	}
	id, room := m.store.Allocatable(m.targets.Slots)
	if room == 0 {
		if m.store.ENIs() < m.targets.ENIs {
			m.createENI(min(want, m.targets.Slots))
		}
		return
	}
	got, err := m.assignBlocks(id, min(room, want))
	if err != nil && !isCode(err, "PrivateIpAddressLimitExceeded") {
		got, err = m.assignBlocks(id, 1)
	}
	if err != nil {
		if insufficient(err) {
			m.pausedTill = m.now().Add(upstream.InsufficientPause)
		}
		return
	}
	m.store.AddBlocks(id, got...)
	m.lastAction = m.now()
}

func (m *model) assignBlocks(id string, n int) ([]netip.Prefix, error) {
	in := &sdk.AssignPrivateIpAddressesInput{NetworkInterfaceId: &id}
	if m.targets.Prefixes {
		in.Ipv4PrefixCount = aws.Int32(int32(n))
	} else {
		in.SecondaryPrivateIpAddressCount = aws.Int32(int32(n))
	}
	out, err := m.api.AssignPrivateIpAddresses(m.ctx, in)
	if err != nil {
		return nil, err
	}
	var got []netip.Prefix
	for _, a := range out.AssignedPrivateIpAddresses {
		got = append(got, single(aws.ToString(a.PrivateIpAddress)))
	}
	for _, p := range out.AssignedIpv4Prefixes {
		got = append(got, netip.MustParsePrefix(aws.ToString(p.Ipv4Prefix)))
	}
	return got, nil
}

func single(ip string) netip.Prefix { return netip.PrefixFrom(netip.MustParseAddr(ip), 32) }

// createENI creates and attaches an ENI and waits until IMDS shows it.
func (m *model) createENI(blocks int) {
	if _, err := m.describeSubnets(); err != nil {
		return
	}
	in := &sdk.CreateNetworkInterfaceInput{SubnetId: &m.instance.SubnetID, Groups: m.primary.Groups,
		Description: aws.String("aws-K8S-" + m.instance.ID),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeNetworkInterface, Tags: append(m.tags(),
			types.Tag{Key: aws.String("node.k8s.amazonaws.com/createdAt"), Value: aws.String(m.now().Format(time.RFC3339))})}}}
	if m.targets.Prefixes {
		in.Ipv4PrefixCount = aws.Int32(int32(blocks))
	} else {
		in.SecondaryPrivateIpAddressCount = aws.Int32(int32(blocks))
	}
	out, err := m.api.CreateNetworkInterface(m.ctx, in)
	if err != nil {
		if insufficient(err) {
			m.pausedTill = m.now().Add(upstream.InsufficientPause)
		}
		return
	}
	id := aws.ToString(out.NetworkInterface.NetworkInterfaceId)
	device, err := m.freeDevice()
	if err != nil {
		m.deleteENI(id)
		return
	}
	attached, err := m.api.AttachNetworkInterface(m.ctx, &sdk.AttachNetworkInterfaceInput{NetworkInterfaceId: &id,
		InstanceId: &m.instance.ID, DeviceIndex: device, NetworkCardIndex: aws.Int32(0)})
	if err != nil {
		m.deleteENI(id)
		return
	}
	_, err = m.api.ModifyNetworkInterfaceAttribute(m.ctx, &sdk.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: &id,
		Attachment: &types.NetworkInterfaceAttachmentChanges{AttachmentId: attached.AttachmentId, DeleteOnTermination: aws.Bool(true)}})
	if err != nil {
		m.freeENI(id)
		return
	}
	mac := aws.ToString(out.NetworkInterface.MacAddress)
	for again := m.repeat(imdsBackoff); again(); {
		if m.f.ledger.attached[mac] != "" {
			break
		}
	}
	var got []netip.Prefix
	for _, a := range out.NetworkInterface.PrivateIpAddresses {
		if !aws.ToBool(a.Primary) {
			got = append(got, single(aws.ToString(a.PrivateIpAddress)))
		}
	}
	for _, p := range out.NetworkInterface.Ipv4Prefixes {
		got = append(got, netip.MustParsePrefix(aws.ToString(p.Ipv4Prefix)))
	}
	m.setUp(id, false, got)
	m.lastAction = m.now()
}

// setUp takes an ENI into the store. Whether its subnet is excluded is asked each time.
func (m *model) setUp(id string, primary bool, blocks []netip.Prefix) {
	m.store.AddENI(id, primary, m.now())
	_, _ = m.describeSubnets()
	m.store.AddBlocks(id, blocks...)
}

func (m *model) describeSubnets() (*sdk.DescribeSubnetsOutput, error) {
	return m.api.DescribeSubnets(m.ctx, &sdk.DescribeSubnetsInput{Filters: []types.Filter{
		{Name: aws.String("vpc-id"), Values: []string{m.instance.VPCID}},
		{Name: aws.String("availability-zone"), Values: []string{m.instance.Zone}},
	}})
}

// freeDevice asks which device indexes are taken.
func (m *model) freeDevice() (*int32, error) {
	out, err := m.api.DescribeInstances(m.ctx, &sdk.DescribeInstancesInput{InstanceIds: []string{m.instance.ID}})
	if err != nil {
		return nil, err
	}
	taken := map[int32]bool{}
	for _, r := range out.Reservations {
		for _, i := range r.Instances {
			for _, e := range i.NetworkInterfaces {
				taken[aws.ToInt32(e.Attachment.DeviceIndex)] = true
			}
		}
	}
	var device int32
	for taken[device] {
		device++
	}
	return &device, nil
}

// decrease gives back what is too much; addresses and prefixes are different calls.
func (m *model) decrease() {
	for _, r := range m.store.TakeFree(m.targets.Over(m.stats()), m.targets.Prefixes, m.now()) {
		m.f.tally.cool(-r.Cut)
		in := &sdk.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &r.ENI}
		for _, p := range r.Blocks {
			if p.IsSingleIP() {
				in.PrivateIpAddresses = append(in.PrivateIpAddresses, p.Addr().String())
			} else {
				in.Ipv4Prefixes = append(in.Ipv4Prefixes, p.String())
			}
		}
		_, _ = m.api.UnassignPrivateIpAddresses(m.ctx, in)
	}
}

// freeENI detaches and deletes an ENI. The loop stands still meanwhile.
func (m *model) freeENI(id string) {
	out, err := m.api.DescribeNetworkInterfaces(m.ctx, &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{id}})
	if err != nil || len(out.NetworkInterfaces) != 1 || out.NetworkInterfaces[0].Attachment == nil {
		return
	}
	attachment := out.NetworkInterfaces[0].Attachment.AttachmentId
	for again := m.repeat(detachBackoff); again(); {
		if _, err = m.api.DetachNetworkInterface(m.ctx, &sdk.DetachNetworkInterfaceInput{AttachmentId: attachment}); err == nil {
			break
		}
	}
	if err != nil || !m.sleep(2*time.Second) {
		return
	}
	m.deleteENI(id)
}

func (m *model) deleteENI(id string) {
	for again := m.repeat(deleteBackoff); again(); {
		_, err := m.api.DeleteNetworkInterface(m.ctx, &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id})
		if err == nil || isCode(err, "InvalidNetworkInterfaceID.NotFound") {
			return
		}
	}
}

// lookForLeaks scans the VPC for detached ENIs of the cluster every hour, as each node does.
func (m *model) lookForLeaks() {
	for m.sleep(time.Duration(m.f.world.Float64() * float64(300*time.Second))) {
		out, err := m.api.DescribeNetworkInterfaces(m.ctx, &sdk.DescribeNetworkInterfacesInput{MaxResults: aws.Int32(1000), Filters: []types.Filter{
			{Name: aws.String("tag-key"), Values: []string{modelInstanceTag}},
			{Name: aws.String("status"), Values: []string{"available"}},
			{Name: aws.String("vpc-id"), Values: []string{m.instance.VPCID}},
			{Name: aws.String("tag:" + modelClusterTag), Values: []string{clusterName}},
		}})
		if err == nil {
			for _, e := range out.NetworkInterfaces {
				m.deleteLeak(e)
			}
		}
		if !m.sleep(time.Hour) {
			return
		}
	}
}

func (m *model) deleteLeak(e types.NetworkInterface) {
	for _, t := range e.TagSet {
		if aws.ToString(t.Key) != "node.k8s.amazonaws.com/createdAt" {
			continue
		}
		if made, err := time.Parse(time.RFC3339, aws.ToString(t.Value)); err == nil && m.now().Sub(made) > 5*time.Minute {
			m.deleteENI(aws.ToString(e.NetworkInterfaceId))
		}
	}
}

func isCode(err error, code string) bool { return awsutils.Code(err) == code }

func insufficient(err error) bool {
	return strings.HasPrefix(awsutils.Code(err), "Insufficient")
}
