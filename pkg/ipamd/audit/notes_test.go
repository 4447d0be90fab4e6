package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/delnote"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
)

// ledger is who holds an address since when, with ipamd's promise about DELs of the past.
type ledger struct {
	mu       sync.Mutex
	since    map[string]time.Time
	released map[string]time.Time // when they went, as the DEL says
	fails    error                // of releases, which then have happened nevertheless
}

func newLedger(since time.Time, containers ...string) *ledger {
	l := &ledger{since: map[string]time.Time{}, released: map[string]time.Time{}}
	for _, c := range containers {
		l.since[c] = since
	}
	return l
}

func (l *ledger) Del(_ context.Context, req ipamd.DelRequest) (ipamd.DelReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, holds := l.since[req.ContainerID]
	if !holds || since.After(req.Gone) {
		return ipamd.DelReply{}, datastore.ErrUnknownPod
	}
	delete(l.since, req.ContainerID)
	l.released[req.ContainerID] = req.Gone
	return ipamd.DelReply{}, l.fails
}

func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fails = err
}

// notesRig has Notes on a directory, with what they log.
type notesRig struct {
	*testing.T
	*Notes
	*ledger
	dir delnote.Dir
	log *strings.Builder
}

func newNotesRig(t *testing.T, l *ledger) *notesRig {
	r := &notesRig{T: t, ledger: l, dir: delnote.Dir(filepath.Join(t.TempDir(), "notes")), log: &strings.Builder{}}
	r.restart()
	return r
}

func (r *notesRig) restart() {
	r.Notes = NewNotes(NotesOptions{Dir: r.dir, Releaser: r.ledger, Clock: clockwork.NewRealClock(),
		Log: slog.New(slog.NewTextHandler(r.log, nil))})
}

func (r *notesRig) gone(container string, at time.Time) {
	r.Helper()
	err := r.dir.Write(delnote.Note{Key: delnote.Key{NetworkName: "aws-cni", ContainerID: container, IfName: "eth0"}, Time: at})
	if err != nil {
		r.Fatal(err)
	}
}

func (r *notesRig) want(held, left int) {
	r.Helper()
	if len(r.since) != held {
		r.Errorf("held: %v, want %d", r.since, held)
	}
	if entries, err := os.ReadDir(string(r.dir)); len(entries) != left {
		r.Errorf("%d notes are left, want %d (%v)", len(entries), left, err)
	}
}

func TestNotesReleaseWhatIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		time.Sleep(time.Hour)
		l := newLedger(start, "live", "dead", "future")
		r := newNotesRig(t, l)
		r.Look(t.Context())
		r.want(3, 0)
		died := time.Now().Add(-time.Minute)
		r.gone("dead", died)
		r.gone("unknown", died)
		// The clock was set back since.
		r.gone("future", time.Now().Add(time.Hour))
		if err := os.WriteFile(filepath.Join(string(r.dir), "foreign"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		r.Look(t.Context())
		r.want(1, 0)
		if !l.released["dead"].Equal(died) {
			t.Errorf("cools since %s, want %s", l.released["dead"], died)
		}
		if !l.released["future"].Equal(time.Now()) {
			t.Errorf("cools since %s, want %s", l.released["future"], time.Now())
		}
		if log := r.log.String(); !strings.Contains(log, "addresses=2") || strings.Count(log, "level=WARN") != 1 {
			t.Error(log)
		}
		r.Look(t.Context())
		r.want(1, 0)
	})
}

func TestNoteIsOlderThanTheAllocation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		died := time.Now()
		time.Sleep(time.Second)
		r := newNotesRig(t, newLedger(time.Now(), "again"))
		time.Sleep(time.Second)
		r.gone("again", died)
		r.Look(t.Context())
		r.want(1, 0)
	})
}

// A crash or an error between the release and the removal of the note leaves both orders of events harmless.
func TestNoteOutlivesACrash(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]bool{"nothing since": false, "the sandbox was set up again": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newNotesRig(t, newLedger(time.Now(), "dead"))
				time.Sleep(time.Second)
				r.gone("dead", time.Now())
				r.fail(errors.New("killed"))
				r.Look(t.Context())
				r.want(0, 1) // released, and nobody knows whether it is durable
				r.restart()
				r.fail(nil)
				time.Sleep(time.Second)
				held := 0
				if again {
					r.since["dead"] = time.Now()
					held = 1
				}
				time.Sleep(time.Second)
				r.Look(t.Context())
				r.want(held, 0)
			})
		})
	}
}

func TestNotesAreLookedForAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const pods = 200
		l := newLedger(time.Now())
		for i := range pods {
			l.since[fmt.Sprint(i)] = time.Now()
		}
		r := newNotesRig(t, l)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.Notes.Run(ctx); close(done) }()
		at := func(after time.Duration, write func(), held int) {
			t.Helper()
			synctest.Wait()
			write()
			time.Sleep(after)
			synctest.Wait()
			r.want(held, 0)
		}
		at(notesEvery, func() {
			for i := range pods - 2 {
				r.gone(fmt.Sprint(i), time.Now())
			}
		}, 2)
		at(notesEvery, func() { r.gone(fmt.Sprint(pods-2), time.Now()) }, 1)
		at(notesEvery, func() { r.gone(fmt.Sprint(pods-1), time.Now()) }, 0)
		cancel()
		<-done
	})
}

func TestProblemsAreReportedOnce(t *testing.T) {
	t.Parallel()
	r := newNotesRig(t, newLedger(time.Now()))
	// It cannot be removed.
	if err := os.MkdirAll(filepath.Join(string(r.dir), "foreign", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		r.Look(t.Context())
	}
	if lines := slices.Collect(strings.Lines(r.log.String())); len(lines) != 1 {
		t.Errorf("logged %q", lines)
	}
}
