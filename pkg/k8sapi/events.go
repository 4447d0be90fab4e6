package k8sapi

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jonboulle/clockwork"
	"golang.org/x/time/rate"
)

// Bounds on events. Everything that goes over them is dropped and counted: events are for people, and must cost the
// API little even when every node of a cluster has something to say.
const (
	// eventQueue is how many events wait to be posted.
	eventQueue = 64
	// eventsKept is how many events are remembered, to count repetitions of them.
	eventsKept = 64
	// quiet is how long repetitions of an event are counted before the count is posted.
	quiet = 5 * time.Minute
	// eventLife is below the hour after which an API server forgets an event, and its count.
	eventLife = 50 * time.Minute
	// eventBurst and eventEvery bound what is posted: so many at once, then one each eventEvery.
	eventBurst = 20
	eventEvery = 30 * time.Second
	// eventTries is how often one is posted before it is given up.
	eventTries = 3
	// maxNote is the longest note, in bytes, that the API takes.
	maxNote = 1024
)

// Reference names the object that an event is about.
type Reference struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name,omitempty"`
	UID        string `json:"uid,omitempty"`
}

// Event is something for people to see. Events that are equal are repetitions of each other.
type Event struct {
	Regarding Reference
	Warning   bool
	Reason    string // CamelCase
	Action    string // what was done or tried; the reason if empty
	Note      string
}

// RecorderOptions are what a Recorder needs. Client and Controller are required.
type RecorderOptions struct {
	Client *Client
	// Controller and Instance say who reports: the component, and which one of it.
	Controller string
	Instance   string
	// Health, if set, is told nil when an event was posted and why when one was given up.
	Health func(error)
	Clock  clockwork.Clock
	Log    *slog.Logger
}

// Recorder posts events: repetitions as one, not too many, and none twice. Record may be called from anywhere.
type Recorder struct {
	o       RecorderOptions
	queue   chan Event
	limit   *rate.Limiter
	dropped atomic.Uint64

	mu    sync.Mutex // guards known
	known map[Event]*series
}

// series is an event with its repetitions.
type series struct {
	name   string // of the object, the same in every try: an answer that was lost makes no second event
	path   string // of the object; empty until it was posted
	first  time.Time
	last   time.Time
	posted time.Time // when the API heard of it last
	count  int
	queued bool
}

// NewRecorder returns a Recorder that posts once it runs.
func NewRecorder(o RecorderOptions) *Recorder {
	if o.Health == nil {
		o.Health = func(error) {}
	}
	return &Recorder{o: o, queue: make(chan Event, eventQueue), limit: rate.NewLimiter(rate.Every(eventEvery), eventBurst),
		known: map[Event]*series{}}
}

// Record takes an event. It never blocks, and never fails: an event for which there is no room is dropped.
func (r *Recorder) Record(e Event) {
	if e.Action == "" {
		e.Action = e.Reason
	}
	e.Note = cut(e.Note, maxNote)
	now := r.o.Clock.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.known[e]
	if s != nil && now.Sub(s.first) >= eventLife && !s.queued {
		delete(r.known, e)
		s = nil
	}
	if s == nil {
		r.makeRoom()
		s = &series{name: newName(e), first: now}
		r.known[e] = s
	}
	s.last = now
	s.count++
	if s.queued || s.path != "" && now.Sub(s.posted) < quiet {
		return
	}
	if !r.limit.AllowN(now, 1) {
		r.dropped.Add(1)
		return
	}
	select {
	case r.queue <- e:
		s.queued = true
	default:
		r.dropped.Add(1)
	}
}

// Dropped is how many events were given up: over the rate, over the queue, or not taken by the API.
func (r *Recorder) Dropped() uint64 { return r.dropped.Load() }

// makeRoom forgets the event that was quiet for longest; mu must be held.
func (r *Recorder) makeRoom() {
	if len(r.known) < eventsKept {
		return
	}
	var oldest Event
	var at *series
	for e, s := range r.known {
		if at == nil || s.last.Before(at.last) {
			oldest, at = e, s
		}
	}
	delete(r.known, oldest)
}

// Run posts events until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			r.post(ctx, e)
		}
	}
}

// post posts an event, or the number of its repetitions.
func (r *Recorder) post(ctx context.Context, e Event) {
	var err error
	for try := 1; try <= eventTries; try++ {
		if err = r.once(ctx, e); err == nil || IsStatus(err, http.StatusForbidden, http.StatusUnauthorized, http.StatusUnprocessableEntity) {
			break
		}
		if try < eventTries {
			select {
			case <-ctx.Done():
				return
			case <-r.o.Clock.After(pause(try)):
			}
		}
	}
	r.mu.Lock()
	if s := r.known[e]; s != nil {
		s.queued = false
	}
	r.mu.Unlock()
	if err != nil {
		r.dropped.Add(1)
		r.o.Log.Debug("event given up", "reason", e.Reason, "note", e.Note, "error", err)
	}
	r.o.Health(err)
}

// once makes one call.
func (r *Recorder) once(ctx context.Context, e Event) error {
	now := r.o.Clock.Now()
	r.mu.Lock()
	s := r.known[e]
	if s == nil { // forgotten for others since it was queued
		s = &series{name: newName(e), first: now, last: now, count: 1, queued: true}
		r.known[e] = s
	}
	name, path := s.name, s.path
	object := eventObject{
		APIVersion: "events.k8s.io/v1", Kind: "Event", EventTime: microTime(s.first), Regarding: e.Regarding, Type: "Normal",
		Reason: e.Reason, Action: cut(e.Action, 128), Note: e.Note,
		ReportingController: r.o.Controller, ReportingInstance: cut(r.o.Instance, 128),
	}
	if e.Warning {
		object.Type = "Warning"
	}
	if s.count > 1 {
		object.Series = &eventSeries{Count: s.count, LastObservedTime: microTime(s.last)}
	}
	r.mu.Unlock()

	err := error(&StatusError{Code: http.StatusNotFound})
	if path != "" {
		err = r.o.Client.call(ctx, request{method: http.MethodPatch, path: path, body: map[string]any{"series": object.Series}})
	}
	if IsStatus(err, http.StatusNotFound) {
		// Never posted, or forgotten by the API.
		namespace := e.Regarding.Namespace
		if namespace == "" {
			namespace = "default" // where those of objects without a namespace are
		}
		object.Metadata = objectMeta{Namespace: namespace, Name: name}
		in := "/apis/events.k8s.io/v1/namespaces/" + url.PathEscape(namespace) + "/events"
		path = in + "/" + url.PathEscape(object.Metadata.Name)
		err = r.o.Client.call(ctx, request{method: http.MethodPost, path: in, body: object})
		if IsStatus(err, http.StatusConflict) {
			err = nil // an earlier try, whose answer did not come
		}
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.path, s.posted = path, now
	return nil
}

// newName is a name that no other event has.
func newName(e Event) string { return fmt.Sprintf("%s.%016x", e.Regarding.Name, rand.Uint64()) }

// eventObject is an event as events.k8s.io/v1 has it.
type eventObject struct {
	APIVersion          string       `json:"apiVersion"`
	Kind                string       `json:"kind"`
	Metadata            objectMeta   `json:"metadata"`
	EventTime           string       `json:"eventTime"`
	Series              *eventSeries `json:"series,omitempty"`
	ReportingController string       `json:"reportingController"`
	ReportingInstance   string       `json:"reportingInstance"`
	Action              string       `json:"action"`
	Reason              string       `json:"reason"`
	Regarding           Reference    `json:"regarding"`
	Note                string       `json:"note"`
	Type                string       `json:"type"`
}

type eventSeries struct {
	Count            int    `json:"count"`
	LastObservedTime string `json:"lastObservedTime"`
}

// microTime is a time as Kubernetes' MicroTime is written.
func microTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }

// cut shortens a text to so many bytes, at a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
