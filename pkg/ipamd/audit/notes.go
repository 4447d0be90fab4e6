package audit

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jonboulle/clockwork"
	"golang.org/x/sync/errgroup"

	"vpccni/pkg/delnote"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
)

// notesEvery is when notes are looked for, after the first time. A plugin whose patience ended while ipamd came up writes
// its note a few seconds later; one that found ipamd stopped, too busy to answer or without room on its disk, at any time.
// A look at an empty directory costs next to nothing.
const notesEvery = 10 * time.Second

// notesTimeout bounds one look. What it does not get done is done by the next one.
const notesTimeout = 2 * time.Second

// releases is how many notes are acted on at a time. Releases that come together share a commit.
const releases = 64

// Releaser takes back what a sandbox holds. The answer means that the release is durable.
type Releaser interface {
	Del(context.Context, ipamd.DelRequest) (ipamd.DelReply, error)
}

// NotesOptions are what Notes need.
type NotesOptions struct {
	Dir      delnote.Dir
	Releaser Releaser
	Clock    clockwork.Clock
	Log      *slog.Logger
}

// Notes releases what pods held whose DEL did not reach ipamd. It is not safe for concurrent use.
type Notes struct {
	NotesOptions
	// problems are those of the last look, not to be reported again.
	problems map[string]bool
}

// NewNotes returns Notes that have not been looked at.
func NewNotes(o NotesOptions) *Notes { return &Notes{NotesOptions: o} }

// Run follows a first Look: it looks again each notesEvery, until ctx ends.
func (n *Notes) Run(ctx context.Context) {
	for {
		timer := n.Clock.NewTimer(notesEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.Chan():
			n.Look(ctx)
		}
	}
}

// Look acts on all notes that are there. A note is removed when there is nothing left to do about it, so one that a
// crash or an error leaves behind is read again; its sandbox then holds nothing, or something newer.
func (n *Notes) Look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, notesTimeout)
	defer cancel()
	// A plugin takes its sandbox's note back before it asks for an address, but a look that is under way may have read
	// it by then. No note that is read now speaks of what is asked for from now on, not even if its time is to come
	// because the clock was set back.
	latest := n.Clock.Now()
	notes, problems := n.Dir.Read(latest)

	var released, failed atomic.Int64
	var group errgroup.Group
	group.SetLimit(releases)
	for _, note := range notes {
		gone := note.Time
		if gone.After(latest) {
			gone = latest
		}
		group.Go(func() error {
			held, err := n.release(ctx, note, gone)
			if held {
				released.Add(1)
			}
			if err != nil {
				failed.Add(1)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		n.Log.Error("notes of DELs without ipamd are left for later", "notes", failed.Load(), "error", err)
	}
	if count := released.Load(); count > 0 {
		n.Log.Info("addresses released of pods whose DEL found no ipamd", "addresses", count)
	}
	n.report(problems)
}

// release acts on one note: the sandbox is gone since then. It tells whether the sandbox held an address; an error
// leaves the note for the next look.
func (n *Notes) release(ctx context.Context, note delnote.Note, gone time.Time) (held bool, err error) {
	reply, err := n.Releaser.Del(ctx, ipamd.DelRequest{
		Sandbox:   ipamd.Sandbox{NetworkName: note.NetworkName, ContainerID: note.ContainerID, IfName: note.IfName},
		Namespace: note.Namespace, Pod: note.Pod, Gone: gone,
	})
	log := n.Log.With("container", note.ContainerID, "namespace", note.Namespace, "pod", note.Pod, "gone", gone)
	switch {
	case err == nil:
		log.Debug("released by a note", "address", reply.Address)
	case errors.Is(err, datastore.ErrUnknownPod):
		log.Debug("note of a sandbox that holds nothing, or was set up again")
	default:
		return false, err
	}
	return err == nil, n.Dir.Done(note)
}

// report logs what was not reported the last time.
func (n *Notes) report(problems []error) {
	known := n.problems
	n.problems = make(map[string]bool, len(problems))
	for _, p := range problems {
		text := p.Error()
		n.problems[text] = true
		if !known[text] {
			n.Log.Warn("notes of DELs without ipamd", "error", text)
		}
	}
}
