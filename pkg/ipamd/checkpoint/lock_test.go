package checkpoint

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLock(t *testing.T) {
	t.Parallel()
	s := New(Options{Path: filepath.Join(t.TempDir(), "new", "ipam.json"), Log: slog.New(slog.DiscardHandler)})
	release, err := s.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "held by another process") {
		t.Errorf("second lock: %v", err)
	}
	waited := make(chan error, 1)
	go func() {
		next, err := s.Lock(t.Context())
		if err == nil {
			next()
		}
		waited <- err
	}()
	release()
	if err := <-waited; err != nil {
		t.Errorf("lock of a process that ended: %v", err)
	}
}
