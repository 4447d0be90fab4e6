package main

import (
	"fmt"
	"io"
	"sort"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vpccni/lab/daemon"
)

func statusCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show nodes, subnets, pods and dropped packets",
		Long:    "Show the lab's nodes, subnets and pods, and the packets that the VPC did not forward, with the cause.",
		Example: "  vpclab status\n  vpclab status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s daemon.Status
			if err := o.ask(cmd.Context(), daemon.MethodStatus, nil, &s); err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
}

func printStatus(out io.Writer, s daemon.Status) error {
	fmt.Fprintf(out, "lab %q, up for %s, pid %d; %s %v; EC2 for this machine: %s\n", s.Name,
		time.Since(s.Since).Round(time.Second), s.PID, s.VPC, s.CIDRs, s.Endpoints.HTTP)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nSUBNET\tID\tCIDR\tZONE\tKIND\tFREE")
	for _, sub := range s.Subnets {
		kind := "private"
		if sub.Public {
			kind = "public"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\n", sub.Name, sub.ID, sub.CIDR, sub.Zone, kind, sub.Free)
	}
	fmt.Fprintln(w, "\nNODE\tINSTANCE\tTYPE\tSUBNET\tADDRESS\tIPAMD\tENIS\tADDRESSES\tPODS")
	for _, n := range s.Nodes {
		ipamd := n.IPAMD
		if !n.Running {
			ipamd = "(node is down)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\n", n.Name, n.Instance, n.Type, n.Subnet, n.Address, ipamd, n.ENIs, n.Addresses, n.Pods)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, b := range s.Broken {
		fmt.Fprintln(out, "not cleaned up:", b)
	}
	if len(s.Drops) == 0 {
		fmt.Fprintln(out, "\ndropped packets: none")
		return nil
	}
	fmt.Fprintln(w, "\nDROPPED FOR\tPACKETS\tFROM\tTO\tBY")
	for _, d := range s.Drops {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s %s\n", d.Cause, d.Packets, d.Source, d.Destination, d.Instance, d.ENI)
	}
	return w.Flush()
}

func requestsCommand(o *options) *cobra.Command {
	var q daemon.RequestsQuery
	cmd := &cobra.Command{
		Use:   "requests",
		Short: "Show what EC2 and IMDS were asked",
		Long: `Count the requests to EC2 by caller, action and outcome, and those to IMDS by caller and path; with --log
list each one with its time and parameters. --reset starts counting anew afterwards.`,
		Example: "  vpclab requests\n  vpclab requests --log\n  vpclab requests --json --reset",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r daemon.Requests
			if err := o.ask(cmd.Context(), daemon.MethodRequests, q, &r); err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return printRequests(cmd.OutOrStdout(), r)
		},
	}
	cmd.Flags().BoolVar(&q.Log, "log", false, "list every request")
	cmd.Flags().BoolVar(&q.Reset, "reset", false, "count anew from now on")
	return cmd
}

func printRequests(out io.Writer, r daemon.Requests) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "EC2: CALLER\tACTION\tOUTCOME\tCOUNT")
	total := 0
	for _, c := range r.EC2 {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", c.Caller, c.What, c.Outcome, c.Count)
		total += c.Count
	}
	fmt.Fprintf(w, "\t\tin all\t%d\n\nIMDS: CALLER\tREQUESTS\tPATHS\n", total)
	requests, paths := map[string]int{}, map[string]int{}
	for _, c := range r.IMDS {
		requests[c.Caller] += c.Count
		paths[c.Caller]++
	}
	callers := make([]string, 0, len(requests))
	for c := range requests {
		callers = append(callers, c)
	}
	sort.Strings(callers)
	for _, c := range callers {
		fmt.Fprintf(w, "%s\t%d\t%d\n", c, requests[c], paths[c])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, q := range r.EC2Log {
		fmt.Fprintf(out, "%s ec2  %s %s %s %s %v\n", q.Time.Format(time.TimeOnly), q.Caller, q.Action, q.Outcome, q.Duration.Round(time.Microsecond), q.Params)
	}
	for _, q := range r.IMDSLog {
		fmt.Fprintf(out, "%s imds %s %s %s %s\n", q.Time.Format(time.TimeOnly), q.Instance, q.Method, q.Path, strconv.Itoa(q.Status))
	}
	return nil
}
