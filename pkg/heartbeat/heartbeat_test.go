package heartbeat

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"
)

func TestAge(t *testing.T) {
	t.Parallel()
	f := File(filepath.Join(t.TempDir(), "heartbeat"))
	if _, err := f.Age(time.Hour); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a heartbeat: %v", err)
	}
	for _, at := range []time.Duration{time.Hour, time.Minute} { // the second one is shorter
		if err := f.Beat(at); err != nil {
			t.Fatal(err)
		}
		if age, err := f.Age(at + 3*time.Second); age != 3*time.Second || err != nil {
			t.Errorf("age %s, %v", age, err)
		}
	}
	if _, err := f.Age(time.Second); !errors.Is(err, ErrOther) {
		t.Errorf("a heartbeat of an earlier boot: %v", err)
	}
	for _, text := range []string{"", "1\n", "0000000000000000000x\n", "-0000000000000000001\n", "99999999999999999999\n", "00000000000000000001"} {
		if err := os.WriteFile(string(f), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if age, err := f.Age(time.Hour); !errors.Is(err, ErrOther) {
			t.Errorf("%q: %s, %v", text, age, err)
		}
	}
}

func TestRunBeatsAtEveryTick(t *testing.T) {
	t.Parallel()
	f := File(filepath.Join(t.TempDir(), "heartbeat"))
	clock := clockwork.NewFakeClock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	ticker := clock.NewTicker(Period)
	go func() {
		defer close(ended)
		f.Run(ctx, ticker, func(err error) { t.Error(err) })
	}()
	beaten := func() {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			if err := os.Remove(string(f)); err == nil {
				return
			}
			select {
			case <-deadline:
				t.Fatal("no heartbeat")
			case <-time.After(time.Millisecond):
			}
		}
	}
	beaten()
	for range 3 {
		clock.Advance(Period)
		beaten()
	}
	cancel()
	<-ended
}
