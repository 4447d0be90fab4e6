package sandbox_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
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

	"vpccni/lab/program"
	"vpccni/lab/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.QuickExit()
	sandbox.Register("exit", func() int { n, _ := strconv.Atoi(os.Args[1]); return n })
	sandbox.Register("look", look)
	sandbox.Register("linger", linger)
	sandbox.Register("signal", waitForSignal)
	sandbox.Register("foreground", func() int { // runs outside: starts a sandbox and stays with it
		code, err := sandbox.Run(sandbox.Config{Part: "linger", Stdout: os.Stdout, Stderr: os.Stderr})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return code
	})
	sandbox.Register("listener", func() int {
		l, err := net.FileListener(sandbox.Files()[0])
		if err != nil {
			return 3
		}
		conn, err := l.Accept()
		if err != nil {
			return 4
		}
		defer func() { _ = conn.Close() }()
		fmt.Fprintln(conn, "pid", os.Getpid())
		return 0
	})
	sandbox.Init()
	os.Exit(m.Run())
}

// look prints what a part sees.
func look() int {
	links, err := net.Interfaces()
	if err != nil {
		return 1
	}
	for _, l := range links {
		fmt.Println("link", l.Name, l.Flags&net.FlagUp != 0)
	}
	fmt.Println("uid", os.Getuid())
	for _, path := range []string{"/run/probe", "/etc/cni/net.d/probe", "/opt/cni/bin/probe", "/var/log/probe", "/dev/shm/probe", sandbox.StateDir + "/probe"} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			fmt.Println("write", err)
		}
	}
	if err := os.WriteFile(sandbox.HostDir+"/tmp/vpclab-probe", nil, 0o600); !errors.Is(err, unix.EROFS) {
		fmt.Println("the machine's tree can be written to:", err)
	}
	if _, err := os.ReadFile("/etc/passwd"); err != nil {
		fmt.Println(err)
	}
	stat, _ := os.ReadFile("/proc/self/stat")
	fmt.Println("stat", strings.Fields(string(stat))[3])
	dir, _ := os.Getwd()
	fmt.Println("cwd", dir)
	// An orphan: its parent ends before it.
	out, err := exec.Command("sh", "-c", "(true &) ; echo child").CombinedOutput()
	fmt.Println(string(bytes.TrimSpace(out)), err)
	return 0
}

// linger leaves a background process and a mount, says so, and stays.
func linger() int {
	if err := unix.Mount("linger", "/run/netns", "tmpfs", 0, ""); err != nil {
		fmt.Println(err)
		return 1
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	ns, _ := os.Readlink("/proc/self/ns/pid")
	fmt.Println("ready", ns)
	_ = cmd.Wait()
	return 0
}

func waitForSignal() int {
	// The default action of SIGTERM ends this process.
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
	}
}

func run(t *testing.T, part string, args ...string) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	s, err := sandbox.Start(sandbox.Config{Part: part, Args: args, Stdout: w, Stderr: w})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	var out bytes.Buffer
	_, _ = out.ReadFrom(r)
	code, err := s.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, want := range []int{0, 1, 77} {
		if _, got := run(t, "exit", strconv.Itoa(want)); got != want {
			t.Errorf("exit code %d, want %d", got, want)
		}
	}
	if out, code := run(t, "nonsense"); code != 125 || !strings.Contains(out, `no part "nonsense"`) {
		t.Errorf("unknown part: code %d, %q", code, out)
	}
}

func TestPartSeesAPrivateMachine(t *testing.T) {
	t.Parallel()
	out, code := run(t, "look")
	dir, _ := os.Getwd()
	want := "link lo true\nuid 0\nstat 1\ncwd " + dir + "\nchild <nil>\n"
	if code != 0 || out != want {
		t.Errorf("code %d\n%s\nwant\n%s", code, out, want)
	}
	for _, path := range []string{"/run/probe", "/etc/cni/net.d/probe", "/dev/shm/probe"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s on the machine: %v", path, err)
		}
	}
}

func TestSignalsReachThePart(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s, err := sandbox.Start(sandbox.Config{Part: "signal", Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if line, _ := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		t.Fatalf("said %q", line)
	}
	if err := s.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := s.Wait(); code != 128+15 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
}

// Whatever of the three processes is killed, nothing is left: the pid namespace has no process, hence no mount
// namespace and no network namespace that only they held.
func TestKillLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, victim := range []string{"starter", "pid1", "part"} {
		t.Run(victim, func(t *testing.T) {
			t.Parallel()
			cmd := sandbox.Reexec(t.Context(), "foreground")
			cmd.Stderr = os.Stderr
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, _ := bufio.NewReader(stdout).ReadString('\n')
			ns, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
			if !ok {
				t.Fatalf("said %q", line)
			}
			members := membersOf(t, ns)
			if len(members) != 3 { // pid 1, the part and its sleep
				t.Fatalf("members of the sandbox: %v", members)
			}
			pid := map[string]int{"starter": cmd.Process.Pid, "pid1": members[0], "part": members[1]}[victim]
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			eventually(t, func() bool { return len(membersOf(t, ns)) == 0 })
		})
	}
}

func TestInheritedListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", fmt.Sprintf("@vpclab-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	s, err := sandbox.Start(sandbox.Config{Part: "listener", Files: []*os.File{file}, Stderr: os.Stderr, Detach: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = file.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	line, _ := bufio.NewReader(conn).ReadString('\n')
	if !strings.HasPrefix(line, "pid ") || line == fmt.Sprintln("pid", os.Getpid()) {
		t.Errorf("the part says %q", line)
	}
	if code, err := s.Wait(); code != 0 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
}

// An ordinary user gets the same sandbox by a user namespace.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("every other test runs as an ordinary user already")
	}
	// The test binary lies where only root looks; the user needs one of its own.
	dir, err := os.MkdirTemp("/tmp", "vpclab-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	bin := filepath.Join(dir, "sandbox.test")
	if err := errors.Join(program.Copy("/proc/self/exe", bin), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.v", "-test.run", "TestExitCode|TestPartSees|TestKill|TestSignals")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 63999, Gid: 63999}}
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte("SKIP")) {
		t.Errorf("%v\n%s", err, out)
	}
}

// membersOf lists the processes of a pid namespace, the first one first.
func membersOf(t *testing.T, ns string) []int {
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
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && link == ns {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("did not happen within 20 s")
		case <-time.After(5 * time.Millisecond):
		}
	}
}
