// Package nstest gives tests a kernel network of their own. A test binary whose TestMain calls Main runs, as a
// whole, in fresh network and mount namespaces (and in a user namespace where it is not root), so that no packet and
// no setting of a test can reach the machine's own network; New then makes further empty network namespaces.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const entered = "VPCCNI_NSTEST_ENTERED"

// Keep the main goroutine on the thread-group leader: goroutines of tests enter other namespaces for good, and
// /proc/self describes the leader's.
func init() {
	if os.Getenv(entered) != "" {
		runtime.LockOSThread()
	}
}

// Main runs the tests of m inside namespaces of their own and exits. Where the kernel refuses the namespaces the
// whole binary fails: a test that could not run is not a test that passed.
func Main(m *testing.M) {
	if os.Getenv(entered) == "" {
		os.Exit(reexec())
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func reexec() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), entered+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
		// The tests die with the process that go test knows of.
		Pdeathsig: syscall.SIGKILL,
	}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	// Pdeathsig is bound to the thread that forks.
	runtime.LockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	default:
		fmt.Fprintln(os.Stderr, "nstest: no namespaces for the tests (run as root, or allow unprivileged user namespaces):", err)
		return 1
	}
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// NS is a network namespace.
type NS struct {
	t    testing.TB
	file *os.File
}

// New makes an empty network namespace with its loopback up; it goes when the test ends.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Getenv(entered) == "" {
		t.Fatal("nstest.New outside of nstest.Main: the test would run in the machine's own network")
	}
	ns := &NS{t: t}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		file, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err != nil {
			return err
		}
		ns.file = file
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.file.Close() })
	return ns
}

// FD is the namespace's file descriptor, valid until the test ends.
func (n *NS) FD() int { return int(n.file.Fd()) }

// Path opens the namespace for programs that want a file name; valid in this process and its children's /proc.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Do runs f on a thread inside the namespace. Sockets that f opens stay in it; so do processes that f starts.
func (n *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Run runs a program inside the namespace, for at most as long as the test, and returns what it printed; a failure
// fails the test.
func (n *NS) Run(name string, args ...string) string {
	n.t.Helper()
	var out []byte
	err := n.Do(func() error {
		var err error
		out, err = exec.CommandContext(n.t.Context(), name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		n.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// onThread runs f on a thread of its own that ends with it, for f leaves the thread in another namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
