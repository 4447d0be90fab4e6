package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vpccni/lab/daemon"
	"vpccni/lab/sandbox"
)

// TestMain makes the test binary the program too.
func TestMain(m *testing.M) {
	sandbox.QuickExit()
	sandbox.Register("vpclab", run)
	sandbox.Init()
	os.Exit(m.Run())
}

// vpclab prepares a call of the program for this test's lab.
func vpclab(ctx context.Context, args ...string) *exec.Cmd {
	cmd := sandbox.Reexec(ctx, "vpclab", args...)
	cmd.Env = append(cmd.Env, fmt.Sprintf("VPCLAB_NAME=cmd-%d", os.Getpid()))
	return cmd
}

// ok runs the program and returns its standard output.
func ok(t *testing.T, args ...string) string {
	t.Helper()
	cmd := vpclab(t.Context(), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("vpclab %q: %v\n%s%s", args, err, out, &stderr)
	}
	return string(out)
}

func TestLab(t *testing.T) {
	var s daemon.Status
	if err := json.Unmarshal([]byte(ok(t, "up", "--no-ipamd", "--nodes", "1", "--json")), &s); err != nil || len(s.Nodes) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	t.Cleanup(func() {
		if out, err := vpclab(context.Background(), "down").CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	t.Run("exec", testExec)
	t.Run("terminal", testTerminal)
	t.Run("env", testEnv)
	t.Run("faults", testFaults)
	if out := ok(t, "status"); !strings.Contains(out, "10.0.1.10") || !strings.Contains(out, "dropped packets: none") {
		t.Errorf("status:\n%s", out)
	}
	if out := ok(t, "node", "reboot", "n1") + ok(t, "exec", "n1", "hostname"); out != "ip-10-0-1-10\n" {
		t.Errorf("after a reboot: %q", out)
	}
}

func testExec(t *testing.T) {
	cmd := vpclab(t.Context(), "exec", "n1", "--", "sh", "-c", "cat; echo err >&2; exit 3")
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("in\n"), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || stdout.String() != "in\n" || stderr.String() != "err\n" {
		t.Errorf("%v, %q, %q", err, &stdout, &stderr)
	}
	out, err := vpclab(t.Context(), "exec", "n1", "no-such-program").CombinedOutput()
	if !errors.As(err, &exit) || exit.ExitCode() != 127 || !bytes.Contains(out, []byte("not found")) {
		t.Errorf("%v, %s", err, out)
	}
}

// On a terminal the program gets one of its own: keys, size and exit code go through.
func testTerminal(t *testing.T) {
	master, slave := newPTY(t)
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}); err != nil {
		t.Fatal(err)
	}
	cmd := vpclab(t.Context(), "exec", "n1", "--", "sh", "-c", `stty size; trap 'echo interrupted; exit 9' INT; read line; echo "got $line"; while :; do sleep 0.01; done`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	seen := newScreen(master)
	seen.await(t, "33 77")
	if _, err := master.WriteString("hello\r"); err != nil {
		t.Fatal(err)
	}
	seen.await(t, "got hello")
	if _, err := master.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	seen.await(t, "interrupted")
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 9 {
		t.Errorf("%v", err)
	}
}

func newPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// screen collects what a terminal shows.
type screen struct{ chunks chan string }

func newScreen(r io.Reader) *screen {
	s := &screen{chunks: make(chan string, 1000)}
	go func() {
		defer close(s.chunks)
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				s.chunks <- string(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return s
}

func (s *screen) await(t *testing.T, want string) {
	t.Helper()
	shown := ""
	for !strings.Contains(shown, want) {
		select {
		case chunk, open := <-s.chunks:
			if !open {
				t.Fatalf("the terminal shows %q and no more, want %q", shown, want)
			}
			shown += chunk
		case <-t.Context().Done():
			t.Fatalf("the terminal shows %q, want %q", shown, want)
		}
	}
}

// The lines are for a shell, and a CLI of any age gets the endpoint.
func testEnv(t *testing.T) {
	script := ok(t, "env") + `
command() { shift; echo "$@"; }
[ -n "$AWS_SECRET_ACCESS_KEY" ] && aws ec2 describe-vpcs
`
	out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "--endpoint-url http://127.0.0.1:") || !strings.HasSuffix(string(out), " ec2 describe-vpcs\n") {
		t.Errorf("%v %s\n%s", err, out, script)
	}
}

func testFaults(t *testing.T) {
	ec2 := strings.TrimSpace(ok(t, "fault", "add", "--action", "Assign*", "--error", "InsufficientCidrBlocks", "--node", "n1", "--count", "2"))
	imds := strings.TrimSpace(ok(t, "fault", "add", "--imds", "--path", "meta-data/mac", "--status", "500"))
	list := ok(t, "fault", "list")
	for _, want := range []string{ec2, imds, "InsufficientCidrBlocks", "0 of 2", "status 500"} {
		if !strings.Contains(list, want) {
			t.Errorf("%q is not in\n%s", want, list)
		}
	}
	ok(t, "fault", "remove", ec2, imds)
	if list := ok(t, "fault", "list"); strings.Count(list, "\n") != 1 {
		t.Errorf("left:\n%s", list)
	}
}
