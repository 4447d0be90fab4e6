package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vpccni/lab/program"
	"vpccni/lab/sandbox"
)

func TestMain(m *testing.M) { sandbox.TestMain(m) }

func start(t *testing.T, opts Options) *Node {
	t.Helper()
	opts.Disk = t.TempDir()
	n, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Kill() })
	return n
}

func output(t *testing.T, n *Node, script string) string {
	t.Helper()
	out, err := n.Command(t.Context(), "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestNodeHasItsOwnMachine(t *testing.T) {
	t.Parallel()
	n := start(t, Options{Name: "ip-10-0-1-10", RPFilter: 2, Hosts: "10.0.1.10 ip-10-0-1-10\n", Env: []string{"COLOUR=blue"}})
	for script, want := range map[string]string{
		"hostname":                                                "ip-10-0-1-10",
		"cat /etc/hostname":                                       "ip-10-0-1-10",
		"tail -n1 /etc/hosts":                                     "10.0.1.10 ip-10-0-1-10",
		"echo /sys/class/net/*":                                   "/sys/class/net/lo",
		"cat /proc/1/comm":                                        "node-init",
		"cat /proc/sys/net/ipv4/ip_forward":                       "1",
		"cat /proc/sys/net/ipv4/conf/default/rp_filter":           "2",
		"ls -A /run/aws-node /etc/cni /tmp":                       "/etc/cni:\n\n/run/aws-node:\n\n/tmp:",
		"readlink -f /var/run/aws-node":                           "/run/aws-node",
		"echo $COLOUR":                                            "blue",
		"ls /proc | grep -c '^[0-9]*$' | awk '{print ($1 < 8)}'":  "1",
		"echo 1 > /proc/sys/vm/overcommit_memory || echo refused": "sh: 1: cannot create /proc/sys/vm/overcommit_memory: Read-only file system\nrefused",
		"ip link add a0 type veth peer name a1 && ls /sys/class/net; ip link del a0": "a0\na1\nlo",
	} {
		if got := output(t, n, script); got != want {
			t.Errorf("%s\n got %q\nwant %q", script, got, want)
		}
	}
	if links, _ := net.Interfaces(); len(links) != 1 {
		t.Errorf("the sandbox sees the node's interfaces: %v", links)
	}
}

func TestFilesOfTwoNodesAreApart(t *testing.T) {
	t.Parallel()
	a, b := start(t, Options{Name: "a"}), start(t, Options{Name: "b"})
	for _, dir := range []string{"/run", "/var/run/aws-node", "/etc/cni/net.d", "/opt/cni/bin", "/var/log", "/var/lib/cni", "/tmp"} {
		output(t, a, "mkdir -p "+dir+" && echo a > "+dir+"/probe")
		if got := output(t, b, "ls "+dir+"/probe 2>&1 || true"); !strings.Contains(got, "No such file") {
			t.Errorf("%s of a is seen on b: %s", dir, got)
		}
	}
	if text, err := os.ReadFile(filepath.Join(a.Disk(), "etc/cni/net.d/probe")); err != nil || string(text) != "a\n" {
		t.Errorf("on the disk: %q, %v", text, err)
	}
}

func TestCommandExitCodeAndStdio(t *testing.T) {
	t.Parallel()
	n := start(t, Options{Name: "n"})
	cmd := n.Command(t.Context(), "sh", "-c", "cat; echo oops >&2; exit 7")
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("in"), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || stdout.String() != "in" || stderr.String() != "oops\n" {
		t.Errorf("%v, %q, %q", err, &stdout, &stderr)
	}
	if err := n.Command(t.Context(), "no-such-program").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("missing program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	long := n.Command(ctx, "sleep", "1000")
	if err := long.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := long.Wait(); err == nil {
		t.Error("a cancelled program ended well")
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	n := start(t, Options{Name: "n"})
	want := errors.New("mine")
	if err := n.Do(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("Do returned %v", err)
	}
	err := n.Do(func() error {
		var uts unix.Utsname
		if err := unix.Uname(&uts); err != nil {
			return err
		}
		if name := unix.ByteSliceToString(uts.Nodename[:]); name != "n" {
			return fmt.Errorf("host name %q", name)
		}
		out, err := exec.Command("hostname").Output()
		if err == nil && string(out) != "n\n" {
			err = fmt.Errorf("a program's host name is %q", out)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	t.Parallel()
	n := start(t, Options{Name: "n"})
	output(t, n, "for i in 1 2 3 4 5; do (sh -c 'true' &) ; done")
	for deadline := 0; ; deadline++ {
		if out := output(t, n, "grep -l '^State:.Z' /proc/[0-9]*/status || true"); out == "" {
			return
		} else if deadline > 200 {
			t.Fatalf("zombies: %s", out)
		}
	}
}

func TestPowerCutAndReboot(t *testing.T) {
	t.Parallel()
	n := start(t, Options{Name: "n"})
	output(t, n, "echo kept > /var/log/kept; echo lost > /run/lost; ip link add a0 type veth peer name a1")
	d, err := n.StartDaemon("sleeper", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	if d.Err() == nil {
		t.Error("the daemon ended well")
	}
	if err := n.Command(t.Context(), "true").Run(); !errors.Is(err, ErrDown) {
		t.Errorf("a program on a dead node: %v", err)
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := output(t, n, "ls /var/log /run/lost /sys/class/net 2>/dev/null || true"), "/sys/class/net:\nlo\n\n/var/log:\nkept\nsleeper.log"; got != want {
		t.Errorf("after the reboot: %q, want %q", got, want)
	}
}

func TestDaemonLog(t *testing.T) {
	t.Parallel()
	n := start(t, Options{Name: "n"})
	d, err := n.StartDaemon("talker", []string{"WHO=me"}, "sh", "-c", "trap 'echo bye; exit 3' TERM; echo hello $WHO; while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	for d.Log() == "" {
		select {
		case <-d.Done():
			t.Fatal(d.Err())
		case <-t.Context().Done():
			t.Fatal("nothing printed")
		default:
		}
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d.Log() != "hello me\nbye\n" || d.Err() == nil {
		t.Errorf("log %q, end %v", d.Log(), d.Err())
	}
	if got := output(t, n, "cat /var/log/talker.log"); got != "hello me\nbye" {
		t.Errorf("the file has %q", got)
	}
	if err := d.Signal(unix.SIGKILL); err != nil {
		t.Errorf("signal to a daemon that has ended: %v", err)
	}
}

func TestNetNS(t *testing.T) {
	t.Parallel()
	n := start(t, Options{Name: "n"})
	output(t, n, "ip link add a0 type veth peer name a1")
	mounts := output(t, n, "wc -l < /proc/1/mountinfo")
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			path := fmt.Sprintf("/run/netns/pod-%d", i)
			ns, err := n.NewNetNS(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = ns.Close() }()
			out, err := n.CommandIn(t.Context(), ns, "ip", "-o", "link").CombinedOutput()
			if err != nil || strings.Count(string(out), "\n") != 1 || !strings.Contains(string(out), "LOOPBACK,UP") {
				t.Errorf("%v %s", err, out)
			}
			if out, err := n.CommandIn(t.Context(), ns, "ls", "/sys/class/net").CombinedOutput(); err != nil || string(out) != "lo\n" {
				t.Errorf("/sys in a namespace of its own: %v %s", err, out)
			}
			// The file works for programs that know only a path.
			if out, err := n.Command(t.Context(), "nsenter", "--net="+path, "true").CombinedOutput(); err != nil {
				t.Errorf("%v %s", err, out)
			}
			if _, err := n.NewNetNS(path); !errors.Is(err, os.ErrExist) {
				t.Errorf("the same path twice: %v", err)
			}
			for range 2 {
				if err := n.RemoveNetNS(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if out := output(t, n, "ls -A /run/netns; wc -l < /proc/1/mountinfo"); out != mounts {
		t.Errorf("left: %s; there were %s mounts", out, mounts)
	}
}

func TestBinds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := program.Write(filepath.Join(dir, "tool"), strings.NewReader("#!/bin/sh\necho made here\n")); err != nil {
		t.Fatal(err)
	}
	n := start(t, Options{Name: "n", Binds: map[string]string{BinDir: dir}})
	if got := output(t, n, "tool"); got != "made here" {
		t.Errorf("%q", got)
	}
	if out, err := n.Command(t.Context(), "tool").CombinedOutput(); err != nil || string(out) != "made here\n" {
		t.Errorf("%v %q", err, out)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	log := &tail{limit: 10}
	for i := range 100 {
		fmt.Fprintln(log, "line", i)
	}
	if got := log.String(); len(got) > 20 || !strings.HasPrefix(got, "line ") || !strings.HasSuffix(got, "line 99\n") {
		t.Errorf("%q", got)
	}
}
