package deadline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// stuckContext is one whose timer has not fired.
type stuckContext struct {
	context.Context
	at time.Time
}

func (c stuckContext) Deadline() (time.Time, bool) { return c.at, true }

func TestErrAsksTheClock(t *testing.T) {
	t.Parallel()
	past := stuckContext{t.Context(), time.Now()}
	if past.Err() != nil || !errors.Is(Err(past), context.DeadlineExceeded) {
		t.Errorf("after the deadline: %v", Err(past))
	}
	if err := Err(stuckContext{t.Context(), time.Now().Add(time.Hour)}); err != nil {
		t.Error(err)
	}
	if err := Err(t.Context()); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Err(ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

const killVar = "VPCCNI_TEST_KILL_AFTER"

func TestMain(m *testing.M) {
	if after, err := time.ParseDuration(os.Getenv(killVar)); err == nil {
		if err := Kill(time.Now().Add(after)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("ready")
		<-time.After(time.Minute)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestKillReachesAStoppedProcess: it does not go on.
func TestKillReachesAStoppedProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{killVar + "=300ms"}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := out.Read(buf); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v, want SIGKILL", err)
	}
}
