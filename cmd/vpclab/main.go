// Command vpclab is an AWS VPC on one Linux machine: a simulated EC2 and IMDS whose ENIs are real interfaces of
// simulated instances.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"vpccni/lab/control"
	"vpccni/lab/sandbox"
	"vpccni/pkg/version"
)

func main() {
	// Processes of a lab are this program too.
	sandbox.Init()
	os.Exit(run())
}

// run runs the command line and returns its exit code.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := root().ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	default:
		fmt.Fprintln(os.Stderr, "vpclab:", explain(err))
		return 1
	}
}

// exitCode is the exit code of a program that ran on a node; it has said itself what it has to say.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// explain adds what to do about an error, where that is known.
func explain(err error) string {
	if errors.Is(err, control.ErrNotUp) {
		return err.Error() + ": start it with vpclab up, or name another one with --name"
	}
	return err.Error()
}

// defaultLab is the name of a lab that is given none.
const defaultLab = "lab"

// options are common to all commands.
type options struct {
	lab  string
	json bool
}

func root() *cobra.Command {
	o := &options{}
	name := cmp.Or(os.Getenv("VPCLAB_NAME"), defaultLab)
	cmd := &cobra.Command{
		Use:   "vpclab",
		Short: "An AWS VPC on one Linux machine",
		Long: `vpclab runs an AWS VPC on one Linux machine: a simulated EC2 (the real Query API) and IMDSv2,
instances that are sets of namespaces, and ENIs that are real interfaces: when EC2 attaches one, it
appears on the node, and the network between the nodes forwards only what a VPC would.

ipamd and the CNI plugin run on the nodes unmodified, and so does any other ENI-based CNI
(up --no-ipamd): IMDS is at 169.254.169.254, EC2 where AWS_ENDPOINT_URL_EC2 says.

A lab needs no root where unprivileged user namespaces are allowed. It never touches the machine's
own network, and when it ends, however it ends, nothing of it stays behind.`,
		Example: `  vpclab up                              # 3 x t3.medium in two subnets
  vpclab pod add n1 web --count 4        # four pods, wired by the CNI
  vpclab pod exec n1 web-1 -- ip route
  vpclab exec n1 -- ip rule
  eval "$(vpclab env)"; aws ec2 describe-network-interfaces
  vpclab requests                        # what EC2 and IMDS were asked, by whom
  vpclab down`,
		Version:       version.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.PersistentFlags().StringVar(&o.lab, "name", name, "name of the lab ($VPCLAB_NAME); labs of different names run side by side")
	cmd.PersistentFlags().BoolVar(&o.json, "json", false, "print JSON for programs")
	cmd.AddCommand(upCommand(o), downCommand(o), statusCommand(o), execCommand(o), podCommand(o), faultCommand(o),
		requestsCommand(o), envCommand(o), logsCommand(o), ipamdCommand(o), nodeCommand(o), vpcCommand(o), demoCommand(), fleetCommand(o))
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (see %s --help)", err, c.CommandPath())
	})
	sayUsage(cmd)
	return cmd
}

// sayUsage makes the error about wrong arguments, of cmd and all below it, say which are right.
func sayUsage(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if check(c, args) != nil {
				return fmt.Errorf("usage: %s (see %s --help)", c.UseLine(), c.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		sayUsage(sub)
	}
}

// programArgs wants an exec command's own n arguments, then a program, with or without dashes between them.
func programArgs(n int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > n && args[n] != "--" || len(args) > n+1 {
			return nil
		}
		return errors.New("no program")
	}
}

func splitProgram(n int, args []string) (own, program []string) {
	own, program = args[:n], args[n:]
	if program[0] == "--" {
		program = program[1:]
	}
	return own, program
}

// ask sends a request to the lab.
func (o *options) ask(ctx context.Context, method string, params, result any) error {
	return control.Do(ctx, o.lab, control.Request{Method: method, Params: params}, result)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
