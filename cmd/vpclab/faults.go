package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vpccni/lab/daemon"
	"vpccni/lab/ec2"
	"vpccni/lab/imds"
)

func faultCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Make EC2 or IMDS go wrong, by rule",
		Example: `  vpclab fault add --action AttachNetworkInterface --error RequestLimitExceeded --count 3
  vpclab fault add --action '*' --node n2 --deny
  vpclab fault add --action CreateNetworkInterface --lost-response
  vpclab fault add --imds --path meta-data/network --freeze
  vpclab fault list
  vpclab fault remove fault-1`,
	}
	cmd.AddCommand(faultAddCommand(o), faultListCommand(o), faultRemoveCommand(o))
	return cmd
}

func faultAddCommand(o *options) *cobra.Command {
	var e ec2.Fault
	var m imds.Fault
	var node string
	var isIMDS bool
	var delay time.Duration
	var count int
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Add a rule and print its id",
		Long: `Add a rule by which requests go wrong, and print its id. Without --imds it is for EC2. Conditions that
are not given hold for every request.`,
		Example: `  vpclab fault add --action 'Assign*' --error InsufficientCidrBlocks
  vpclab fault add --action DescribeNetworkInterfaces --delay 30s --probability 0.5
  vpclab fault add --imds --path 'meta-data/network/interfaces/macs/*/local-ipv4s' --lag 60s
  vpclab fault add --imds --path api/token --status 500 --count 2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range strings.Fields("action subnet error message lost-response deny probability") {
				if isIMDS && cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s is for EC2, not for --imds", name)
				}
			}
			for _, name := range strings.Fields("path status omit lag freeze") {
				if !isIMDS && cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s needs --imds", name)
				}
			}
			var f daemon.Fault
			if isIMDS {
				m.Instance, m.Delay, m.Count = node, delay, count
				f.IMDS = &m
			} else {
				if e.Error == "" && !e.Deny && !e.LostResponse && delay == 0 {
					return errors.New("say what goes wrong: --error, --deny, --lost-response or --delay")
				}
				e.InstanceID, e.Latency, e.Count = node, delay, count
				f.EC2 = &e
			}
			var id daemon.FaultID
			if err := o.ask(cmd.Context(), daemon.MethodFaultAdd, f, &id); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), id.ID)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&isIMDS, "imds", false, "the rule is for IMDS")
	f.StringVar(&node, "node", "", "only requests of this node; EC2 also: operator, who uses vpclab env")
	f.IntVar(&count, "count", 0, "how many requests it is good for; 0: for ever")
	f.DurationVar(&delay, "delay", 0, "wait before the answer")
	f.StringVar(&e.Action, "action", "", "EC2: only this action; * stands for anything")
	f.StringVar(&e.SubnetID, "subnet", "", "EC2: only calls about this subnet (name or id)")
	f.StringVar(&e.Error, "error", "", "EC2: answer with this error code")
	f.StringVar(&e.Message, "message", "", "EC2: the error's message")
	f.BoolVar(&e.LostResponse, "lost-response", false, "EC2: do what is asked, then cut the connection")
	f.BoolVar(&e.Deny, "deny", false, "EC2: UnauthorizedOperation, as without an IAM permission")
	f.Float64Var(&e.Probability, "probability", 0, "EC2: of a call that meets the conditions; 0: always")
	f.StringVar(&m.Path, "path", "", "IMDS: only this path behind /latest/ and what is below it; * stands for one element")
	f.IntVar(&m.Status, "status", 0, "IMDS: answer with this HTTP status")
	f.BoolVar(&m.Omit, "omit", false, "IMDS: the path is missing")
	f.DurationVar(&m.Lag, "lag", 0, "IMDS: answer as it was this long ago")
	f.BoolVar(&m.Freeze, "freeze", false, "IMDS: answer as it is now, from now on")
	return cmd
}

func faultListCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the rules",
		Long:    "List the rules of EC2 and IMDS that are not used up, and how many requests they struck.",
		Example: "  vpclab fault list --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all daemon.Faults
			if err := o.ask(cmd.Context(), daemon.MethodFaults, nil, &all); err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), all)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tOF\tFOR\tWHAT\tSTRUCK")
			for _, f := range all.EC2 {
				fmt.Fprintf(w, "%s\tec2\t%s\t%s\t%s\n", f.ID, words(f.Action, f.SubnetID, f.InstanceID),
					words(f.Error, flagWord(f.Deny, "deny"), flagWord(f.LostResponse, "lost response"), durationWord("delay", f.Latency)), struck(f.Hits, f.Count))
			}
			for _, f := range all.IMDS {
				status := ""
				if f.Status != 0 {
					status = fmt.Sprint("status ", f.Status)
				}
				fmt.Fprintf(w, "%s\timds\t%s\t%s\t%s\n", f.ID, words(f.Path, f.Instance),
					words(status, flagWord(f.Omit, "omit"), flagWord(f.Freeze, "freeze"), durationWord("lag", f.Lag), durationWord("delay", f.Delay)), struck(f.Hits, f.Count))
			}
			return w.Flush()
		},
	}
}

func words(all ...string) string {
	var kept []string
	for _, w := range all {
		if w != "" {
			kept = append(kept, w)
		}
	}
	if len(kept) == 0 {
		return "everything"
	}
	return strings.Join(kept, ", ")
}

func flagWord(set bool, word string) string {
	if set {
		return word
	}
	return ""
}

func durationWord(word string, d time.Duration) string {
	if d == 0 {
		return ""
	}
	return word + " " + d.String()
}

func struck(hits, count int) string {
	if count == 0 {
		return fmt.Sprint(hits)
	}
	return fmt.Sprintf("%d of %d", hits, count)
}

func faultRemoveCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "remove ID...",
		Aliases: []string{"rm"},
		Short:   "Remove rules",
		Long:    "Remove rules by the ids that fault add printed and fault list shows.",
		Example: "  vpclab fault remove fault-1",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if err := o.ask(cmd.Context(), daemon.MethodFaultDel, daemon.FaultID{ID: id}, nil); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
