package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/lab/control"
	"vpccni/lab/sandbox"
)

// UpOptions say how to start a lab.
type UpOptions struct {
	Spec cluster.Spec
	// Foreground keeps the lab tied to the caller, and Up from returning before the lab has ended.
	Foreground bool
	Progress   func(line string)
	// Ready is called once the lab is up.
	Ready func()
}

// downTimeout bounds the end of a lab.
const downTimeout = 20 * time.Second

// Up starts a lab and returns when it is up.
func Up(ctx context.Context, o UpOptions) error {
	if err := o.Spec.Complete(); err != nil {
		return err
	}
	files, closeFiles, err := handDown(o.Spec)
	if err != nil {
		return err
	}
	defer closeFiles()
	log, err := memoryFile("vpclab log", nil)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	box, err := sandbox.Start(sandbox.Config{Part: part, Files: files, Stdout: log, Stderr: log, Detach: !o.Foreground})
	if err != nil {
		return err
	}
	closeFiles()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	var stopped atomic.Bool
	go func() {
		for range signals {
			stopped.Store(true)
			_ = box.Signal(syscall.SIGTERM)
		}
	}()
	err = control.Do(ctx, o.Spec.Name, control.Request{
		Method: MethodReady, Params: Ready{PID: box.PID},
		Progress: func(raw json.RawMessage) {
			var line string
			if json.Unmarshal(raw, &line) == nil && o.Progress != nil {
				o.Progress(line)
			}
		},
	}, nil)
	if err != nil {
		_ = box.Signal(syscall.SIGTERM)
		select {
		case <-box.Done():
		case <-time.After(downTimeout):
		}
		if errors.Is(err, control.ErrGone) || errors.Is(err, control.ErrNotUp) {
			err = fmt.Errorf("the lab ended while it started: %s", tailOf(log))
		}
		return err
	}
	if o.Ready != nil {
		o.Ready()
	}
	if !o.Foreground {
		return nil
	}
	code, err := box.Wait()
	if err == nil && code != 0 && !stopped.Load() {
		err = fmt.Errorf("the lab ended (code %d): %s", code, tailOf(log))
	}
	return err
}

// handDown opens what the sandbox cannot: the control socket and the loopback listeners are the machine's.
func handDown(spec cluster.Spec) (files []*os.File, closeAll func(), err error) {
	var open []interface{ Close() error }
	closeAll = func() {
		for _, c := range open {
			_ = c.Close()
		}
		open = nil
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	type filer interface {
		net.Listener
		File() (*os.File, error)
	}
	keep := func(l filer) error {
		open = append(open, l)
		file, err := l.File()
		if err != nil {
			return err
		}
		open = append(open, file)
		files = append(files, file)
		return nil
	}
	socket, err := control.Listen(spec.Name)
	if errors.Is(err, control.ErrUp) {
		return nil, closeAll, fmt.Errorf("%w: end it (vpclab down --name %s) or choose another name (--name)", err, spec.Name)
	}
	if err != nil {
		return nil, closeAll, err
	}
	if err := keep(socket); err != nil {
		return nil, closeAll, err
	}
	for range 2 { // HTTP and HTTPS
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, closeAll, err
		}
		if err := keep(l); err != nil {
			return nil, closeAll, err
		}
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, closeAll, err
	}
	file, err := memoryFile("vpclab spec", text)
	if err != nil {
		return nil, closeAll, err
	}
	open = append(open, file)
	return append(files, file), closeAll, nil
}

// memoryFile is a file without a name, which goes with its last user.
func memoryFile(name string, text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory file: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err := file.WriteAt(text, 0); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func tailOf(log *os.File) string {
	const most = 2000
	info, err := log.Stat()
	if err != nil {
		return err.Error()
	}
	buf := make([]byte, min(info.Size(), most))
	if _, err := log.ReadAt(buf, info.Size()-int64(len(buf))); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(buf))
}

// Down ends a lab and returns when nothing of it is left.
func Down(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, downTimeout, fmt.Errorf("lab %q did not end within %s", name, downTimeout))
	defer cancel()
	var r Ready
	if err := control.Do(ctx, name, control.Request{Method: MethodDown}, &r); err != nil && !errors.Is(err, control.ErrGone) {
		return err
	}
	// The first process ends after all others.
	pidfd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = unix.Close(pidfd) }()
	for {
		deadline, _ := ctx.Deadline()
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, max(1, int(time.Until(deadline).Milliseconds())))
		switch {
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		}
	}
}
