package checkpoint

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// loader loads made-up files in a directory of its own; each process that fuzzes has one.
type loader struct {
	dir   string
	store *Store
}

func newLoader(f *testing.F) *loader {
	dir := f.TempDir()
	if shm, err := os.MkdirTemp("/dev/shm", "fuzz-"); err == nil {
		f.Cleanup(func() { _ = os.RemoveAll(shm) })
		dir = shm
	}
	return &loader{dir: dir}
}

// load puts the two files in place and loads them. A nil one is not there.
func (l *loader) load(t *testing.T, file, journal []byte) (State, *Notice) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(l.dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	l.store = New(Options{Path: filepath.Join(l.dir, "ipam.json"), JournalPath: filepath.Join(l.dir, "journal.json"),
		Log: slog.New(slog.DiscardHandler)})
	for path, data := range map[string][]byte{l.store.path: file, l.store.journalPath: journal} {
		if data == nil {
			continue
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state, err := l.store.Load()
	var notice *Notice
	if err != nil && !errors.As(err, &notice) {
		t.Fatalf("no notice: %v", err)
	}
	if notice != nil && (len(notice.Problems) == 0 || !notice.AllocationsLost && !notice.JournalLost) {
		t.Errorf("a notice of nothing: %+v", notice)
	}
	return state, notice
}

// replaced writes what was loaded and checks that a file that was damaged is kept as it was, and that what was loaded is
// what the next start finds.
func (l *loader) replaced(t *testing.T, state State, damaged bool, path string, raw []byte) {
	if err := l.store.save(state.Snapshot()); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path + ".damaged-1"); (err == nil) != damaged || damaged && string(kept) != string(raw) {
		t.Errorf("damaged: %v; kept %q (%v)", damaged, kept, err)
	}
	again, err := l.store.Load()
	if err != nil || string(encodeFile(again.Allocations)) != string(encodeFile(state.Allocations)) ||
		string(appendJournal(nil, &again.Journal)) != string(appendJournal(nil, &state.Journal)) {
		t.Errorf("not stable: %v\ngot  %+v\nwant %+v", err, again, state)
	}
}

// FuzzLoadFile: whatever is in ipam.json, what can be read of it is loaded and the rest is told and kept.
func FuzzLoadFile(f *testing.F) {
	goldens, err := filepath.Glob("testdata/ipam*.json")
	if err != nil || len(goldens) == 0 {
		f.Fatal(err, goldens)
	}
	for _, name := range goldens {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(raw[:len(raw)*2/3])
	}
	f.Add([]byte(`{"version":"vpc-cni-ipam/1","allocations":[{"ipv4":"10.0.0.1"},{"ipv4":"10.0.0.1"},{"ipv6":"::ffff:10.0.0.1"},7]}{`))
	l := newLoader(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		state, notice := l.load(t, raw, nil)
		seen := map[netip.Addr]bool{}
		for _, a := range state.Allocations {
			if !a.Address.IsValid() || a.Address.Is4In6() || seen[a.Address] || a.Interfaces < 1 {
				t.Errorf("%+v", a)
			}
			seen[a.Address] = true
		}
		// What a plain reader finds is there, or it is told that something is not.
		var plain struct {
			Allocations []struct{ IPv4, IPv6 string }
		}
		if json.Unmarshal(raw, &plain) == nil && notice == nil && len(plain.Allocations) != len(state.Allocations) {
			t.Errorf("%d of %d allocations, without a notice", len(state.Allocations), len(plain.Allocations))
		}
		l.replaced(t, state, notice != nil, l.store.path, raw)
	})
}

// FuzzLoadJournal: the same for the journal; and a journal cannot do the allocations any harm.
func FuzzLoadJournal(f *testing.F) {
	raw, err := os.ReadFile("testdata/journal.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add([]byte(`{"version":"vpc-cni-journal/1","enis":[7,{"pool":["10.0.0.0/28",""]}],"cooling":[{"address":"x"}],"intents":[{"since":"?"}]}`))
	held := numbered(1)
	file := encodeFile([]Allocation{held})
	l := newLoader(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		state, notice := l.load(t, file, raw)
		if len(state.Allocations) != 1 || !reflect.DeepEqual(state.Allocations[0], held) || notice != nil && notice.AllocationsLost {
			t.Errorf("%+v, %+v", state.Allocations, notice)
		}
		for _, c := range state.Journal.Cooling {
			if !c.Address.IsValid() || c.Address == held.Address {
				t.Errorf("cooling: %+v", c)
			}
		}
		for _, e := range state.Journal.ENIs {
			for _, p := range e.Pool {
				if !p.IsValid() {
					t.Errorf("%+v", e)
				}
			}
		}
		var plain struct{ ENIs, Intents []json.RawMessage }
		if json.Unmarshal(raw, &plain) == nil && notice == nil &&
			(len(plain.ENIs) != len(state.Journal.ENIs) || len(plain.Intents) != len(state.Journal.Intents)) {
			t.Errorf("less than the file has, without a notice: %+v", state.Journal)
		}
		l.replaced(t, state, notice != nil, l.store.journalPath, raw)
	})
}
