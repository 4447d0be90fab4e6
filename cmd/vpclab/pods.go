package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vpccni/lab/cluster"
	"vpccni/lab/daemon"
)

func podCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pod",
		Short: "Add, delete and list pods, and run programs in them",
		Long: `Pods are network namespaces on a node, wired through libcni with the node's own CNI configuration and
binaries, as a container runtime does it. A pod is named NAME (in namespace default) or NAMESPACE/NAME.`,
		Example: `  vpclab pod add n1 web --count 15
  vpclab pod list
  vpclab pod exec n1 web-1 -- ip -4 addr
  vpclab pod del --all`,
	}
	cmd.AddCommand(podAddCommand(o), podDelCommand(o), podListCommand(o), podExecCommand(o))
	return cmd
}

func podAddCommand(o *options) *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use:     "add NODE POD",
		Short:   "Make pods on a node",
		Long:    "Make a pod, or with --count N the pods POD-1 to POD-N at once, and print their addresses.",
		Example: "  vpclab pod add n1 web\n  vpclab pod add n2 kube-system/dns --count 10",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, name, err := splitPod(args[1])
			if err != nil {
				return err
			}
			before, err := o.pods(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var made []cluster.Pod
			addErr := o.ask(cmd.Context(), daemon.MethodPodAdd,
				daemon.PodRef{Node: args[0], Namespace: namespace, Name: name, Count: count}, &made)
			if addErr != nil {
				// Some may have been made.
				after, err := o.pods(context.WithoutCancel(cmd.Context()), args[0])
				if err != nil {
					return errors.Join(addErr, err)
				}
				made = without(after, before)
			}
			return errors.Join(o.printPods(cmd.OutOrStdout(), made), addErr)
		},
	}
	cmd.Flags().IntVar(&count, "count", 0, "make that many pods at once")
	return cmd
}

func (o *options) pods(ctx context.Context, node string) (pods []cluster.Pod, err error) {
	err = o.ask(ctx, daemon.MethodPodList, daemon.PodRef{Node: node}, &pods)
	return pods, err
}

func without(pods, known []cluster.Pod) []cluster.Pod {
	seen := map[string]bool{}
	for _, p := range known {
		seen[p.ID] = true
	}
	fresh := []cluster.Pod{}
	for _, p := range pods {
		if !seen[p.ID] {
			fresh = append(fresh, p)
		}
	}
	return fresh
}

func podDelCommand(o *options) *cobra.Command {
	var count int
	var all bool
	cmd := &cobra.Command{
		Use:   "del [NODE [POD]]",
		Short: "Delete pods",
		Long: `Delete a pod, with --count N the pods POD-1 to POD-N, or with --all all pods of the node or of the lab,
including what is left of pods that could not be made. Deleting what is gone is no error.`,
		Example: "  vpclab pod del n1 web\n  vpclab pod del n1 --all\n  vpclab pod del --all",
		Args:    cobra.MaximumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := daemon.PodRef{Count: count, All: all}
			if all != (len(args) < 2) {
				return errors.New("name a node and a pod, or give --all without a pod")
			}
			if len(args) > 0 {
				ref.Node = args[0]
			}
			if len(args) > 1 {
				var err error
				if ref.Namespace, ref.Name, err = splitPod(args[1]); err != nil {
					return err
				}
			}
			return o.ask(cmd.Context(), daemon.MethodPodDel, ref, nil)
		},
	}
	cmd.Flags().IntVar(&count, "count", 0, "delete the pods that add --count made")
	cmd.Flags().BoolVar(&all, "all", false, "delete all pods of the node, or of the lab")
	return cmd
}

func podListCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "list [NODE]",
		Aliases: []string{"ls"},
		Short:   "List pods and their addresses",
		Long:    "List the pods of the lab or of one node, with their addresses and how long their ADD took.",
		Example: "  vpclab pod list\n  vpclab pod list n1 --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pods, err := o.pods(cmd.Context(), append(args, "")[0])
			if err != nil {
				return err
			}
			return o.printPods(cmd.OutOrStdout(), pods)
		},
	}
}

func (o *options) printPods(out io.Writer, pods []cluster.Pod) error {
	if o.json {
		return printJSON(out, pods)
	}
	if len(pods) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tPOD\tADDRESS\tADD TOOK")
	for _, p := range pods {
		fmt.Fprintf(w, "%s\t%s/%s\t%s\t%s\n", p.Node, p.Namespace, p.Name, p.Address, p.Took.Round(time.Millisecond))
	}
	return w.Flush()
}

func podExecCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec NODE POD -- COMMAND [ARG...]",
		Short: "Run a program in a pod",
		Long: `Run a program in a pod's network namespace and its node's other namespaces, on this command's own
standard input, output and error, or on a terminal if those are one. The exit code is the program's.`,
		Example: "  vpclab pod exec n1 web -- ip route\n  vpclab pod exec n1 web -- curl -s http://203.0.113.10",
		Args:    programArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			own, program := splitProgram(2, args)
			namespace, name, err := splitPod(own[1])
			if err != nil {
				return err
			}
			return o.exec(cmd.Context(), daemon.Exec{Node: own[0], Namespace: namespace, Pod: name, Command: program})
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}
