package main

import (
	"errors"
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
			return o.up(cmd, spec, foreground)
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

// up starts the lab. Progress goes to standard error where standard output is for a program.
func (o *options) up(cmd *cobra.Command, spec cluster.Spec, foreground bool) error {
	started := time.Now()
	progress := cmd.OutOrStdout()
	if o.json {
		progress = cmd.ErrOrStderr()
	}
	var readyErr error
	err := daemon.Up(cmd.Context(), daemon.UpOptions{
		Spec:       spec,
		Foreground: foreground,
		Progress:   func(line string) { fmt.Fprintln(progress, " ", line) },
		Ready: func() {
			fmt.Fprintf(progress, "lab %q is up (%.1f s)\n", spec.Name, time.Since(started).Seconds())
			if !o.json {
				fmt.Fprint(cmd.OutOrStdout(), nextSteps(spec, foreground))
				return
			}
			var s daemon.Status
			if readyErr = o.ask(cmd.Context(), daemon.MethodStatus, nil, &s); readyErr == nil {
				readyErr = printJSON(cmd.OutOrStdout(), s)
			}
		},
	})
	return errors.Join(err, readyErr)
}

// nextSteps says what can be done with a lab that has just come up.
func nextSteps(spec cluster.Spec, foreground bool) string {
	command := "vpclab"
	if spec.Name != defaultLab {
		command += " --name " + spec.Name
	}
	node := spec.Nodes[0].Name
	if node == "" {
		node = "n1"
	}
	steps := [][2]string{}
	if !spec.NoIPAMD {
		steps = append(steps, [2]string{"pod add " + node + " web", "a pod on node " + node})
	}
	steps = append(steps, [2]string{"exec " + node + " -- bash", "a shell on node " + node}, [2]string{"status", "what there is"})
	if !foreground {
		steps = append(steps, [2]string{"down", "end it"})
	}
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "  %-*s  %s\n", len(command)+22, command+" "+s[0], s[1])
	}
	if foreground {
		b.WriteString("  interrupt (Ctrl-C) to end it\n")
	}
	return b.String()
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
