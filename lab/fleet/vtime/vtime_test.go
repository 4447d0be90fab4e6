package vtime_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"vpccni/lab/fleet/vtime"
)

var start = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

func TestEventsAndProcessesTakeTurnsByTime(t *testing.T) {
	t.Parallel()
	w := vtime.New(start, 1)
	defer w.Close()
	var got []string
	note := func(s string) { got = append(got, fmt.Sprintf("%s@%s", s, w.Now().Sub(start))) }
	w.After(2*time.Second, func() { note("event") })
	for _, name := range []string{"a", "b"} {
		w.Go(func() {
			for range 2 {
				if err := w.Sleep(t.Context(), time.Second); err != nil {
					t.Error(err)
				}
				note(name)
			}
		})
	}
	cancelled := w.After(time.Second, func() { note("cancelled") })
	if !w.Cancel(cancelled) || w.Cancel(cancelled) {
		t.Error("an event is cancelled once")
	}
	timer := w.Clock().AfterFunc(time.Hour, func() { note("timer") })
	timer.Reset(500 * time.Millisecond)
	if err := w.Run(t.Context(), start.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	// Of two things at the same time the one that was made first happens first.
	want := []string{"timer@500ms", "a@1s", "b@1s", "event@2s", "a@2s", "b@2s"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if w.Now() != start.Add(time.Minute) {
		t.Errorf("it is %s", w.Now())
	}
}

func TestWaitsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	w := vtime.New(start, 1)
	type end struct {
		err   error
		after time.Duration
	}
	ends := map[string]end{}
	wait := func(name string, ctx context.Context) {
		w.Go(func() {
			err := w.Sleep(ctx, 10*time.Second)
			ends[name] = end{err, w.Now().Sub(start)}
		})
	}
	root, cancel := w.Context()
	short, _ := w.WithTimeout(root, 3*time.Second)
	long, _ := w.WithTimeout(root, time.Minute)
	// As the SDK may do.
	wrapped, cancelWrapped := context.WithCancel(short)
	defer cancelWrapped()
	wait("short", short)
	wait("long", long)
	wait("wrapped", wrapped)
	late, _ := w.WithTimeout(context.WithoutCancel(root), time.Hour)
	w.Go(func() { ends["closed"] = end{w.Sleep(late, 30*time.Minute), 0} })
	w.After(5*time.Second, cancel)
	if err := w.Run(t.Context(), start.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for name, want := range map[string]end{
		"short":   {context.DeadlineExceeded, 3 * time.Second},
		"wrapped": {context.DeadlineExceeded, 3 * time.Second},
		"long":    {context.Canceled, 10 * time.Second},
		"closed":  {vtime.ErrClosed, 0},
	} {
		if got := ends[name]; !errors.Is(got.err, want.err) || got.after != want.after {
			t.Errorf("%s: %v after %s, want %v after %s", name, got.err, got.after, want.err, want.after)
		}
	}
}
