package vtime

import (
	"context"
	"time"
)

// Context is a context that ends when it is cancelled. Its Done never fires: whoever waits in virtual time waits with
// Sleep, which looks at the deadline itself.
func (w *World) Context() (context.Context, context.CancelFunc) {
	c := &timed{Context: context.Background(), w: w}
	return c, func() { c.end(context.Canceled) }
}

// WithTimeout is context.WithTimeout in the world's time.
func (w *World) WithTimeout(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	c := &timed{Context: parent, w: w, deadline: w.now.Add(d)}
	return c, func() { c.end(context.Canceled) }
}

// Until is the time left before a deadline.
func (w *World) Until(deadline time.Time) time.Duration { return deadline.Sub(w.now) }

// Spawn runs f as a process with a deadline.
func (w *World) Spawn(ctx context.Context, timeout time.Duration, f func(context.Context)) {
	ctx, cancel := w.WithTimeout(ctx, timeout)
	w.Go(func() {
		defer cancel()
		f(ctx)
	})
}

type timed struct {
	context.Context
	w        *World
	deadline time.Time // zero: none of its own
	err      error
}

func (c *timed) end(err error) {
	if c.err == nil {
		c.err = err
	}
}

// Done is nil: see World.Context.
func (c *timed) Done() <-chan struct{} { return nil }

func (c *timed) Deadline() (time.Time, bool) {
	at, ok := c.Context.Deadline()
	if c.deadline.IsZero() || ok && at.Before(c.deadline) {
		return at, ok
	}
	return c.deadline, true
}

func (c *timed) Err() error {
	if c.err == nil {
		if err := c.Context.Err(); err != nil {
			c.err = err
		} else if !c.deadline.IsZero() && !c.w.now.Before(c.deadline) {
			c.err = context.DeadlineExceeded
		}
	}
	return c.err
}
