// Package vtime is virtual time for thousands of nodes in one process: a queue of events, processes that wait on it,
// and a clock, contexts and waits that run on it. Everything happens on one goroutine's turn at a time, in an order
// that only the events' times and the order of their making decide, so that a simulation with the same seed gives
// the same result. Hours pass as fast as their events can be worked off.
//
// Nothing in it is safe for use by others than the world's own events and processes while the world runs.
package vtime

import (
	"container/heap"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"time"
)

// ErrClosed is what a process that still waits gets when its world ends.
var ErrClosed = errors.New("the simulation has ended")

// World has the time, what is to happen, and who waits.
type World struct {
	now     time.Time
	seq     uint64
	queue   events
	current *process // whose turn it is; nil: an event's
	live    map[*process]struct{}
	closed  bool
	rand    *rand.Rand
	// Events counts what has happened.
	Events uint64
}

// event is something to happen. Events at the same time happen in the order in which they were made.
type event struct {
	at    time.Time
	seq   uint64
	do    func()
	index int // in the queue; -1: not in it
}

// process is a function that can wait.
type process struct {
	next  func() (struct{}, bool)
	stop  func()
	yield func(struct{}) bool
}

// New makes a world at a time. The seed is that of Float64.
func New(start time.Time, seed uint64) *World {
	return &World{now: start, live: map[*process]struct{}{}, rand: rand.New(rand.NewPCG(seed, 0x5851f42d4c957f2d))}
}

// Now is the world's time.
func (w *World) Now() time.Time { return w.now }

// Float64 is a random number in [0, 1).
func (w *World) Float64() float64 { return w.rand.Float64() }

// At has do happen at a time, or now if that is past. It returns what Cancel takes.
func (w *World) At(at time.Time, do func()) *Event {
	if at.Before(w.now) {
		at = w.now
	}
	w.seq++
	e := &event{at: at, seq: w.seq, do: do}
	heap.Push(&w.queue, e)
	return (*Event)(e)
}

// After has do happen after a while.
func (w *World) After(d time.Duration, do func()) *Event { return w.At(w.now.Add(max(d, 0)), do) }

// Event is something that was to happen.
type Event event

// Cancel keeps an event from happening; false if it has happened or was cancelled before.
func (w *World) Cancel(x *Event) bool {
	e := (*event)(x)
	if e.index < 0 {
		return false
	}
	heap.Remove(&w.queue, e.index)
	return true
}

// Run lets everything happen up to and including a time, which is the world's time afterwards. It ends early, with the
// context's error, if ctx ends.
func (w *World) Run(ctx context.Context, until time.Time) error {
	for len(w.queue) > 0 && !w.queue[0].at.After(until) {
		// Looking at the context is dearer than most events.
		if w.Events++; w.Events%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		e := heap.Pop(&w.queue).(*event)
		w.now = e.at
		e.do()
	}
	w.now = until
	return nil
}

// Go starts a process: f, which may Sleep. Its first turn comes after what is under way.
func (w *World) Go(f func()) {
	p := &process{}
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		p.yield = yield
		f()
	})
	w.live[p] = struct{}{}
	w.After(0, func() { w.turn(p) })
}

// turn gives a process its turn, until it waits or ends.
func (w *World) turn(p *process) {
	before := w.current
	w.current = p
	_, more := p.next()
	w.current = before
	if !more {
		delete(w.live, p)
	}
}

// Sleep waits, in a process. It ends with the context's error when the context's deadline comes first, or when the
// context has ended meanwhile; a cancellation is noticed at the end of the wait.
func (w *World) Sleep(ctx context.Context, d time.Duration) error {
	if err := w.errOf(ctx); err != nil {
		return err
	}
	at := w.now.Add(max(d, 0))
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(at) {
		at = deadline
	}
	p := w.current
	if p == nil {
		panic("vtime: Sleep outside of a process")
	}
	w.At(at, func() { w.turn(p) })
	if !p.yield(struct{}{}) {
		return ErrClosed
	}
	return w.errOf(ctx)
}

func (w *World) errOf(ctx context.Context) error {
	if w.closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// A context of the standard library around one of ours knows the deadline, but not our time.
	if deadline, ok := ctx.Deadline(); ok && !w.now.Before(deadline) {
		return context.DeadlineExceeded
	}
	return nil
}

// Close ends the processes that wait. The world can only be read afterwards.
func (w *World) Close() {
	w.closed = true
	for p := range w.live {
		p.stop()
	}
	w.live, w.queue = nil, nil
}

// events is a heap by time, and then by age.
type events []*event

func (q events) Len() int { return len(q) }

func (q events) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}

func (q events) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push is heap.Interface's.
func (q *events) Push(x any) {
	e := x.(*event)
	e.index = len(*q)
	*q = append(*q, e)
}

// Pop is heap.Interface's.
func (q *events) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	e.index = -1
	return e
}
