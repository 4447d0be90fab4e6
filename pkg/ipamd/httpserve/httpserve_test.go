package httpserve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// events is a log that tests wait on.
type events struct {
	slog.Handler
	lines chan string
}

func newEvents() *events {
	return &events{Handler: slog.DiscardHandler, lines: make(chan string, 100)}
}

func (e *events) Enabled(context.Context, slog.Level) bool { return true }

func (e *events) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += fmt.Sprintf(" %s=%v", a.Key, a.Value); return true })
	e.lines <- line
	return nil
}

func (e *events) WithAttrs([]slog.Attr) slog.Handler { return e }

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

func run(t *testing.T, s *Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

func get(t *testing.T, network, addr string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}}
	resp, err := client.Get("http://endpoint/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "http")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	if err := os.WriteFile(path, nil, 0o600); err != nil { // what a killed process leaves behind
		t.Fatal(err)
	}
	log := newEvents()
	stop := run(t, &Server{Name: "test", Address: "unix:" + path, Handler: http.HandlerFunc(hello), Log: slog.New(log)})
	<-log.lines
	if code, body := get(t, "unix", path); code != 200 || body != "hello" {
		t.Errorf("%d %q", code, body)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	stop()
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("still served")
	}
}

func TestTakenAddressIsTriedAgain(t *testing.T) {
	t.Parallel()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := newEvents()
	run(t, &Server{Name: "test", Address: other.Addr().String(), Handler: http.HandlerFunc(hello), Log: slog.New(log)})
	if line := <-log.lines; !strings.Contains(line, "in use") || !strings.Contains(line, "again=1s") {
		t.Errorf("log: %s", line)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	for line := range log.lines { // a second later
		if strings.HasPrefix(line, "endpoint served") {
			break
		}
	}
	if code, _ := get(t, "tcp", other.Addr().String()); code != 200 {
		t.Errorf("%d", code)
	}
}

func TestRestGrowsToItsBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := newEvents()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			(&Server{Address: "unix:/nowhere/at/all", Log: slog.New(log)}).Run(ctx)
			close(done)
		}()
		var rests []string
		for range 8 {
			line := <-log.lines
			rests = append(rests, line[strings.LastIndex(line, "=")+1:])
		}
		cancel()
		<-done
		if got, want := strings.Join(rests, " "), "1s 2s 4s 8s 16s 32s 1m0s 1m0s"; got != want {
			t.Errorf("rests %s, want %s", got, want)
		}
	})
}

func TestTooManyRequests(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	log := newEvents()
	run(t, &Server{Name: "test", Address: "127.0.0.1:0", Log: slog.New(log),
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { entered <- struct{}{}; <-release })})
	line := <-log.lines
	addr := line[strings.LastIndex(line, "=")+1:]
	var wg sync.WaitGroup
	for range maxRequests {
		wg.Go(func() {
			if code, _ := get(t, "tcp", addr); code != 200 {
				t.Errorf("code %d", code)
			}
		})
		<-entered
	}
	if code, _ := get(t, "tcp", addr); code != http.StatusServiceUnavailable {
		t.Errorf("one too many: %d", code)
	}
	close(release)
	wg.Wait()
}
