package daemon

import (
	"context"
	"errors"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/lab/control"
	"vpccni/lab/node"
)

// exec runs a program on the caller's own standard input, output and error.
func (l *lab) exec(ctx context.Context, call *control.Call) (any, error) {
	var p Exec
	if err := call.Params(&p); err != nil {
		return nil, err
	}
	if len(call.Files) != 3 || len(p.Command) == 0 {
		return nil, errors.New("exec needs a command and three descriptors")
	}
	c, err := l.running(ctx)
	if err != nil {
		return nil, err
	}
	cmd, err := command(ctx, c, p)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, p.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = call.Files[0], call.Files[1], call.Files[2]
	// A session of its own: with a terminal, to control it; without, so that signals reach all of it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: p.Terminal}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	over := make(chan struct{})
	go func() {
		for {
			select {
			case sig := <-call.Signals:
				_ = unix.Kill(-cmd.Process.Pid, sig)
			case <-over:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(over)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return Exit{}, nil
	case !errors.As(err, &exit):
		return nil, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return Exit{Code: 128 + int(status.Signal())}, nil
	}
	return Exit{Code: exit.ExitCode()}, nil
}

func command(ctx context.Context, c *cluster.Cluster, p Exec) (*node.Cmd, error) {
	if p.Pod != "" {
		return c.PodCommand(ctx, p.Node, p.Namespace, p.Pod, p.Command[0], p.Command[1:]...)
	}
	n, err := c.Node(p.Node)
	if err != nil {
		return nil, err
	}
	return n.OS().Command(ctx, p.Command[0], p.Command[1:]...), nil
}
