package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vpccni/lab/fleet"
)

// fleetGC is the garbage collector's target for a fleet: thousands of nodes are a large heap that hardly changes.
const fleetGC = 400

func fleetCommand(o *options) *cobra.Command {
	f := fleetFlags{restartWithin: 10 * time.Second}
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Simulate thousands of nodes on virtual time",
		Long: `Run the real ipamd and its EC2 client, once per node, against the lab's EC2 on virtual time: hours pass
in seconds, and the same seed gives the same result. No lab has to be up, no network is made.

EC2's token buckets are per action and shared by all nodes. A trace says which pods come to which node:
one of those built in (` + strings.Join(traceNames(), ", ") + `), or a CSV file of second,node,seconds to live.
What is simulated and what is the real code: docs/fleet.md.`,
		Example: `  vpclab fleet --nodes 5000 --duration 6h
  vpclab fleet --nodes 500 --restart-at 10m --bucket 100:20
  vpclab fleet --nodes 50 --type m5.24xlarge --trace batch --set ENABLE_PREFIX_DELEGATION=true
  vpclab fleet --nodes 50 --algorithm upstream
  vpclab fleet compare`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config()
			if err != nil {
				return err
			}
			debug.SetGCPercent(fleetGC)
			r, err := fleet.Run(cmd.Context(), c)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), r)
			}
			r.WriteTable(cmd.OutOrStdout())
			return nil
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&f.nodes, "nodes", 100, "nodes")
	flags.StringSliceVar(&f.types, "type", []string{"m5.xlarge"}, "instance types, dealt out in turn")
	flags.StringVar(&f.trace, "trace", "web", "pods: "+strings.Join(traceNames(), ", ")+", or a CSV file")
	flags.DurationVar(&f.duration, "duration", 2*time.Hour, "virtual time")
	flags.StringSliceVar(&f.settings, "set", nil, "ipamd's environment, NAME=VALUE")
	flags.StringSliceVar(&f.buckets, "bucket", nil, "EC2's token buckets, [ACTION=]BURST:PER_SECOND; without an action: of all others (default: EC2 does not throttle)")
	flags.DurationVar(&f.latency, "ec2-latency", fleet.DefaultLatency, "mean round trip to EC2")
	flags.DurationVar(&f.attach, "attach-delay", fleet.DefaultAttachDelay, "how long EC2 takes to attach an ENI, and to detach it")
	flags.IntVar(&f.subnets, "subnets", 0, "subnets (default: one for every 100 nodes)")
	flags.IntVar(&f.bits, "subnet-bits", fleet.DefaultSubnetBits, "prefix length of the subnets")
	flags.DurationVar(&f.boot, "boot-within", 10*time.Second, "all nodes start within this time")
	flags.DurationVar(&f.restartAt, "restart-at", 0, "restart all ipamds at this time (0: never)")
	flags.DurationVar(&f.restartWithin, "restart-within", f.restartWithin, "all ipamds restart within this time")
	flags.Uint64Var(&f.seed, "seed", 1, "the same seed gives the same result")
	flags.StringVar(&f.algorithm, "algorithm", string(fleet.Ours), "ours, or upstream: a model of the documented algorithm")
	cmd.AddCommand(compareCommand(o))
	return cmd
}

type fleetFlags struct {
	nodes, subnets, bits           int
	types, settings, buckets       []string
	trace, algorithm               string
	duration, latency, attach      time.Duration
	boot, restartAt, restartWithin time.Duration
	seed                           uint64
}

func traceNames() (names []string) {
	for _, t := range fleet.Traces {
		names = append(names, t.Name)
	}
	return names
}

func (f fleetFlags) config() (fleet.Config, error) {
	c := fleet.Config{Algorithm: fleet.Algorithm(f.algorithm), Nodes: f.nodes, InstanceTypes: f.types, Duration: f.duration,
		BootWithin: f.boot, Latency: f.latency, AttachDelay: f.attach, DetachDelay: f.attach, Subnets: f.subnets, SubnetBits: f.bits,
		Seed: f.seed, Settings: map[string]string{}, Buckets: map[string]fleet.Bucket{}}
	if c.Subnets == 0 {
		c.Subnets = 1 + (f.nodes-1)/100
	}
	if f.restartAt > 0 {
		c.Restart = &fleet.Restart{At: f.restartAt, Within: f.restartWithin}
	}
	var errs []error
	for _, s := range f.settings {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			errs = append(errs, fmt.Errorf("--set %s: not NAME=VALUE", s))
		}
		c.Settings[name] = value
	}
	for _, text := range f.buckets {
		action, b, err := parseBucket(text)
		if err != nil {
			errs = append(errs, err)
		}
		c.Buckets[action] = b
	}
	var err error
	if c.Trace, err = openTrace(f.trace, f.nodes); err != nil {
		errs = append(errs, err)
	}
	return c, errors.Join(errs...)
}

func parseBucket(text string) (action string, b fleet.Bucket, err error) {
	size := text
	if name, rest, ok := strings.Cut(text, "="); ok {
		action, size = name, rest
	}
	burst, rate, ok := strings.Cut(size, ":")
	var err1, err2 error
	b.Burst, err1 = strconv.Atoi(burst)
	b.PerSecond, err2 = strconv.ParseFloat(rate, 64)
	if !ok || err1 != nil || err2 != nil || b.Burst < 1 || b.PerSecond < 0 {
		return "", b, fmt.Errorf("--bucket %s: not [ACTION=]BURST:PER_SECOND", text)
	}
	return action, b, nil
}

func openTrace(name string, nodes int) (fleet.Trace, error) {
	if t, ok := fleet.TraceByName(name); ok {
		return t, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return fleet.Trace{}, fmt.Errorf("trace %q is neither built in (%s) nor a file: %w", name, strings.Join(traceNames(), ", "), err)
	}
	defer file.Close()
	return fleet.ReadTrace(name, file, nodes)
}

func compareCommand(o *options) *cobra.Command {
	c := fleet.CompareOptions{}
	var traces []string
	cmd := &cobra.Command{
		Use:   "compare",
		Short: "Compare our algorithm with upstream's, for unused addresses, EC2 calls and waits",
		Long: `Run four traces on eight instance types, once with the real ipamd and once with a model of the algorithm
that upstream documents, at the same settings and with the same pods. The exit code is 0 only if no cell
has more than 1.05 times upstream's unused address-hours or EC2 calls, the sums are not above upstream's,
and no ADD wait (p99) is above upstream's.`,
		Example: "  vpclab fleet compare\n  vpclab fleet compare --trace ci --type m5.large,m5.xlarge --nodes 10",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range traces {
				i := slices.IndexFunc(fleet.Scenarios, func(s fleet.Scenario) bool { return s.Trace == name })
				if i < 0 {
					return fmt.Errorf("no scenario %q", name)
				}
				c.Scenarios = append(c.Scenarios, fleet.Scenarios[i])
			}
			if !o.json {
				c.Progress = func(done, of int) { fmt.Fprintf(cmd.ErrOrStderr(), "\r%d of %d runs", done, of) }
			}
			debug.SetGCPercent(fleetGC)
			cells, err := fleet.Compare(cmd.Context(), c)
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), cells)
			}
			fmt.Fprint(cmd.ErrOrStderr(), "\r")
			fleet.WriteCells(cmd.OutOrStdout(), cells)
			return fleet.SumUp(cells).Check()
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&traces, "trace", nil, "only these traces")
	flags.StringSliceVar(&c.Types, "type", nil, "instance types (default: "+strings.Join(fleet.ComparedTypes, ", ")+")")
	flags.IntVar(&c.Nodes, "nodes", fleet.DefaultCompareNodes, "nodes per run")
	flags.DurationVar(&c.Duration, "duration", 0, "virtual time (default: 1 to 7 days, by trace)")
	flags.Uint64Var(&c.Seed, "seed", 1, "the same seed gives the same result")
	return cmd
}
