// Package sandbox runs a part of a program inside network, mount, pid, uts and ipc namespaces of its own (and a user
// namespace where the program is not root), so that whatever it makes — interfaces, mounts, files in the private
// tree, processes — goes with it: when the first process of the pid namespace ends, for whatever reason, the kernel
// removes all of it. Nothing in a sandbox can reach or change the machine's own network.
//
// A program registers its inside parts with Register and calls Init first thing in main; Start then runs one of them
// inside a new sandbox. Main and TestMain are short cuts for programs and tests that run in a sandbox as a whole.
//
// Three processes take part. The outer one calls Start. The first process inside (pid 1) lays out the private tree,
// forwards signals and reaps orphans; it does nothing else, so that the third, the registered part, can start and
// wait for children as any program does.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// StateDir is the private directory, inside the sandbox, for what a part keeps in files.
const StateDir = "/run/vpclab"

// HostDir is where the machine's own tree is found inside the sandbox, read-only where the kernel can do that.
const HostDir = "/.host"

// stageVar tells a re-executed program which part of it to run: "<registered name>", behind "pid1:" in the first
// process of a sandbox.
const stageVar = "VPCLAB_STAGE"

const pid1Prefix = "pid1:"

// filesVar has the number of descriptors that the first process hands on to the part.
const filesVar = "VPCLAB_FILES"

var (
	parts  = map[string]func() int{}
	files  []*os.File
	inside bool
)

// Keep the main goroutine on the thread-group leader in re-executed programs: other goroutines enter other
// namespaces for good, and /proc/self describes the leader's.
func init() {
	if os.Getenv(stageVar) != "" {
		runtime.LockOSThread()
	}
}

// Register names a part of the program that can be run in a process of its own; it returns the exit code. Call it
// from init functions or before Init.
func Register(name string, part func() int) { parts[name] = part }

// Init runs the registered part that this process was started for and exits. It returns at once in every other
// process.
func Init() {
	stage := os.Getenv(stageVar)
	if stage == "" {
		return
	}
	n, _ := strconv.Atoi(os.Getenv(filesVar))
	for i := range n {
		unix.CloseOnExec(3 + i)
		files = append(files, os.NewFile(uintptr(3+i), "inherited-"+strconv.Itoa(i)))
	}
	// Children are not meant.
	_, _ = os.Unsetenv(stageVar), os.Unsetenv(filesVar)
	if name, ok := strings.CutPrefix(stage, pid1Prefix); ok {
		nameProcess("sandbox-init")
		os.Exit(pid1(name))
	}
	nameProcess(stage)
	part, ok := parts[stage]
	if !ok {
		fmt.Fprintf(os.Stderr, "sandbox: this program has no part %q\n", stage)
		os.Exit(125)
	}
	inside = true
	os.Exit(part())
}

// nameProcess is for people who look at ps: a re-executed program would be called exe. What does not fit is cut off.
func nameProcess(name string) {
	if p, err := unix.BytePtrFromString(name); err == nil {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(p)), 0, 0, 0)
	}
}

// Files are the descriptors that Config.Files handed down to this process.
func Files() []*os.File { return files }

// Inside reports whether this process is a part that runs in a sandbox.
func Inside() bool { return inside }

// Reexec returns a command that runs a registered part of this very program in a process of its own.
func Reexec(ctx context.Context, part string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageVar+"="+part)
	return cmd
}

// Config says what to run in a new sandbox.
type Config struct {
	// Part is the registered part, Args its arguments (os.Args[1:]).
	Part string
	Args []string
	// Files are inherited as descriptors 3, 4, …
	Files []*os.File
	// Stdin, Stdout and Stderr of the part; nil is /dev/null.
	Stdin, Stdout, Stderr *os.File
	// Detach lets the sandbox outlive its starter. Otherwise it ends with it, also when the starter is killed.
	Detach bool
}

// Sandbox is a running sandbox.
type Sandbox struct {
	// PID is the sandbox's first process, as the starter sees it.
	PID  int
	proc *os.Process
	done chan struct{}
	code int
	err  error
}

// ErrRefused means that the kernel does not let this user make namespaces.
var ErrRefused = errors.New("the kernel refuses the namespaces: run as root, or allow unprivileged user namespaces")

// Start runs a part in a new sandbox.
func Start(cfg Config) (*Sandbox, error) {
	cmd := Reexec(context.Background(), pid1Prefix+cfg.Part, cfg.Args...)
	cmd.ExtraFiles = cfg.Files
	cmd.Env = append(cmd.Env, filesVar+"="+strconv.Itoa(len(cfg.Files)))
	// A nil *os.File must stay a nil interface.
	if cfg.Stdin != nil {
		cmd.Stdin = cfg.Stdin
	}
	if cfg.Stdout != nil {
		cmd.Stdout = cfg.Stdout
	}
	if cfg.Stderr != nil {
		cmd.Stderr = cfg.Stderr
	}
	cmd.SysProcAttr = attributes(cfg.Detach)
	s := &Sandbox{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal is bound to the thread that forks, so that thread waits too.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EACCES) {
				err = fmt.Errorf("%w (%w)", ErrRefused, err)
			}
			started <- err
			return
		}
		s.PID, s.proc = cmd.Process.Pid, cmd.Process
		started <- nil
		s.code, s.err = exitCode(cmd.Wait())
		close(s.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return s, nil
}

func attributes(detach bool) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if detach {
		attr.Setsid = true
	} else {
		// Out of the terminal's foreground group: an interrupt key reaches the starter only, which forwards it,
		// or the part would get it twice.
		attr.Setpgid = true
		attr.Pdeathsig = syscall.SIGKILL
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	default:
		return -1, err
	}
}

// Done is closed when every process of the sandbox is gone.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Wait waits for the end of the sandbox and returns the part's exit code, 128+n if signal n ended it.
func (s *Sandbox) Wait() (int, error) {
	<-s.done
	return s.code, s.err
}

// Signal sends a signal to the part.
func (s *Sandbox) Signal(sig os.Signal) error { return s.proc.Signal(sig) }

// forwarded are the signals that a person or a supervisor sends to end or inspect a program.
var forwarded = []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2}

// Run runs a part in a new sandbox, forwards signals to it and returns its exit code.
func Run(cfg Config) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	s, err := Start(cfg)
	if err != nil {
		return -1, err
	}
	for {
		select {
		case sig := <-signals:
			_ = s.Signal(sig)
		case <-s.done:
			return s.Wait()
		}
	}
}

// Main runs f in a sandbox, as if the whole program ran there, and exits with its code.
func Main(f func() int) {
	Register("main", f)
	Init()
	code, err := Run(Config{Part: "main", Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		code = 125
	}
	os.Exit(code)
}

// TestMain runs the tests of m in a sandbox and exits. Where the kernel refuses, the test binary fails: a test that
// could not run is not a test that passed.
func TestMain(m *testing.M) {
	QuickExit()
	Main(m.Run)
}

// QuickExit keeps the race detector from holding up the end of every child process for a second, which it does to
// let reports out that are being written at that moment.
func QuickExit() {
	if os.Getenv(raceOptions) == "" {
		_ = os.Setenv(raceOptions, "atexit_sleep_ms=20")
	}
}

const raceOptions = "GORACE"
