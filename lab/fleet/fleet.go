// Package fleet simulates a cluster's worth of nodes on virtual time: the real ipamd (controller and shell), the real
// EC2 client with its rate limits, retries and deadlines, and the lab's EC2 behind its real wire format, thousands of
// times in one process. What is left out is written in docs/fleet.md: the kernel, the disk and IMDS are fakes that take
// no more than a little time.
//
// A run depends on its Config alone: the same seed gives the same result.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vpccni/lab/ec2"
	"vpccni/lab/fleet/vtime"
	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/maxpods"
)

// Algorithm is who manages the nodes' pools.
type Algorithm string

// The algorithms.
const (
	// Ours is this project's ipamd.
	Ours Algorithm = "ours"
	// Upstream is a model of the documented behaviour of the CNI that it takes the place of (lab/fleet/upstream).
	Upstream Algorithm = "upstream"
)

// Bucket is one of EC2's token buckets.
type Bucket struct {
	Burst     int     `json:"burst"`
	PerSecond float64 `json:"perSecond"`
}

// Restart has all ipamds of the fleet start anew with what they had written down.
type Restart struct {
	At     time.Duration // after the start of the run
	Within time.Duration // spread evenly
}

// Config is a fleet and what happens to it.
type Config struct {
	Algorithm     Algorithm
	Nodes         int
	InstanceTypes []string // dealt out in turn
	// Settings are ipamd's environment.
	Settings map[string]string
	Trace    Trace
	Duration time.Duration
	// BootWithin spreads the nodes' start evenly.
	BootWithin time.Duration
	Restart    *Restart // nil: none
	// Buckets are EC2's token buckets by action; that of "" is every other action's. None: EC2 does not throttle.
	Buckets map[string]Bucket
	// Latency is the mean round trip to EC2: each is drawn evenly between half of it and half more.
	Latency time.Duration
	// AttachDelay and DetachDelay are how long EC2 takes to attach and detach an ENI.
	AttachDelay, DetachDelay time.Duration
	// Subnets is how many subnets there are, with SubnetBits of prefix length. Nodes are dealt out in turn.
	Subnets    int
	SubnetBits int
	Seed       uint64
}

// Defaults of a Config.
const (
	DefaultLatency     = 150 * time.Millisecond
	DefaultAttachDelay = 4 * time.Second
	DefaultDetachDelay = 4 * time.Second
	DefaultSubnetBits  = 18
)

// start is the virtual time at which a run begins. It lies before the present: the keys that the lab's EC2 gives out in
// virtual time have ended by the SDK's clock, so that it takes the newest one for each call.
var start = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// complete fills in defaults and finds mistakes.
func (c *Config) complete() error {
	if c.Algorithm == "" {
		c.Algorithm = Ours
	}
	orDefault := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	orDefault(&c.Latency, DefaultLatency)
	orDefault(&c.AttachDelay, DefaultAttachDelay)
	orDefault(&c.DetachDelay, DefaultDetachDelay)
	if c.SubnetBits == 0 {
		c.SubnetBits = DefaultSubnetBits
	}
	if len(c.InstanceTypes) == 0 {
		c.InstanceTypes = []string{"m5.xlarge"}
	}
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(c.Algorithm == Ours || c.Algorithm == Upstream, "algorithm %q is neither %s nor %s", c.Algorithm, Ours, Upstream)
	require(c.Nodes > 0, "a fleet has at least one node")
	require(c.Duration > 0, "a run has a duration")
	require(c.SubnetBits >= 16 && c.SubnetBits <= 28, "a subnet is a /16 to a /28, not a /%d", c.SubnetBits)
	require(c.Restart == nil || c.Algorithm == Ours, "only our ipamd restarts: the model has no journal")
	for _, t := range c.InstanceTypes {
		_, known := awsutils.LimitsOf(t)
		require(known, "instance type %q is not known", t)
	}
	if _, err := c.environment(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// environment parses the settings as ipamd does.
func (c *Config) environment() (config.Config, error) {
	return config.Load(func(name string) (string, bool) {
		if v, ok := c.Settings[name]; ok {
			return v, true
		}
		v, ok := manifest[name]
		return v, ok
	})
}

// manifest is what every manifest sets.
var manifest = map[string]string{"ENABLE_IPv4": "true", "ENABLE_IPv6": "false"}

// MaxPods is what the kubelet of an instance type takes, two of them with the host's network.
func MaxPods(instanceType string, prefixes bool) int {
	limits, _ := awsutils.LimitsOf(instanceType)
	slots := limits.IPv4PerENI - 1
	if prefixes && limits.TakesPrefixes() {
		slots *= 16
	}
	n := limits.ENIs*slots + hostPods
	if most, ok := maxpods.CapByName(instanceType); ok && prefixes {
		n = min(n, most)
	}
	return n
}

// hostPods are the pods of a node that need no address: kube-proxy and the CNI itself.
const hostPods = 2

// node is a node's ipamd, ours or the model.
type node interface {
	// boot starts it, in a process of its own; ready is called once it serves.
	boot(ready func())
	// add asks for an address and says what came of it, once.
	add(p *pod, answer func(error))
	// del gives the address back.
	del(p *pod)
}

// fleet is a run.
type fleet struct {
	cfg     Config
	env     config.Config
	world   *vtime.World
	cloud   *ec2.Cloud
	ledger  *ledger
	vpc     ec2.VPC
	subnets map[string]netip.Prefix
	nodes   []node
	rand    *rand.Rand
	tally   tally
}

// Run runs a fleet to its end.
func Run(ctx context.Context, c Config) (Result, error) {
	if err := c.complete(); err != nil {
		return Result{}, err
	}
	began := time.Now()
	env, err := c.environment()
	if err != nil {
		return Result{}, err
	}
	f := &fleet{cfg: c, env: env, subnets: map[string]netip.Prefix{}, world: vtime.New(start, c.Seed), rand: rand.New(rand.NewPCG(c.Seed, 0xf1ee7))}
	defer f.world.Close()
	if err := f.build(); err != nil {
		return Result{}, err
	}
	if err := f.world.Run(ctx, start.Add(c.Duration)); err != nil {
		return Result{}, err
	}
	return f.result(time.Since(began)), nil
}

// build makes the cloud and the nodes, and sets going what happens to them.
func (f *fleet) build() error {
	subnets, err := f.buildCloud()
	if err != nil {
		return err
	}
	for i := range f.cfg.Nodes {
		instanceType := f.cfg.InstanceTypes[i%len(f.cfg.InstanceTypes)]
		instance, err := f.cloud.RunInstance(ec2.InstanceSpec{Type: instanceType, SubnetID: subnets[i%len(subnets)].ID})
		if err != nil {
			return err
		}
		n, err := f.newNode(instance, subnets[i%len(subnets)])
		if err != nil {
			return err
		}
		f.nodes = append(f.nodes, n)
	}
	for i, n := range f.nodes {
		k := f.follow(i, n)
		f.world.After(f.spread(f.cfg.BootWithin), func() { f.bootNode(n, k) })
	}
	f.restartAll()
	return nil
}

func (f *fleet) newNode(i ec2.Instance, s ec2.Subnet) (node, error) {
	if f.cfg.Algorithm == Upstream {
		return newModel(f, i), nil
	}
	return newIPAMD(f, i, s)
}

func (f *fleet) bootNode(n node, k *kubelet) {
	began := f.world.Now()
	f.world.Go(func() {
		n.boot(func() {
			f.tally.ready = append(f.tally.ready, f.world.Now().Sub(began))
			k.nodeReady()
		})
	})
}

// spread draws a time within a span.
func (f *fleet) spread(d time.Duration) time.Duration {
	return time.Duration(f.rand.Float64() * float64(d))
}

// follow has a node's pods come and go.
func (f *fleet) follow(i int, n node) *kubelet {
	instanceType := f.cfg.InstanceTypes[i%len(f.cfg.InstanceTypes)]
	room := MaxPods(instanceType, f.env.PrefixDelegation) - hostPods
	k := &kubelet{f: f, node: n, name: fmt.Sprintf("n%d", i)}
	k.follow(f.cfg.Trace.Pods(TraceNode{Index: i, InstanceType: instanceType, Room: room, Duration: f.cfg.Duration, Seed: f.cfg.Seed}))
	return k
}

// restartAll restarts all nodes' ipamds at the time for it, and counts what that costs.
func (f *fleet) restartAll() {
	r := f.cfg.Restart
	if r == nil {
		return
	}
	var before map[ec2.CountKey]int
	f.world.After(r.At, func() { before = f.cloud.Counts() })
	for _, n := range f.nodes {
		f.world.After(r.At+f.spread(r.Within), n.(*ipamdNode).restart)
	}
	f.world.After(r.At+r.Within+restartWindow, func() {
		f.tally.restartCalls = callsOf(f.cloud.Counts())
		f.tally.restartCalls.subtract(callsOf(before))
	})
}

// restartWindow is how long after a restart its calls are counted.
const restartWindow = 90 * time.Second

// settingsText shows the settings in one line.
func settingsText(m map[string]string) string {
	var parts []string
	for k, v := range m {
		parts = append(parts, k+"="+v)
	}
	slices.Sort(parts)
	if len(parts) == 0 {
		return "defaults"
	}
	return strings.Join(parts, " ")
}
