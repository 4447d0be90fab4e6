package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
)

// ErrClosed is the error of a Commit that comes after the Store's Run has ended.
var ErrClosed = errors.New("checkpoint: closed")

// Options are what a Store needs.
type Options struct {
	Path        string // ipam.json
	JournalPath string
	// Source returns the state to be made durable. It is called by the writer only, one call at a time, and what it
	// returns is not changed afterwards. Allocations are written in the order they come in.
	Source func() Snapshot
	Files  Files // nil: the operating system's
	Log    *slog.Logger
}

// Store writes the state, many callers' changes at once.
//
// The goroutine in Run is the only one that touches the files; mu guards the batch that it takes next.
type Store struct {
	path        string
	journalPath string
	source      func() Snapshot
	files       Files
	log         *slog.Logger

	wake chan struct{} // capacity 1

	mu     sync.Mutex
	next   *batch // callers of the next write; nil while there are none
	closed bool

	// Of the writer alone: how to encode, and what the files hold (nil: unknown).
	encoder       encoder
	journals      journalEncoder
	file, journal []byte
	journalBuf    []byte

	// damaged are files that could not be set aside when they were loaded. They are not replaced before that is done. Of Load and then of the writer, which start one after the other.
	damaged map[string]bool
}

// batch is one write and everybody who waits for it. err may be read once done is closed.
type batch struct {
	done chan struct{}
	err  error
}

// New returns a Store; Run makes it work.
func New(o Options) *Store {
	if o.Files == nil {
		o.Files = osFiles{}
	}
	return &Store{
		path:        o.Path,
		journalPath: o.JournalPath,
		source:      o.Source,
		files:       o.Files,
		log:         o.Log,
		wake:        make(chan struct{}, 1),
		damaged:     map[string]bool{},
	}
}

// Commit returns once a state that was taken from Source after the call is durable. Calls that come while a write is
// in flight share the next one. After an error the files hold the state before or, if only the last fsync failed,
// the new one.
func (s *Store) Commit(ctx context.Context) error {
	b, err := s.join()
	if err != nil {
		return err
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("wait for the state to be written: %w", context.Cause(ctx))
	}
}

func (s *Store) join() (*batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.next == nil {
		s.next = &batch{done: make(chan struct{})}
		select {
		case s.wake <- struct{}{}:
		default: // the writer has been told already
		}
	}
	return s.next, nil
}

// Run writes until ctx ends, then once more, so that what was changed without a Commit is kept too. Commits that come
// later get ErrClosed.
func (s *Store) Run(ctx context.Context) error {
	for {
		select {
		case <-s.wake:
			s.write(s.take(false))
		case <-ctx.Done():
			return s.write(s.take(true))
		}
	}
}

// take takes the batch before the state is taken, so that whoever is in it finds his change in the state.
func (s *Store) take(last bool) *batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.next
	s.next = nil
	s.closed = s.closed || last
	return b
}

func (s *Store) write(b *batch) error {
	err := s.save(s.source())
	if err != nil {
		s.log.Error("state not written", "error", err)
	}
	if b != nil {
		b.err = err
		close(b.done)
	}
	return err
}

// save makes state durable. The journal goes first: a crash between the two files then leaves, for a released
// address, a journal that has it cooling beside a file that still has it held, which Load reads as held. The other
// order would leave it neither held nor cooling, free to be handed out while the old pod's last packets are under
// way. An address that is newly held is not looked for in the journal, and an ENI is in the journal before any of its
// addresses is in the file.
func (s *Store) save(state Snapshot) error {
	s.journalBuf = s.journals.encode(s.journalBuf[:0], &state.Journal)
	if !bytes.Equal(s.journalBuf, s.journal) {
		if err := s.replace(s.journalPath, s.journalBuf); err != nil {
			s.journal = nil
			return err
		}
		s.journalBuf, s.journal = s.journal, s.journalBuf
	}
	file := s.encoder.encode(state.Allocations)
	if !bytes.Equal(file, s.file) {
		if err := s.replace(s.path, file); err != nil {
			s.file = nil
			return err
		}
	}
	s.file = file
	return nil
}

// replace puts data in the place of path, all or nothing, and durably.
func (s *Store) replace(path string, data []byte) error {
	if s.damaged[path] {
		if _, err := s.setAside(path); err != nil {
			return fmt.Errorf("set the damaged file aside: %w", err)
		}
	}
	// One writer, one name: a crash leaves at most one such file, and the next write uses it up.
	tmp := path + ".tmp"
	if err := s.files.Write(tmp, data); err != nil {
		return err
	}
	if err := s.files.Rename(tmp, path); err != nil {
		return err
	}
	return s.files.SyncDir(filepath.Dir(path))
}
