package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
)

func serve(t *testing.T, handlers map[string]Handler) string {
	t.Helper()
	lab := strings.ToLower(fmt.Sprintf("test-%d-%s", os.Getpid(), strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, strings.ToLower(t.Name()))))
	l, err := Listen(lab)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- (&Server{Handlers: handlers, Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lab
}

func TestResultProgressAndError(t *testing.T) {
	t.Parallel()
	lab := serve(t, map[string]Handler{
		"count": func(_ context.Context, c *Call) (any, error) {
			var p struct{ To int }
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			for i := range p.To {
				if err := c.Progress(i); err != nil {
					return nil, err
				}
			}
			return strings.Repeat("x", 100_000), nil
		},
		"fail": func(context.Context, *Call) (any, error) { return nil, errors.New("no luck") },
	})
	var got string
	var seen []string
	err := Do(t.Context(), lab, Request{Method: "count", Params: map[string]int{"To": 3},
		Progress: func(raw json.RawMessage) { seen = append(seen, string(raw)) }}, &got)
	if err != nil || len(got) != 100_000 || strings.Join(seen, " ") != "0 1 2" {
		t.Errorf("%v, %d bytes, %q", err, len(got), seen)
	}
	for method, want := range map[string]string{"fail": "no luck", "fly": `the lab knows no request "fly": it is of another version`} {
		if err := Do(t.Context(), lab, Request{Method: method}, nil); err == nil || err.Error() != want {
			t.Errorf("%s: %v", method, err)
		}
	}
	if err := Do(t.Context(), lab, Request{Method: "count", Params: map[string]int{"Two": 2}}, nil); err == nil || !strings.Contains(err.Error(), "unknown field") {
		t.Errorf("unknown parameter: %v", err)
	}
}

func TestFilesAndSignals(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	lab := serve(t, map[string]Handler{"write": func(_ context.Context, c *Call) (any, error) {
		close(started)
		sig := <-c.Signals
		_, err := fmt.Fprintf(c.Files[0], "signal %d", int(sig))
		return nil, err
	}})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	signals := make(chan os.Signal, 1)
	go func() {
		<-started
		signals <- syscall.SIGTERM
	}()
	if err := Do(t.Context(), lab, Request{Method: "write", Files: []*os.File{w}, Signals: signals}, nil); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	// The end of the pipe shows that the lab has closed its copy.
	if text, err := io.ReadAll(r); err != nil || string(text) != "signal 15" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestCallerGoes(t *testing.T) {
	t.Parallel()
	started, ended := make(chan struct{}), make(chan struct{})
	lab := serve(t, map[string]Handler{"wait": func(ctx context.Context, _ *Call) (any, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-started
		cancel()
	}()
	if err := Do(ctx, lab, Request{Method: "wait"}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-ended
}

func TestNames(t *testing.T) {
	t.Parallel()
	lab := serve(t, nil)
	if _, err := Listen(lab); !errors.Is(err, ErrUp) {
		t.Errorf("second lab of a name: %v", err)
	}
	if err := Do(t.Context(), "nobody-is-here", Request{Method: "x"}, nil); !errors.Is(err, ErrNotUp) {
		t.Errorf("no lab: %v", err)
	}
	for _, bad := range []string{"", "A", "a/b", "a b", strings.Repeat("a", 41)} {
		if err := CheckName(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
