package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

// On a file system that is full, or read-only, a commit says so and leaves what was there; when there is room again, the
// next one succeeds, without anybody doing anything.
func TestFileSystemThatTakesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		want error
		// spoil makes the file system at dir take nothing, and mend the reverse.
		spoil, mend func(t *testing.T, dir string)
	}{
		{"full", unix.ENOSPC, fill, func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "rubbish")); err != nil {
				t.Fatal(err)
			}
		}},
		{"read-only", unix.EROFS,
			func(t *testing.T, dir string) { remount(t, dir, unix.MS_RDONLY) }, func(t *testing.T, dir string) { remount(t, dir, 0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			m := &model{state: goldenState()}
			s := newStore(t, m)
			s.path, s.journalPath = filepath.Join(dir, "ipam.json"), filepath.Join(dir, "journal.json")
			run(t, s)
			if err := s.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			before, err := s.Load()
			if err != nil {
				t.Fatal(err)
			}
			tt.spoil(t, dir)
			for i := range 20 { // more than a page of them
				m.add(numbered(i))
			}
			for range 3 {
				if err := s.Commit(t.Context()); !errors.Is(err, tt.want) {
					t.Errorf("commit: %v, want %v", err, tt.want)
				}
			}
			if got, err := s.Load(); err != nil || !reflect.DeepEqual(got, before) {
				t.Errorf("what was there: %v, %+v", err, got)
			}
			for _, path := range []string{s.path, s.journalPath} {
				if _, err := os.Stat(path + ".tmp"); err == nil {
					t.Errorf("%s.tmp takes room", path)
				}
			}
			tt.mend(t, dir)
			if err := s.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			if got, err := s.Load(); err != nil || len(got.Allocations) != len(before.Allocations)+20 {
				t.Errorf("when there is room again: %v, %d allocations", err, len(got.Allocations))
			}
		})
	}
}

// fill writes a file as large as there is room.
func fill(t *testing.T, dir string) {
	f, err := os.Create(filepath.Join(dir, "rubbish"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func remount(t *testing.T, dir string, flags uintptr) {
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, "size=256k"); err != nil {
		t.Fatal(err)
	}
}
