package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vpccni/lab/cluster"
	"vpccni/lab/daemon"
)

func upCommand(o *options) *cobra.Command {
	var (
		nodes, subnets int
		kind, config   string
		binDir         string
		env            []string
		foreground     bool
		spec           cluster.Spec
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab",
		Long: `Start a lab and return when its nodes are ready for pods. The lab goes on in the background until
vpclab down; with --foreground it stays tied to this command and ends with it.

The binaries that run on the nodes (aws-k8s-agent, aws-cni and, for host ports, portmap) are taken from
the directory of vpclab itself or from --bin-dir. With --no-ipamd nodes are bare and any other CNI can
be run on them.

--config reads a description in YAML or JSON; flags go before it:

  cidrs: [10.0.0.0/16, 100.64.0.0/16]
  subnets:
  - {name: a, cidr: 10.0.1.0/24, zone: us-west-2a}
  - {name: b, cidr: 10.0.2.0/24, zone: us-west-2b, private: true}   # behind a NAT gateway
  nodes:
  - {name: n1, type: m5.large, subnet: a, env: {WARM_IP_TARGET: "2"}, rpFilter: 1}
  - {name: n2, subnet: b}
  env: {AWS_VPC_K8S_CNI_EXTERNALSNAT: "true"}    # for ipamd on every node
  attachDelay: 8s`,
		Example: `  vpclab up
  vpclab up --nodes 5 --type m5.large --subnets 3 --attach-delay 8s
  vpclab up --env WARM_IP_TARGET=5 --env MINIMUM_IP_TARGET=10
  vpclab up --name other --no-ipamd
  vpclab up --config lab.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config != "" {
				text, err := os.ReadFile(config)
				if err != nil {
					return err
				}
				flags := spec
				if spec, err = cluster.ParseSpec(text); err != nil {
					return fmt.Errorf("%s: %w", config, err)
				}
				override(cmd, &spec, flags)
			}
			spec.Name = o.lab
			if cmd.Flags().Changed("subnets") {
				spec.Subnets = cluster.DefaultSubnets(subnets)
			}
			if cmd.Flags().Changed("nodes") || len(spec.Nodes) == 0 {
				spec.Nodes = make([]cluster.NodeSpec, nodes)
			}
			for i := range spec.Nodes {
				if spec.Nodes[i].Type == "" || cmd.Flags().Changed("type") {
					spec.Nodes[i].Type = kind
				}
			}
			if err := addEnv(&spec, env); err != nil {
				return err
			}
			if err := findBinaries(&spec, binDir); err != nil {
				return err
			}
			return up(cmd, spec, foreground)
		},
	}
	f := cmd.Flags()
	f.IntVar(&nodes, "nodes", cluster.DefaultNodes, "number of nodes")
	f.IntVar(&subnets, "subnets", 2, "number of subnets, each in a zone of its own; nodes are spread over them")
	f.StringVar(&kind, "type", cluster.DefaultType, "instance type of the nodes")
	f.StringVar(&config, "config", "", "description of the lab, YAML or JSON (see above)")
	f.StringVar(&binDir, "bin-dir", "", "directory of aws-k8s-agent, aws-cni and portmap (default: that of vpclab)")
	f.StringArrayVar(&env, "env", nil, "NAME=VALUE for ipamd on every node; can be repeated")
	f.DurationVar(&spec.AttachDelay, "attach-delay", 0, "how long attaching an ENI takes")
	f.DurationVar(&spec.DetachDelay, "detach-delay", 0, "how long detaching an ENI takes")
	f.DurationVar(&spec.APILatency, "api-latency", 0, "added to every EC2 call")
	f.Uint64Var(&spec.Seed, "seed", 0, "of EC2's ids and choice of addresses; 0 hands out the lowest free address")
	f.BoolVar(&spec.NoIPAMD, "no-ipamd", false, "leave nodes bare, for another CNI")
	f.BoolVar(&foreground, "foreground", false, "stay until interrupted, and end the lab then")
	return cmd
}

// override puts the flags that were given before what the file says.
func override(cmd *cobra.Command, spec *cluster.Spec, flags cluster.Spec) {
	given := cmd.Flags().Changed
	if given("attach-delay") {
		spec.AttachDelay = flags.AttachDelay
	}
	if given("detach-delay") {
		spec.DetachDelay = flags.DetachDelay
	}
	if given("api-latency") {
		spec.APILatency = flags.APILatency
	}
	if given("seed") {
		spec.Seed = flags.Seed
	}
	if given("no-ipamd") {
		spec.NoIPAMD = flags.NoIPAMD
	}
}

func addEnv(spec *cluster.Spec, env []string) error {
	for _, kv := range env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return fmt.Errorf("--env %q: want NAME=VALUE", kv)
		}
		if spec.Env == nil {
			spec.Env = map[string]string{}
		}
		spec.Env[name] = value
	}
	return nil
}

func findBinaries(spec *cluster.Spec, dir string) (err error) {
	switch {
	case dir != "":
		spec.BinDir = dir
	case spec.BinDir == "":
		if spec.BinDir, err = daemon.BinDir(); err != nil {
			return err
		}
	}
	spec.BinDir, err = filepath.Abs(spec.BinDir)
	return err
}

func up(cmd *cobra.Command, spec cluster.Spec, foreground bool) error {
	out := cmd.OutOrStdout()
	started := time.Now()
	name := ""
	if spec.Name != "lab" {
		name = " --name " + spec.Name
	}
	return daemon.Up(cmd.Context(), daemon.UpOptions{
		Spec:       spec,
		Foreground: foreground,
		Progress:   func(line string) { fmt.Fprintln(out, " ", line) },
		Ready: func() {
			fmt.Fprintf(out, "lab %q is up (%.1f s)\n", spec.Name, time.Since(started).Seconds())
			pods := fmt.Sprintf("  vpclab%s pod add n1 web      a pod on node n1\n", name)
			if spec.NoIPAMD {
				pods = ""
			}
			fmt.Fprintf(out, "%s  vpclab%s exec n1 -- bash    a shell on node n1\n  vpclab%s status             what there is\n", pods, name, name)
			if foreground {
				fmt.Fprintln(out, "  interrupt (Ctrl-C) to end it")
			} else {
				fmt.Fprintf(out, "  vpclab%s down               end it\n", name)
			}
		},
	})
}

func downCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End a lab",
		Long:    "End a lab and return when nothing of it is left: no process, namespace, mount or file.",
		Example: "  vpclab down\n  vpclab down --name other",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return daemon.Down(cmd.Context(), o.lab) },
	}
}
