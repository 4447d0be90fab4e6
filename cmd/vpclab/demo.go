package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"vpccni/lab/cluster"
	"vpccni/lab/demo"
	"vpccni/lab/sandbox"
)

// demoPart is the part of this program that plays the demonstration in a sandbox.
const demoPart = "demo"

func init() { sandbox.Register(demoPart, demoMain) }

// demoMain takes the directory of the binaries and the file for the report, which may be empty.
func demoMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := demo.Run(ctx, demo.Options{BinDir: os.Args[1], JSON: os.Args[2], Out: os.Stdout})
	if err != nil {
		fmt.Fprintln(os.Stderr, "vpclab:", err)
		return 1
	}
	return 0
}

func demoCommand() *cobra.Command {
	var binDir, report string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show the main job end to end, checked with real packets",
		Long: `Start a lab of its own with three nodes in two subnets, run pods on them, and check every path with real
packets: between pods on one node and across nodes, to the internet and on-prem; scale up to the node's
limit and down again. A table at the end has every check with its figure. The exit code is 0 only if
all checks passed. The lab ends with the command.`,
		Example: "  vpclab demo\n  vpclab demo --report demo.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			var spec cluster.Spec
			if err := findBinaries(&spec, binDir); err != nil {
				return err
			}
			if report != "" {
				var err error
				if report, err = filepath.Abs(report); err != nil {
					return err
				}
			}
			code, err := sandbox.Run(sandbox.Config{Part: demoPart, Args: []string{spec.BinDir, report},
				Stdout: os.Stdout, Stderr: os.Stderr})
			if err != nil {
				return err
			}
			if code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&binDir, "bin-dir", "", "directory of aws-k8s-agent, aws-cni and portmap (default: that of vpclab)")
	cmd.Flags().StringVar(&report, "report", "", "also write the checks to this file, as JSON")
	return cmd
}
