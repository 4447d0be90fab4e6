package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vpccni/lab/control"
	"vpccni/lab/daemon"
)

func execCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec NODE -- COMMAND [ARG...]",
		Short: "Run a program on a node",
		Long: `Run a program in all namespaces of a node, on this command's own standard input, output and error, or
on a terminal if those are one. The exit code is the program's.

The node sees the machine's file system, read-only under /.host; /run, /tmp, /var/log, /etc/cni,
/opt/cni and /var/lib/cni are its own. The lab's binaries are in /opt/vpclab/bin.`,
		Example: `  vpclab exec n1 -- ip -d link
  vpclab exec n1 -- bash
  vpclab exec n1 -- tail -f /var/log/aws-routed-eni/ipamd.log`,
		Args: programArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			own, program := splitProgram(1, args)
			return o.exec(cmd.Context(), daemon.Exec{Node: own[0], Command: program})
		},
	}
	// What follows the node belongs to the program, flags included.
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (o *options) exec(ctx context.Context, e daemon.Exec) error {
	// Signals are the program's to act on, so they do not end this command.
	ctx = context.WithoutCancel(ctx)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	request := control.Request{Method: daemon.MethodExec, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Signals: signals}
	if term := os.Getenv("TERM"); term != "" {
		e.Env = append(e.Env, "TERM="+term)
	}
	if isTerminal(os.Stdin) && isTerminal(os.Stdout) {
		t, err := openTerminal(os.Stdin, os.Stdout)
		if err != nil {
			return err
		}
		defer t.restore()
		e.Terminal = true
		request.Files = []*os.File{t.slave, t.slave, t.slave}
	}
	request.Params = e
	var exit daemon.Exit
	err := control.Do(ctx, o.lab, request, &exit)
	switch {
	case err != nil && strings.Contains(err.Error(), "executable file not found"):
		fmt.Fprintln(os.Stderr, "vpclab:", err)
		return exitCode(127)
	case err != nil:
		return err
	case exit.Code != 0:
		return exitCode(exit.Code)
	default:
		return nil
	}
}

// splitPod reads NAME or NAMESPACE/NAME.
func splitPod(s string) (namespace, name string, err error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok {
		namespace, name = "default", s
	}
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", errors.New("a pod is named NAME or NAMESPACE/NAME")
	}
	return namespace, name, nil
}
