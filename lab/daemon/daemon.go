// Package daemon is a lab as a process: it starts a cluster in a sandbox, answers the control socket until it is told
// to end, and offers the simulated EC2 to programs on the machine's loopback. Everything that the machine sees of a lab
// is three sockets and a few processes, all of which end with the sandbox's first process.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/control"
	"vpccni/lab/sandbox"
)

// part is the registered part that runs in the sandbox.
const part = "lab"

func init() { sandbox.Register(part, labMain) }

// farewell is how long a lab waits for its callers: one that could not start for somebody to ask why, one that ends
// for the requests in flight.
const farewell = 5 * time.Second

// startTimeout bounds the start of a lab.
const startTimeout = 3 * time.Minute

// lab is the state of the process in the sandbox.
type lab struct {
	spec      cluster.Spec
	since     time.Time
	log       *slog.Logger
	endpoints Endpoints

	up      chan struct{} // closed when cluster or err is set
	cluster *cluster.Cluster
	err     error
	told    chan struct{} // closed when a caller has been told of err
	tell    sync.Once
	end     context.CancelFunc

	mu       sync.Mutex
	pid      int
	lines    []string      // of progress
	progress chan struct{} // closed and replaced with each line
}

// labMain is the part in the sandbox. Its files are the control socket, the two EC2 listeners and the spec.
func labMain() int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := runLab(log); err != nil {
		log.Error("lab", "error", err)
		return 1
	}
	return 0
}

func runLab(log *slog.Logger) error {
	files := sandbox.Files()
	if len(files) != 4 {
		return fmt.Errorf("%d descriptors, want 4: this part is started by up only", len(files))
	}
	var listeners [3]net.Listener
	for i := range listeners {
		var err error
		if listeners[i], err = net.FileListener(files[i]); err != nil {
			return fmt.Errorf("inherited listener: %w", err)
		}
		_ = files[i].Close()
	}
	socket, ok := listeners[0].(*net.UnixListener)
	if !ok {
		return errors.New("the control listener is no unix socket")
	}
	text, err := io.ReadAll(io.NewSectionReader(files[3], 0, 1<<30))
	if err != nil {
		return fmt.Errorf("read the spec: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &lab{log: log, since: time.Now(), up: make(chan struct{}), told: make(chan struct{}),
		progress: make(chan struct{}), end: cancel,
		endpoints: Endpoints{HTTP: "http://" + listeners[1].Addr().String(), HTTPS: "https://" + listeners[2].Addr().String()}}
	if err := json.Unmarshal(text, &l.spec); err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	served := make(chan error, 1)
	go func() { served <- (&control.Server{Handlers: l.handlers(), Log: log}).Serve(ctx, socket) }()
	err = l.start(ctx, listeners[1], listeners[2])
	if err == nil {
		<-ctx.Done()
	}
	cancel()
	// What the lab has made needs no taking down: it goes with the sandbox. Callers get their last answers.
	select {
	case servedErr := <-served:
		return errors.Join(err, servedErr)
	case <-time.After(farewell):
		return errors.Join(err, errors.New("requests were cut off"))
	}
}

// start brings the cluster up, or waits until somebody has been told why not.
func (l *lab) start(ctx context.Context, http, https net.Listener) error {
	starting, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not up within %s", startTimeout))
	defer cancel()
	l.cluster, l.err = cluster.New(starting, l.spec, cluster.Hooks{Log: l.log, Progress: l.say})
	close(l.up)
	if l.err == nil {
		l.cluster.ServeEC2(http, false)
		l.cluster.ServeEC2(https, true)
		return nil
	}
	select {
	case <-l.told:
	case <-ctx.Done():
	case <-time.After(farewell):
	}
	return l.err
}

// say notes a line of progress.
func (l *lab) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
	close(l.progress)
	l.progress = make(chan struct{})
}

// ready streams the lines of progress until the lab is up.
func (l *lab) ready(ctx context.Context, call *control.Call) (any, error) {
	var p Ready
	if err := call.Params(&p); err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.pid = p.PID
	l.mu.Unlock()
	for seen := 0; ; {
		// Before the lines: whatever was said before the lab was up is then sent.
		done := false
		select {
		case <-l.up:
			done = true
		default:
		}
		l.mu.Lock()
		lines, more := l.lines[seen:], l.progress
		l.mu.Unlock()
		for _, line := range lines {
			if err := call.Progress(line); err != nil {
				return nil, err
			}
		}
		seen += len(lines)
		if done {
			break
		}
		select {
		case <-more:
		case <-l.up:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	if l.err != nil {
		l.tell.Do(func() { close(l.told) })
		return nil, l.err
	}
	return struct{}{}, nil
}

// running waits for the start to be over and gives the cluster.
func (l *lab) running(ctx context.Context) (*cluster.Cluster, error) {
	select {
	case <-l.up:
		return l.cluster, l.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// BinDir is where the binaries of this build are: beside the running program.
func BinDir() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	return filepath.Dir(self), nil
}
