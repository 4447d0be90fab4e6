package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"vpccni/lab/daemon"
)

func envCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print what AWS tools on this machine need to reach the lab",
		Long: `Print shell lines that let the AWS CLI and programs with an AWS SDK on this machine reach the lab's EC2:
endpoint, region, credentials of an operator, certificate. Nothing is written to disk.

Versions of the AWS CLI before 2.13 do not know AWS_ENDPOINT_URL_EC2, so the lines also define a
function aws that passes --endpoint-url.`,
		Example: `  eval "$(vpclab env)"
  aws ec2 describe-network-interfaces --query 'NetworkInterfaces[].[NetworkInterfaceId,PrivateIpAddress]' --output text`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var e daemon.Env
			if err := o.ask(cmd.Context(), daemon.MethodEnv, nil, &e); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if o.json {
				return printJSON(out, e)
			}
			for _, kv := range [][2]string{
				{"AWS_ENDPOINT_URL_EC2", e.Endpoint},
				{"AWS_REGION", e.Region},
				{"AWS_DEFAULT_REGION", e.Region},
				{"AWS_ACCESS_KEY_ID", e.AccessKey},
				{"AWS_SECRET_ACCESS_KEY", e.SecretKey},
				{"AWS_PAGER", ""},
			} {
				fmt.Fprintf(out, "export %s=%s\n", kv[0], quote(kv[1]))
			}
			fmt.Fprintln(out, "unset AWS_SESSION_TOKEN AWS_PROFILE")
			fmt.Fprintf(out, "aws() { command aws --endpoint-url %s \"$@\"; }\n", quote(e.Endpoint))
			fmt.Fprintf(out, "# over HTTPS: AWS_ENDPOINT_URL_EC2=%s AWS_CA_BUNDLE=%s\n", e.EndpointTLS, e.CABundle)
			return nil
		},
	}
}

// quote makes a word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func logsCommand(o *options) *cobra.Command {
	var q daemon.LogsQuery
	cmd := &cobra.Command{
		Use:   "logs [NODE]",
		Short: "Print a node's logs, or the lab's own",
		Long: `Print the log of ipamd on a node, or with --plugin that of the CNI plugin; without a node the lab's own.
The files are in /var/log/aws-routed-eni of the node: vpclab exec n1 -- tail -f ….`,
		Example: "  vpclab logs n1\n  vpclab logs n1 --plugin\n  vpclab logs",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Node = append(args, "")[0]
			var text string
			if err := o.ask(cmd.Context(), daemon.MethodLogs, q, &text); err != nil {
				return err
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().BoolVar(&q.Plugin, "plugin", false, "the CNI plugin's log")
	return cmd
}

func ipamdCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ipamd",
		Short:   "Kill, stop and start ipamd on a node",
		Example: "  vpclab ipamd kill n1\n  vpclab ipamd start n1",
	}
	cmd.AddCommand(
		o.order(daemon.MethodIPAMD, "kill", "End ipamd without its help (SIGKILL)"),
		o.order(daemon.MethodIPAMD, "stop", "Ask ipamd to end (SIGTERM) and wait for it"),
		o.order(daemon.MethodIPAMD, "start", "Start ipamd and wait until it is healthy"))
	return cmd
}

func nodeCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "node",
		Short:   "Cut a node's power, and boot it",
		Example: "  vpclab node reboot n1\n  vpclab node kill n2",
	}
	cmd.AddCommand(
		o.order(daemon.MethodNode, "kill", "Cut the power: everything on the node ends at once; its ENIs stay attached"),
		o.order(daemon.MethodNode, "boot", "Boot a node whose power was cut, and start ipamd"),
		o.order(daemon.MethodNode, "reboot", "Cut the power and boot again"))
	return cmd
}

func vpcCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "vpc",
		Short:   "Change the VPC while it runs",
		Example: "  vpclab vpc add-cidr 100.64.0.0/16",
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "add-cidr CIDR",
		Short:   "Associate one more range with the VPC",
		Long:    "Associate one more range with the VPC: EC2 and IMDS report it, and its addresses can be assigned.",
		Example: "  vpclab vpc add-cidr 100.64.0.0/16",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cidr, err := netip.ParsePrefix(args[0])
			if err != nil {
				return err
			}
			return o.ask(cmd.Context(), daemon.MethodAddCIDR, daemon.CIDR{CIDR: cidr}, nil)
		},
	})
	return cmd
}

func (o *options) order(method, do, short string) *cobra.Command {
	noun := "node"
	if method == daemon.MethodIPAMD {
		noun = "ipamd"
	}
	return &cobra.Command{
		Use:     do + " NODE",
		Short:   short,
		Long:    short + ".",
		Example: fmt.Sprintf("  vpclab %s %s n1", noun, do),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.ask(cmd.Context(), method, daemon.Control{Node: args[0], Do: do}, nil)
		},
	}
}
