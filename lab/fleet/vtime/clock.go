package vtime

import (
	"context"
	"time"

	"github.com/jonboulle/clockwork"
)

// Clock is the world's time for code that takes a clockwork.Clock. Its channels are filled by the world's events, so
// nobody may wait for them in a turn of the world: processes wait with Sleep.
func (w *World) Clock() clockwork.Clock { return clock{w} }

type clock struct{ w *World }

func (c clock) Now() time.Time                         { return c.w.now }
func (c clock) Since(t time.Time) time.Duration        { return c.w.now.Sub(t) }
func (c clock) Until(t time.Time) time.Duration        { return t.Sub(c.w.now) }
func (c clock) Sleep(d time.Duration)                  { _ = c.w.Sleep(context.Background(), d) }
func (c clock) After(d time.Duration) <-chan time.Time { return c.NewTimer(d).Chan() }

func (c clock) NewTimer(d time.Duration) clockwork.Timer {
	ch := make(chan time.Time, 1)
	t := &timer{w: c.w, ch: ch}
	t.do = func() {
		select {
		case ch <- c.w.now:
		default:
		}
	}
	t.Reset(d)
	return t
}

func (c clock) AfterFunc(d time.Duration, f func()) clockwork.Timer {
	t := &timer{w: c.w, do: f}
	t.Reset(d)
	return t
}

func (c clock) NewTicker(d time.Duration) clockwork.Ticker {
	t := &ticker{timer: timer{w: c.w, ch: make(chan time.Time, 1)}, every: d}
	t.do = t.tick
	t.timer.Reset(d)
	return t
}

type timer struct {
	w     *World
	ch    chan time.Time
	do    func()
	event *Event
}

func (t *timer) Chan() <-chan time.Time { return t.ch }

func (t *timer) Reset(d time.Duration) bool {
	was := t.Stop()
	t.event = t.w.After(d, t.do)
	return was
}

func (t *timer) Stop() bool { return t.event != nil && t.w.Cancel(t.event) }

type ticker struct {
	timer
	every time.Duration
}

func (t *ticker) tick() {
	select {
	case t.ch <- t.w.now:
	default:
	}
	t.timer.Reset(t.every)
}

func (t *ticker) Reset(d time.Duration) {
	t.every = d
	t.timer.Reset(d)
}

func (t *ticker) Stop() { t.timer.Stop() }
