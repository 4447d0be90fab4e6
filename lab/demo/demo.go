// Package demo is the product's main job, shown end to end: pods on simulated EC2 instances get VPC addresses from an
// ENI warm pool and reach each other, the internet and on-prem as on AWS. Every path is checked with real packets, and
// every check ends up in a table with its figure.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
)

// Options of the demonstration.
type Options struct {
	// BinDir has aws-k8s-agent, aws-cni and portmap.
	BinDir string
	// Out is where progress and the table go.
	Out io.Writer
	// JSON, if not empty, is a file that gets the checks as JSON.
	JSON string
}

// ErrFailed means that a check did not pass; the table says which.
var ErrFailed = errors.New("checks failed")

// timeout bounds the whole demonstration.
const timeout = 5 * time.Minute

// Waits that are shortened so that shrinking can be seen within a minute, in seconds.
const (
	cooldownSeconds    = "3"
	shrinkDelaySeconds = "6"
)

// attachDelay is how long EC2 takes to attach an ENI; a few seconds in reality.
const attachDelay = 2 * time.Second

// probePort is where every pod, node and host answers.
const probePort = 7777

// scene is what the parts of the demonstration share.
type scene struct {
	*report
	cluster *cluster.Cluster
	ends    map[string]endpoint // by name
}

// Run runs the demonstration in the calling sandbox. It returns ErrFailed if a check fails, and another error if it
// could not be carried through.
func Run(ctx context.Context, opts Options) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the demonstration took longer than %s", timeout))
	defer cancel()
	r := &report{out: opts.Out, start: time.Now()}
	r.step("A VPC with 3 instances of type t3.medium in 2 subnets")
	r.note("subnet-a is public; subnet-b is private, behind a NAT gateway, and its node runs with EXTERNALSNAT=true")
	r.note("shortened for the demonstration: IP_COOLDOWN_PERIOD=%s s (usually 30), POOL_SHRINK_DELAY=%s s (usually 60)", cooldownSeconds, shrinkDelaySeconds)
	c, err := cluster.New(ctx, spec(opts.BinDir), cluster.Hooks{Progress: r.note})
	if err != nil {
		return err
	}
	s := &scene{report: r, cluster: c, ends: map[string]endpoint{}}
	err = s.play(ctx)
	err = errors.Join(err, c.Close())
	r.table()
	if opts.JSON != "" {
		err = errors.Join(err, r.writeJSON(opts.JSON))
	}
	if err != nil {
		return err
	}
	n := r.failed()
	fmt.Fprintf(opts.Out, "\n%d checks, %d failed, %.1f s\n", len(r.checks), n, time.Since(r.start).Seconds())
	if n > 0 {
		return fmt.Errorf("%d %w", n, ErrFailed)
	}
	return nil
}

func spec(binDir string) cluster.Spec {
	return cluster.Spec{
		Name: "demo",
		Subnets: []cluster.Subnet{
			{Name: "subnet-a", CIDR: netip.MustParsePrefix("10.0.1.0/24"), Zone: "us-west-2a"},
			{Name: "subnet-b", CIDR: netip.MustParsePrefix("10.0.2.0/24"), Zone: "us-west-2b", Private: true},
		},
		Nodes: []cluster.NodeSpec{
			{Name: "n1", Type: "t3.medium", Subnet: "subnet-a"},
			{Name: "n2", Type: "t3.medium", Subnet: "subnet-a"},
			{Name: "n3", Type: "t3.medium", Subnet: "subnet-b", Env: map[string]string{"AWS_VPC_K8S_CNI_EXTERNALSNAT": "true"}},
		},
		AttachDelay: attachDelay,
		DetachDelay: attachDelay / 2,
		Env: map[string]string{
			"IP_COOLDOWN_PERIOD": cooldownSeconds,
			"POOL_SHRINK_DELAY":  shrinkDelaySeconds,
		},
		BinDir: binDir,
	}
}

// play is the order of the scenes. It ends early only where nothing after it would make sense.
func (s *scene) play(ctx context.Context) error {
	for _, part := range []func(context.Context) error{
		s.serveHosts, s.grow, s.refuse, s.populate, s.paths, s.outside, s.sizes, s.shrink,
	} {
		if err := part(ctx); err != nil {
			s.explain()
			return err
		}
	}
	s.drops()
	if s.failed() > 0 {
		s.explain()
	}
	return nil
}

// explain shows what the daemons said last, for a failure is theirs more often than not.
func (s *scene) explain() {
	for _, n := range s.cluster.Nodes() {
		s.note("end of ipamd's log on %s:\n%s", n.Name, lastLines(n.IPAMDLog(), 12))
		if log := n.PluginLog(); log != "" {
			s.note("end of the plugin's log on %s:\n%s", n.Name, lastLines(log, 6))
		}
	}
}

// drops checks that the fabric found nothing to drop but what was meant to be.
func (s *scene) drops() {
	s.step("What the VPC dropped")
	drops, err := s.cluster.Fabric().Drops()
	if err != nil {
		s.add("vpc", "drops", "", err)
		return
	}
	for _, cause := range []fabric.Cause{fabric.SourceNotAssigned, fabric.DestinationNotAssigned, fabric.NoPublicMapping} {
		var packets uint64
		var first error
		for _, d := range drops {
			if d.Cause != cause {
				continue
			}
			packets += d.Packets
			if first == nil {
				first = fmt.Errorf("first: %s → %s, sent by %s %s", d.Source, d.Destination, d.Instance, d.ENI)
			}
		}
		s.add("vpc", "dropped: "+string(cause), fmt.Sprintf("%d packets", packets), first)
	}
}

func (r *report) writeJSON(file string) error {
	text, err := json.MarshalIndent(r.checks, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
