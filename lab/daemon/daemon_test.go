package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/lab/control"
	"vpccni/lab/daemon"
	"vpccni/lab/program"
	"vpccni/lab/sandbox"
)

// These tests run outside of any sandbox, as the command does: what they start is what they look for.
func TestMain(m *testing.M) {
	sandbox.QuickExit()
	sandbox.Register("up in foreground", func() int {
		err := daemon.Up(context.Background(), daemon.UpOptions{Foreground: true, Spec: bareSpec(os.Args[1]), Ready: func() { fmt.Println("ready") }})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	})
	sandbox.Init()
	os.Exit(m.Run())
}

func bareSpec(name string) cluster.Spec {
	return cluster.Spec{Name: name, NoIPAMD: true, Nodes: make([]cluster.NodeSpec, 2)}
}

func labName(t *testing.T) string {
	return fmt.Sprintf("test-%d-%x", os.Getpid(), crc32.ChecksumIEEE([]byte(t.Name())))
}

func upLab(t *testing.T, name string) daemon.Status {
	t.Helper()
	var lines []string
	err := daemon.Up(t.Context(), daemon.UpOptions{Spec: bareSpec(name), Progress: func(l string) { lines = append(lines, l) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := daemon.Down(context.Background(), name); err != nil && !errors.Is(err, control.ErrNotUp) {
			t.Error(err)
		}
	})
	if len(lines) != 3 {
		t.Errorf("progress: %q", lines)
	}
	return status(t, name)
}

func status(t *testing.T, name string) (s daemon.Status) {
	t.Helper()
	if err := control.Do(t.Context(), name, control.Request{Method: daemon.MethodStatus}, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestUpAndDownLeaveNothing(t *testing.T) {
	before := mounts(t)
	for _, end := range []string{"down", "kill -9 of the first process", "kill -9 of the lab's process"} {
		t.Run(end, func(t *testing.T) {
			name := labName(t)
			s := upLab(t, name)
			ns := namespaceOf(t, s.PID)
			if members := membersOf(t, ns...); len(members) != 4 { // first process, lab, two nodes
				t.Errorf("processes of the lab: %v", members)
			}
			switch end {
			case "down":
				if err := daemon.Down(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			case "kill -9 of the first process":
				if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			default:
				if err := unix.Kill(childOf(t, s.PID), unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "processes gone", func() bool { return len(membersOf(t, ns...)) == 0 })
			eventually(t, "socket gone", func() bool {
				err := control.Do(t.Context(), name, control.Request{Method: daemon.MethodStatus}, nil)
				return errors.Is(err, control.ErrNotUp)
			})
			if conn, err := net.Dial("tcp", strings.TrimPrefix(s.Endpoints.HTTP, "http://")); err == nil {
				_ = conn.Close()
				t.Error("EC2's port is still open")
			}
			if after := mounts(t); after != before {
				t.Errorf("mounts before\n%s\nafter\n%s", before, after)
			}
			for _, dir := range []string{"/run/vpclab", "/etc/cni", "/opt/cni", "/var/run/aws-node"} {
				if _, err := os.Lstat(filepath.Join(dir, "net.d/10-aws.conflist")); err == nil {
					t.Errorf("a file in %s", dir)
				}
			}
		})
	}
}

func TestForegroundEndsWithItsStarter(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(fmt.Sprint(int(sig)), func(t *testing.T) {
			t.Parallel()
			name := labName(t)
			cmd := sandbox.Reexec(t.Context(), "up in foreground", name)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
				t.Fatalf("said %q; %s", line, &stderr)
			}
			ns := namespaceOf(t, status(t, name).PID)
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			if sig == syscall.SIGINT && err != nil {
				t.Errorf("interrupted: %v %s", err, &stderr)
			}
			eventually(t, "processes gone", func() bool { return len(membersOf(t, ns...)) == 0 })
		})
	}
}

func TestTwoLabsSideBySide(t *testing.T) {
	t.Parallel()
	a, b := labName(t)+"a", labName(t)+"b"
	sa, sb := upLab(t, a), upLab(t, b)
	if sa.Nodes[0].Address != sb.Nodes[0].Address || sa.Endpoints == sb.Endpoints || sa.PID == sb.PID {
		t.Errorf("labs %+v and %+v", sa, sb)
	}
	err := daemon.Up(t.Context(), daemon.UpOptions{Spec: bareSpec(a)})
	if !errors.Is(err, control.ErrUp) || !strings.Contains(err.Error(), "vpclab down --name "+a) {
		t.Errorf("a second lab of that name: %v", err)
	}
	if err := daemon.Down(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if got := status(t, b); got.PID != sb.PID {
		t.Error("the end of one lab touched the other")
	}
}

func TestLabThatCannotStart(t *testing.T) {
	t.Parallel()
	name := labName(t)
	spec := bareSpec(name)
	spec.Nodes[0].Type = "t9.colossal"
	err := daemon.Up(t.Context(), daemon.UpOptions{Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "t9.colossal") {
		t.Errorf("error %v", err)
	}
	if err := control.Do(t.Context(), name, control.Request{Method: daemon.MethodStatus}, nil); !errors.Is(err, control.ErrNotUp) {
		t.Errorf("it is there: %v", err)
	}
	spec = bareSpec(name)
	spec.NoIPAMD, spec.BinDir = false, t.TempDir()
	if err := daemon.Up(t.Context(), daemon.UpOptions{Spec: spec}); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("without binaries: %v", err)
	}
}

// execute runs a program on node n1 with pipes for its standard files.
func execute(t *testing.T, lab, stdin string, signals chan os.Signal, command ...string) (stdout, stderr string, code int, err error) {
	t.Helper()
	var ends [3]*os.File
	var collected [2]bytes.Buffer
	done := make(chan error, 2)
	var outs [2]*os.File
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ends[0] = r
	go func() {
		_, _ = io.WriteString(w, stdin)
		_ = w.Close()
	}()
	for i := range collected {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ends[i+1], outs[i] = w, w
		go func() {
			_, err := collected[i].ReadFrom(r)
			_ = r.Close()
			done <- err
		}()
	}
	var exit daemon.Exit
	err = control.Do(t.Context(), lab, control.Request{Method: daemon.MethodExec, Files: ends[:], Signals: signals,
		Params: daemon.Exec{Node: "n1", Command: command}}, &exit)
	_ = ends[0].Close()
	for _, w := range outs {
		_ = w.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	return collected[0].String(), collected[1].String(), exit.Code, err
}

func TestExec(t *testing.T) {
	t.Parallel()
	lab := labName(t)
	upLab(t, lab)
	stdout, stderr, code, err := execute(t, lab, "from outside", nil, "sh", "-c", "cat; hostname >&2; exit 42")
	if stdout != "from outside" || stderr != "ip-10-0-1-10\n" || code != 42 || err != nil {
		t.Errorf("%q, %q, %d, %v", stdout, stderr, code, err)
	}
	if _, _, _, err := execute(t, lab, "", nil, "no-such-program"); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("missing program: %v", err)
	}
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGTERM
	if _, _, code, err := execute(t, lab, "", signals, "sh", "-c", "sleep 1000 & wait"); code != 128+15 || err != nil {
		t.Errorf("signalled: %d, %v", code, err)
	}
}

// An AWS client on the machine reaches EC2 through the loopback, over HTTP and HTTPS.
func TestEnv(t *testing.T) {
	t.Parallel()
	lab := labName(t)
	upLab(t, lab)
	var e daemon.Env
	if err := control.Do(t.Context(), lab, control.Request{Method: daemon.MethodEnv}, &e); err != nil {
		t.Fatal(err)
	}
	if e.AccessKey == "" || e.SecretKey == "" || e.Region == "" {
		t.Errorf("%+v", e)
	}
	ca, err := os.ReadFile(e.CABundle)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	for _, endpoint := range []string{e.Endpoint, e.EndpointTLS} {
		resp, err := client.PostForm(endpoint, url.Values{"Action": {"DescribeVpcs"}, "Version": {"2016-11-15"}})
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		// Unsigned, so it is refused, but by EC2.
		if err != nil || !bytes.Contains(text, []byte("<Code>")) {
			t.Errorf("%s: %v %s", endpoint, err, text)
		}
	}
}

// An ordinary user gets the same labs.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("every other test runs as an ordinary user already")
	}
	dir, err := os.MkdirTemp("/tmp", "vpclab-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bin := filepath.Join(dir, "daemon.test")
	if err := errors.Join(program.Copy("/proc/self/exe", bin), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.v", "-test.run", "TestUpAndDown|TestForeground|TestTwoLabs|TestExec|TestEnv")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 63998, Gid: 63998}}
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("SKIP")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func mounts(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// namespaceOf gives the pid namespace of a process and of its descendants.
func namespaceOf(t *testing.T, pid int) []string {
	t.Helper()
	var found []string
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", queue[0]))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(found, link) {
			found = append(found, link)
		}
		queue = append(queue, childrenOf(t, queue[0])...)
	}
	return found
}

func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range tasks {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, n)
		}
	}
	return pids
}

func childOf(t *testing.T, pid int) int {
	t.Helper()
	children := childrenOf(t, pid)
	if len(children) != 1 {
		t.Fatalf("children of the first process: %v", children)
	}
	return children[0]
}

// membersOf lists the processes of pid namespaces.
func membersOf(t *testing.T, ns ...string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	pids := []int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && slices.Contains(ns, link) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}
