package fleet

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/jonboulle/clockwork"

	"vpccni/lab/ec2"
	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/bootstrap"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/networkutils/hostnet"
)

// What the fakes take of time.
const (
	commitTime  = 200 * time.Microsecond // an append to the journal on tmpfs
	applyTime   = 5 * time.Millisecond   // a change of the host's network
	linkPoll    = 100 * time.Millisecond // the kernel tells at once; the simulation looks
	processTime = 500 * time.Millisecond // from the start of the process to that of the daemon, IMDS included
	imdsTime    = 5 * time.Millisecond   // a walk
	readyPoll   = 10 * time.Millisecond
	slowPoll    = time.Second // where it takes long
	verifyPoll  = 500 * time.Millisecond
)

// ipamdNode is a node with our ipamd.
type ipamdNode struct {
	f        *fleet
	opts     ipamd.Options
	instance ec2.Instance
	limits   awsutils.Limits
	life     *life
	daemon   *ipamd.Daemon
	durable  checkpoint.State
	pods     map[*pod]func(delivered bool) // ADDs without an answer
}

// life is one run of an ipamd's process. What it set going does nothing once it is over.
type life struct {
	clockwork.Clock
	f    *fleet
	ctx  context.Context
	end  context.CancelFunc
	over bool
}

func (f *fleet) newLife() *life {
	ctx, cancel := f.world.Context()
	return &life{Clock: f.world.Clock(), f: f, ctx: ctx, end: cancel}
}

// AfterFunc is clockwork.Clock's.
func (l *life) AfterFunc(d time.Duration, f func()) clockwork.Timer {
	return l.Clock.AfterFunc(d, func() {
		if !l.over {
			f()
		}
	})
}

func (l *life) spawn(ctx context.Context, timeout time.Duration, f func(context.Context)) {
	if !l.over {
		l.f.world.Spawn(ctx, timeout, f)
	}
}

func (l *life) kill() {
	l.over = true
	l.end()
}

func newIPAMD(f *fleet, i ec2.Instance, s ec2.Subnet) (node, error) {
	limits, _ := awsutils.LimitsOf(i.Type)
	primary := f.cloud.ENIsOf(i.ID)[0]
	n := &ipamdNode{f: f, instance: i, limits: limits, pods: map[*pod]func(bool){}}
	settings := bootstrap.Settings(f.env, limits, slog.New(slog.DiscardHandler))
	settings.ClusterName = clusterName
	settings.Targets.MaxPods = MaxPods(i.Type, settings.Targets.Prefixes)
	n.opts = ipamd.Options{
		Settings: settings, Limits: limits, Groups: primary.Groups, VPCCIDRs: f.vpc.CIDRs,
		Subnets: map[string]netip.Prefix{s.ID: s.CIDR},
		Identity: awsutils.Identity{Region: f.cloud.Region(), Zone: i.Zone, InstanceID: i.ID, InstanceType: i.Type,
			VPCID: i.VPCID, SubnetID: i.SubnetID, PrimaryENI: primary.ID, PrimaryMAC: primary.MAC.String(), PrimaryIP: primary.Primary},
		Network: network{f}, Metadata: metadata{f, i.ID}, Checkpointer: n, Rand: rand.New(rand.NewPCG(f.cfg.Seed, f.rand.Uint64())),
	}
	return n, nil
}

func (n *ipamdNode) boot(ready func()) { n.begin(ready) }

// begin starts a life and says when it serves.
func (n *ipamdNode) begin(ready func()) {
	life := n.f.newLife()
	n.life = life
	if n.f.world.Sleep(life.ctx, processTime) != nil {
		return
	}
	o := n.opts
	o.Clock, o.Spawn, o.Restored = life, life.spawn, n.durable
	client, err := awsutils.NewEC2(context.Background(), awsutils.EC2Options{
		Region: n.f.cloud.Region(), Endpoint: "http://ec2.simulated", Version: "fleet", Credentials: keys{n.f.cloud, n.instance.ID},
		HTTPClient: n.f.wire(), Clock: life, Waits: n.f.world, Config: &aws.Config{},
	})
	if err != nil {
		panic(err)
	}
	o.EC2 = client
	daemon, err := ipamd.New(o)
	if err != nil {
		panic(err)
	}
	n.daemon = daemon
	if err := daemon.Start(life.ctx); err != nil {
		panic(err)
	}
	for poll := readyPoll; ; poll = min(poll*21/20, slowPoll) {
		select {
		case <-daemon.Ready():
			ready()
			return
		default:
		}
		if n.f.world.Sleep(life.ctx, poll) != nil {
			return
		}
	}
}

// restart ends the process at once and starts it anew from what was durable.
func (n *ipamdNode) restart() {
	began := n.f.world.Now()
	n.life.kill()
	n.daemon = nil
	for _, p := range sortedPods(n.pods) {
		delete(n.pods, p)
		p.answer(errAway)
	}
	n.f.world.Go(func() {
		n.begin(func() { n.f.tally.serving = append(n.f.tally.serving, n.f.world.Now().Sub(began)) })
		life := n.life
		for n.f.world.Sleep(life.ctx, verifyPoll) == nil {
			if at := n.daemon.View().Verified; !at.IsZero() {
				n.f.tally.verified = append(n.f.tally.verified, at.Sub(began))
				return
			}
		}
	})
}

// Commit is ipamd.Checkpointer's.
func (n *ipamdNode) Commit(ctx context.Context) error {
	daemon := n.daemon
	if err := n.f.world.Sleep(ctx, commitTime); err != nil {
		return err
	}
	// Nobody reads what a fleet without a restart has written down.
	if daemon != nil && daemon == n.daemon && n.f.cfg.Restart != nil {
		n.durable = daemon.Durable()
	}
	return nil
}

func (p *pod) sandbox() ipamd.Sandbox {
	return ipamd.Sandbox{NetworkName: "aws-cni", ContainerID: p.container, IfName: "eth0"}
}

func (n *ipamdNode) add(p *pod, answer func(error)) {
	if n.daemon == nil {
		answer(errAway)
		return
	}
	daemon := n.daemon
	p.answer = answer
	n.pods[p] = nil
	n.pods[p] = daemon.BeginAdd(ipamd.AddRequest{Sandbox: p.sandbox(), Namespace: "default", Pod: p.name}, func(_ ipamd.AddReply, err error) {
		// The daemon must not be called from here.
		n.f.world.After(0, func() {
			ended, waits := n.pods[p]
			if !waits || daemon != n.daemon {
				return
			}
			delete(n.pods, p)
			ended(err == nil)
			answer(err)
		})
	})
}

func (n *ipamdNode) del(p *pod) {
	if n.daemon == nil {
		// A note is left, which ipamd reads when it starts.
		n.f.world.After(time.Second, func() { n.del(p) })
		return
	}
	if ended, waits := n.pods[p]; waits {
		delete(n.pods, p)
		ended(false)
		return
	}
	n.daemon.BeginDel(ipamd.DelRequest{Sandbox: p.sandbox(), Namespace: "default", Pod: p.name}, func(_ ipamd.DelReply, err error) {
		if err == nil {
			n.f.tally.cool(n.opts.Settings.Cooldown)
		}
	})
}

// network is a host's network that does as it is told.
type network struct{ f *fleet }

// WaitLink is ipamd.Network's.
func (n network) WaitLink(ctx context.Context, mac net.HardwareAddr) error {
	for n.f.ledger.attached[mac.String()] == "" {
		if err := n.f.world.Sleep(ctx, linkPoll); err != nil {
			return err
		}
	}
	return nil
}

// Apply is ipamd.Network's.
func (n network) Apply(ctx context.Context, _ hostnet.Config) (hostnet.Report, error) {
	return hostnet.Report{}, n.f.world.Sleep(ctx, applyTime)
}
