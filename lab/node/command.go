package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// BinDir is a mount point on every node for the programs of a lab; it is searched first.
const BinDir = "/opt/vpclab/bin"

// defaultPath is behind the caller's PATH: an ordinary user's often lacks the directories of ip and nft.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Cmd is an exec.Cmd that starts on a node. Fields are set as on any other, before Start.
type Cmd struct {
	*exec.Cmd
	node  *Node
	netns *os.File
}

// Command prepares a program to run on the node, in its namespaces and environment; a name without a slash is looked
// up there. When ctx ends, the program is killed.
func (n *Node) Command(ctx context.Context, name string, args ...string) *Cmd {
	return n.CommandIn(ctx, nil, name, args...)
}

// CommandIn is Command in another network namespace, such as a pod's, with a /sys that shows its interfaces. The
// namespace must stay open until Start has returned.
func (n *Node) CommandIn(ctx context.Context, netns *os.File, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	// Output of a background child must not hold up the end of the program itself for ever.
	cmd.WaitDelay = 2 * time.Second
	cmd.Env = n.environ()
	return &Cmd{Cmd: cmd, node: n, netns: netns}
}

func (n *Node) environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PATH=") })
	env = append(env, "PATH="+BinDir+":"+os.Getenv("PATH")+":"+defaultPath, "HOSTNAME="+n.opts.Name)
	return append(env, n.opts.Env...)
}

// Start starts the program.
func (c *Cmd) Start() error {
	return c.node.do(c.netns, func() error {
		if c.netns != nil {
			if err := mountSys(); err != nil {
				return err
			}
		}
		if name := c.Args[0]; !strings.Contains(name, "/") {
			// What exec looked up was the sandbox's.
			if c.Path, c.Err = lookUp(name, c.Env); c.Err != nil {
				return c.Err
			}
		}
		return c.Cmd.Start()
	})
}

// mountSys gives the calling thread, and what it starts, a mount namespace with the /sys of its network namespace.
func mountSys() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	// The node's mounts keep coming in; this one does not go out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach mounts: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

func lookUp(name string, env []string) (string, error) {
	path := ""
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// Run starts the program and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and returns its standard output; what it wrote to standard error is in the exec.ExitError.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout = &stdout
	if c.Stderr == nil {
		c.Stderr = &stderr
	}
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		exit.Stderr = stderr.Bytes()
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the program and returns everything it printed.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
