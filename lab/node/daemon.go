package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// logKept is how much of a daemon's output is kept in memory; all of it is in the node's /var/log.
const logKept = 256 << 10

// Daemon is a program that runs on a node until it ends or is ended.
type Daemon struct {
	Name string
	cmd  *Cmd
	log  *tail
	done chan struct{}
	err  error
}

// StartDaemon starts a program whose output goes to /var/log/<name>.log on the node, behind what is there.
func (n *Node) StartDaemon(name string, env []string, path string, args ...string) (*Daemon, error) {
	file, err := os.OpenFile(filepath.Join(n.opts.Disk, "var/log", name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	// The daemon's life is bounded by its node's.
	cmd := n.Command(context.Background(), path, args...)
	cmd.Env = append(cmd.Env, env...)
	d := &Daemon{Name: name, cmd: cmd, log: &tail{limit: logKept}, done: make(chan struct{})}
	out := io.MultiWriter(file, d.log)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("start %s on %s: %w", name, n.opts.Name, err)
	}
	go func() {
		d.err = cmd.Wait()
		_ = file.Close()
		close(d.done)
	}()
	return d, nil
}

// Signal sends a signal; to a daemon that has ended it is no error.
func (d *Daemon) Signal(sig syscall.Signal) error {
	select {
	case <-d.done:
		return nil
	default:
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", d.Name, err)
	}
	return nil
}

// Stop asks the daemon to end (SIGTERM), and ends it when ctx does.
func (d *Daemon) Stop(ctx context.Context) error {
	if err := d.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		d.Kill()
		return fmt.Errorf("%s did not end: %w", d.Name, context.Cause(ctx))
	}
}

// Kill ends the daemon without its help and waits for its end.
func (d *Daemon) Kill() {
	_ = d.Signal(syscall.SIGKILL)
	<-d.done
}

// Done is closed when the daemon has ended.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Err says how the daemon ended; nil for exit code 0. Valid once Done is closed.
func (d *Daemon) Err() error { return d.err }

// PID is the daemon's process id as the sandbox sees it.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Log returns the last part of what the daemon has printed.
func (d *Daemon) Log() string { return d.log.String() }

// tail keeps the last limit bytes written to it, cut at a line.
type tail struct {
	limit int

	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	// Twice the limit before cutting, or each line would move the whole buffer.
	if over := len(t.buf) - t.limit; over > t.limit {
		t.buf = append([]byte(nil), t.buf[over:]...)
		if i := bytes.IndexByte(t.buf, '\n'); i >= 0 {
			t.buf = t.buf[i+1:]
		}
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
