// Package node simulates an instance's operating system: a set of net, mount, uts, ipc and pid namespaces held by a
// small first process. The paths that CNIs and kubelets write to are private to each node, so that programs use
// their default paths, and ending the first process ends everything that runs on the node, as a power cut does.
//
// Nodes live in a sandbox (package sandbox), whose first lines of main make this package's first process too.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vpccni/lab/sandbox"
)

// initPart is the registered part that becomes a node's first process.
const initPart = "node-init"

func init() { sandbox.Register(initPart, initMain) }

// Options describe a node.
type Options struct {
	// Name is the host name.
	Name string
	// Disk is a directory of the sandbox for what survives a reboot (/etc/cni, /opt/cni, /var/lib/cni, /var/log).
	// Empty: one below sandbox.StateDir.
	Disk string
	// RPFilter is the distribution's default of net.ipv4.conf.default.rp_filter: 2 with systemd, 0 in the bare
	// kernel, 1 on some. net.ipv4.conf.all.rp_filter is 0.
	RPFilter int
	// Sysctls are set at boot after the defaults; keys are paths below /proc/sys with slashes.
	Sysctls map[string]string
	// Binds are directories of the sandbox seen on the node, by their path there. Missing mount points are an error.
	Binds map[string]string
	// Hosts is the content of /etc/hosts behind the loopback's lines; Resolv of /etc/resolv.conf.
	Hosts, Resolv string
	// Env is added to the environment of the programs that run on the node.
	Env []string
}

// ErrDown means that the node is not running.
var ErrDown = errors.New("node is down")

// Node is a simulated instance. Its methods may be called concurrently.
type Node struct {
	opts Options

	mu   sync.Mutex
	boot *boot // nil while the node is down
}

// boot is one run of a node, from boot to power cut.
type boot struct {
	cmd   *exec.Cmd
	pidfd int
	netns *os.File
	users sync.WaitGroup // threads inside, which need pidfd
	done  chan struct{}  // closed when every process of the node is gone
}

// Start boots a node.
func Start(ctx context.Context, opts Options) (*Node, error) {
	if !sandbox.Inside() {
		return nil, errors.New("nodes run in a sandbox only: the node's settings would be the machine's")
	}
	if opts.Disk == "" {
		opts.Disk = filepath.Join(sandbox.StateDir, "nodes", opts.Name)
	}
	n := &Node{opts: opts}
	return n, n.Boot(ctx)
}

// Name is the host name.
func (n *Node) Name() string { return n.opts.Name }

// Disk is the sandbox's directory with the node's persistent files.
func (n *Node) Disk() string { return n.opts.Disk }

// Boot starts a node that is down. Its network namespace is a new one.
func (n *Node) Boot(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boot != nil {
		return fmt.Errorf("node %s is running", n.opts.Name)
	}
	b, err := bootUp(ctx, n.opts)
	if err != nil {
		return fmt.Errorf("boot node %s: %w", n.opts.Name, err)
	}
	n.boot = b
	return nil
}

func bootUp(ctx context.Context, opts Options) (*boot, error) {
	for _, dir := range persistent {
		if err := os.MkdirAll(filepath.Join(opts.Disk, dir), 0o755); err != nil {
			return nil, err
		}
	}
	setup, err := json.Marshal(opts)
	if err != nil {
		return nil, err
	}
	answer, answerEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Close() }()
	// The node outlives ctx, which bounds the boot only.
	cmd := sandbox.Reexec(context.WithoutCancel(ctx), initPart)
	cmd.Args = []string{"node " + opts.Name}
	cmd.Env = append(cmd.Env, setupVar+"="+string(setup))
	cmd.ExtraFiles = []*os.File{answerEnd}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	err = cmd.Start()
	_ = answerEnd.Close()
	if err != nil {
		return nil, err
	}
	b := &boot{cmd: cmd, pidfd: -1, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(b.done)
	}()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := b.await(answer); err != nil {
		b.end()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return b, nil
}

// await reads the first process's answer, which is empty when the node is up.
func (b *boot) await(answer io.Reader) error {
	text, err := io.ReadAll(answer)
	if err != nil {
		return err
	}
	if string(text) != ready {
		return errors.New(string(text) + " (first process of the node)")
	}
	pid := b.cmd.Process.Pid
	if b.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		return fmt.Errorf("open the node's first process: %w", err)
	}
	b.netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err
}

// end kills everything on the node and waits until it is gone.
func (b *boot) end() {
	_ = b.cmd.Process.Kill()
	<-b.done
	b.users.Wait()
	if b.pidfd >= 0 {
		_ = unix.Close(b.pidfd)
	}
	if b.netns != nil {
		_ = b.netns.Close()
	}
}

// use keeps the running boot's descriptors open until release is called.
func (n *Node) use() (b *boot, release func(), err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boot == nil {
		return nil, nil, fmt.Errorf("node %s: %w", n.opts.Name, ErrDown)
	}
	n.boot.users.Add(1)
	return n.boot, n.boot.users.Done, nil
}

// NetNS opens the node's network namespace; the caller closes it. A namespace that is held open outlives the node.
func (n *Node) NetNS() (*os.File, error) {
	b, release, err := n.use()
	if err != nil {
		return nil, err
	}
	defer release()
	fd, err := unix.FcntlInt(b.netns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the node's network namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), "netns of "+n.opts.Name), nil
}

// Running reports whether the node is up.
func (n *Node) Running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.boot != nil
}

// Kill cuts the power: everything on the node ends at once, without a goodbye. Killing a node that is down is no
// error.
func (n *Node) Kill() error {
	n.mu.Lock()
	b := n.boot
	n.boot = nil
	n.mu.Unlock()
	if b != nil {
		b.end()
	}
	return nil
}

// Reboot cuts the power and boots again. What runs on the node is the caller's to start again, and its interfaces
// are the caller's to plug in.
func (n *Node) Reboot(ctx context.Context) error {
	if err := n.Kill(); err != nil {
		return err
	}
	return n.Boot(ctx)
}
