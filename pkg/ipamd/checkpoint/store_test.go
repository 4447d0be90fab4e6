package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// model is the owner of a state: what a Store's Source reads.
type model struct {
	mu    sync.Mutex
	state State
	taken atomic.Int64
}

func (m *model) source() Snapshot {
	m.taken.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	s := State{Allocations: append([]Allocation(nil), m.state.Allocations...), Journal: m.state.Journal}
	return s.Snapshot()
}

func (m *model) add(a Allocation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Allocations = append(m.state.Allocations, a)
}

func newStore(t testing.TB, m *model) *Store {
	dir := t.TempDir()
	return New(Options{
		Path:        filepath.Join(dir, "ipam.json"),
		JournalPath: filepath.Join(dir, "journal.json"),
		Source:      m.source,
		Log:         slog.New(slog.DiscardHandler),
	})
}

// run runs the store until the test ends or stop is called; stop waits and returns Run's error.
func run(t testing.TB, s *Store) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func numbered(i int) Allocation {
	return Allocation{
		NetworkName: "aws-cni",
		ContainerID: fmt.Sprintf("%064x", i),
		IfName:      "eth0",
		Address:     netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}),
		Time:        time.Unix(1660000000, int64(i)),
		Namespace:   "default",
		Pod:         fmt.Sprintf("web-7d9c5b6f-%05d", i),
		Interfaces:  1,
	}
}

func TestCommitAndLoad(t *testing.T) {
	t.Parallel()
	m := &model{state: goldenState()}
	s := newStore(t, m)
	stop := run(t, s)
	if err := s.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load()
	if err != nil || !reflect.DeepEqual(got, m.state) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, m.state)
	}
	for _, path := range []string{s.path, s.journalPath} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != 0o600 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
	}
	m.add(numbered(9))
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || len(got.Allocations) != 4 {
		t.Errorf("the end did not write what no Commit asked for: %v, %d allocations", err, len(got.Allocations))
	}
	if err := s.Commit(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("commit after the end: %v", err)
	}
}

func TestLoadNothing(t *testing.T) {
	t.Parallel()
	got, err := newStore(t, &model{}).Load()
	if err != nil || !reflect.DeepEqual(got, State{}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Every commit that has returned is in the file, whatever the others do.
func TestGroupCommit(t *testing.T) {
	t.Parallel()
	const callers, each = 32, 8
	m := &model{}
	s := newStore(t, m)
	run(t, s)
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				a := numbered(c*each + i)
				m.add(a)
				if err := s.Commit(t.Context()); err != nil {
					t.Error(err)
					return
				}
				raw, err := os.ReadFile(s.path)
				if err != nil || !strings.Contains(string(raw), a.ContainerID) {
					t.Errorf("commit returned before its state was written (%v)", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := m.taken.Load(); n > callers*each {
		t.Errorf("%d writes for %d commits", n, callers*each)
	}
}

// Callers that come while a write is in flight share the next one.
func TestCommitsShareOneWrite(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	var taken int
	s := New(Options{
		Path:        filepath.Join(t.TempDir(), "ipam.json"),
		JournalPath: filepath.Join(t.TempDir(), "journal.json"),
		Log:         slog.New(slog.DiscardHandler),
		Source: func() Snapshot {
			if taken++; taken == 1 {
				close(entered)
				<-release
			}
			return Snapshot{}
		},
	})
	stop := run(t, s)
	results := make(chan error, 11)
	first, err := s.join()
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	var later []*batch
	for range 10 {
		b, err := s.join()
		if err != nil {
			t.Fatal(err)
		}
		later = append(later, b)
	}
	close(release)
	for _, b := range append(later, first) {
		<-b.done
		results <- b.err
	}
	for range 11 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if taken != 3 { // the first, the ten, the end
		t.Errorf("state taken %d times", taken)
	}
}

func TestCommitGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	s := newStore(t, &model{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestWriteErrorReachesTheCallerAndHeals(t *testing.T) {
	t.Parallel()
	m := &model{state: goldenState()}
	s := newStore(t, m)
	run(t, s)
	if err := os.Mkdir(s.path+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context()); err == nil {
		t.Error("commit succeeded without writing")
	}
	if err := os.Remove(s.path + ".tmp"); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := s.Load(); err != nil || len(got.Allocations) != 3 {
		t.Errorf("%v, %+v", err, got)
	}
}

func TestDamagedFilesAreSetAside(t *testing.T) {
	t.Parallel()
	good := goldenState()
	for _, tt := range []struct {
		name          string
		file, journal string
		lost          Notice
		allocations   int
		enis          int
		intents       int // unreadable
	}{
		{name: "torn file", file: string(encodeFile(good.Allocations)[:100]), journal: string(appendJournal(nil, &good.Journal)),
			lost: Notice{AllocationsLost: true}, enis: 2},
		{name: "file of a version to come", file: `{"version":"vpc-cni-ipam/2"}`, lost: Notice{AllocationsLost: true}},
		{name: "torn journal", file: string(encodeFile(good.Allocations)), journal: `{"version":"vpc-c`,
			lost: Notice{JournalLost: true}, allocations: 3},
		{name: "journal of a version to come", file: string(encodeFile(good.Allocations)), journal: `{"version":"vpc-cni-journal/2"}`,
			lost: Notice{JournalLost: true}, allocations: 3},
		{name: "torn behind the first entry", file: string(encodeFile(good.Allocations)[:300]), lost: Notice{AllocationsLost: true}, allocations: 1},
		{name: "no file beside a journal", journal: string(appendJournal(nil, &good.Journal)), lost: Notice{AllocationsLost: true}, enis: 2},
		{name: "journal with members that are none", file: string(encodeFile(nil)), lost: Notice{JournalLost: true}, enis: 1, intents: 1,
			journal: `{"version":"vpc-cni-journal/1","enis":[{"id":"e"},{"id":7},{"pool":[""]}],"cooling":[{}],"intents":["x"]}`},
		{name: "both", file: "\x00\x00", journal: "\x00", lost: Notice{AllocationsLost: true, JournalLost: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, &model{})
			for path, data := range map[string]string{s.path: tt.file, s.journalPath: tt.journal} {
				if data == "" {
					continue
				}
				if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.Load()
			var notice *Notice
			if !errors.As(err, &notice) {
				t.Fatalf("error %v", err)
			}
			if notice.AllocationsLost != tt.lost.AllocationsLost || notice.JournalLost != tt.lost.JournalLost {
				t.Errorf("%+v", notice)
			}
			if len(got.Allocations) != tt.allocations || len(got.Journal.ENIs) != tt.enis {
				t.Errorf("%d allocations, %d ENIs", len(got.Allocations), len(got.Journal.ENIs))
			}
			if n := len(got.Journal.Intents); tt.intents > 0 && (n != tt.intents || got.Journal.Intents[0].Kind != IntentUnreadable) {
				t.Errorf("intents %+v", got.Journal.Intents)
			}
			for _, kept := range notice.SetAside {
				if _, err := os.Stat(kept); err != nil {
					t.Error(err)
				}
			}
			// A start that dies before it writes anything leaves the same to the next one.
			again, err := s.Load()
			if !reflect.DeepEqual(again, got) || err == nil || err.Error() != notice.Error() {
				t.Errorf("loaded again: %v", err)
			}
			if err := s.save(got.Snapshot()); err != nil {
				t.Fatal(err)
			}
			for path, want := range map[string]string{s.path: tt.file, s.journalPath: tt.journal} {
				damaged := path == s.path && tt.lost.AllocationsLost || path == s.journalPath && tt.lost.JournalLost
				raw, err := os.ReadFile(path + ".damaged-1")
				if kept := err == nil; kept != (damaged && want != "") || kept && string(raw) != want {
					t.Errorf("%s set aside: %v %q", path, err, raw)
				}
			}
			if again, err := s.Load(); err != nil || len(again.Allocations) != tt.allocations || len(again.Journal.ENIs) != tt.enis {
				t.Errorf("after a commit: %v, %+v", err, again)
			}
		})
	}
}

func TestFilesSetAsideAreBounded(t *testing.T) {
	t.Parallel()
	s := newStore(t, &model{})
	for range 20 {
		if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil {
			t.Fatal("no notice")
		}
	}
	entries, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil || len(entries) != 10 {
		t.Errorf("%d files, %v", len(entries), err)
	}
}

func TestFileTooLarge(t *testing.T) {
	t.Parallel()
	s := newStore(t, &model{})
	if err := os.WriteFile(s.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path, maxFile+1); err != nil {
		t.Fatal(err)
	}
	var notice *Notice
	if _, err := s.Load(); !errors.As(err, &notice) || !strings.Contains(notice.Error(), "larger than") {
		t.Errorf("%v", err)
	}
}

// A duplicate is dropped from the state, but the file that had it is kept for people to look at.
func TestEvidenceOfDuplicatesIsKept(t *testing.T) {
	t.Parallel()
	s := newStore(t, &model{})
	a, b := numbered(1), numbered(2)
	b.Address = a.Address
	raw := encodeFile([]Allocation{a, b})
	if err := os.WriteFile(s.path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load()
	var notice *Notice
	if !errors.As(err, &notice) || !notice.AllocationsLost || len(notice.SetAside) != 1 {
		t.Fatalf("%+v", err)
	}
	if len(got.Allocations) != 1 || got.Allocations[0].ContainerID != b.ContainerID {
		t.Errorf("%+v", got.Allocations)
	}
	if err := s.save(got.Snapshot()); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(notice.SetAside[0])
	if err != nil || string(kept) != string(raw) {
		t.Errorf("copy: %v", err)
	}
}

// A crash at any point of a save leaves one of the two states, or the new journal beside the old file; each of them
// is right for every kind of change.
func TestCrashAtEveryPointOfASave(t *testing.T) {
	t.Parallel()
	held := numbered(1)
	pool := HeldENI{ID: "eni-1", Pool: []netip.Prefix{netip.PrefixFrom(held.Address, 32)}}
	cooling := Cooling{Address: held.Address, Until: time.Unix(1660000030, 0)}
	type want struct{ held, cooling, pooled bool }
	for _, tt := range []struct {
		name          string
		before, after State
		between       want // journal of after, file of before
	}{
		{
			name:    "assign",
			before:  State{Journal: Journal{ENIs: []HeldENI{pool}}},
			after:   State{Journal: Journal{ENIs: []HeldENI{pool}}, Allocations: []Allocation{held}},
			between: want{pooled: true}, // the ADD was not answered
		},
		{
			name:    "release",
			before:  State{Journal: Journal{ENIs: []HeldENI{pool}}, Allocations: []Allocation{held}},
			after:   State{Journal: Journal{ENIs: []HeldENI{pool}, Cooling: []Cooling{cooling}}},
			between: want{held: true, pooled: true}, // the DEL was not answered
		},
		{
			name:    "a new ENI and its first pod in one group",
			after:   State{Journal: Journal{ENIs: []HeldENI{pool}}, Allocations: []Allocation{held}},
			between: want{pooled: true},
		},
		{
			name:    "last pod released and the ENI gone in one group",
			before:  State{Journal: Journal{ENIs: []HeldENI{pool}}, Allocations: []Allocation{held}},
			after:   State{},
			between: want{held: true}, // held, of no known ENI: kept, and blocks reuse
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			journalBefore, journalAfter := appendJournal(nil, &tt.before.Journal), appendJournal(nil, &tt.after.Journal)
			fileBefore, fileAfter := encodeFile(tt.before.Allocations), encodeFile(tt.after.Allocations)
			wantOf := func(s State) want {
				return want{len(s.Allocations) == 1, len(s.Journal.Cooling) == 1, len(s.Journal.ENIs) == 1}
			}
			for _, p := range []struct {
				point                          string
				journal, file, journalT, fileT []byte // T: the temporary file
				want                           want
			}{
				{"journal half written", journalBefore, fileBefore, journalAfter[:20], nil, wantOf(tt.before)},
				{"journal written, not renamed", journalBefore, fileBefore, journalAfter, nil, wantOf(tt.before)},
				{"journal renamed", journalAfter, fileBefore, nil, nil, tt.between},
				{"file half written", journalAfter, fileBefore, nil, fileAfter[:20], tt.between},
				{"file written, not renamed", journalAfter, fileBefore, nil, fileAfter, tt.between},
				{"file renamed", journalAfter, fileAfter, nil, nil, wantOf(tt.after)},
			} {
				s := newStore(t, &model{})
				for path, data := range map[string][]byte{
					s.journalPath: p.journal, s.path: p.file, s.journalPath + ".tmp": p.journalT, s.path + ".tmp": p.fileT,
				} {
					if data == nil {
						continue
					}
					if err := os.WriteFile(path, data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				got, err := s.Load()
				if err != nil || wantOf(got) != p.want {
					t.Errorf("%s: %v, %+v, want %+v", p.point, err, wantOf(got), p.want)
				}
			}
		})
	}
}

// The order that TestCrashAtEveryPointOfASave relies on: when the file cannot be written, the journal has been.
func TestJournalIsWrittenFirst(t *testing.T) {
	t.Parallel()
	s := newStore(t, &model{})
	if err := os.Mkdir(s.path+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.save(snapshotOf(goldenState())); err == nil {
		t.Fatal("saved")
	}
	if _, err := os.Stat(s.journalPath); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(s.journalPath+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.path + ".tmp"); err != nil {
		t.Fatal(err)
	}
	state := goldenState()
	state.Journal.InstanceID = "i-2"
	if err := s.save(state.Snapshot()); err == nil {
		t.Fatal("saved")
	}
	if _, err := os.Stat(s.path); err == nil {
		t.Error("the file was written although the journal was not")
	}
}

func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1000, 4000} {
		for _, callers := range []int{1, 32} {
			b.Run(fmt.Sprintf("allocations=%d/callers=%d", size, callers), func(b *testing.B) {
				m := &model{}
				for i := range size {
					m.state.Allocations = append(m.state.Allocations, numbered(i))
				}
				dir, err := os.MkdirTemp("/dev/shm", "checkpoint")
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { _ = os.RemoveAll(dir) })
				s := New(Options{Path: filepath.Join(dir, "ipam.json"), JournalPath: filepath.Join(dir, "j.json"),
					Source: m.source, Log: slog.New(slog.DiscardHandler)})
				run(b, s)
				var stamp atomic.Int64
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for c := range callers {
					wg.Go(func() {
						for i := c; i < b.N; i += callers {
							m.mu.Lock()
							m.state.Allocations[i%size].Time = time.Unix(1700000000, stamp.Add(1))
							m.mu.Unlock()
							if err := s.Commit(b.Context()); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}
