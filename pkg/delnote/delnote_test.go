package delnote

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var t0 = time.Unix(1_800_000_000, 123456789)

func note(container string) Note {
	return Note{Key: Key{NetworkName: "aws-cni", ContainerID: container, IfName: "eth0"}, Namespace: "default", Pod: "web-0", Time: t0}
}

func dir(t *testing.T) Dir { return Dir(filepath.Join(t.TempDir(), "notes")) }

func (d Dir) mustWrite(t *testing.T, n Note) {
	t.Helper()
	if err := d.Write(n); err != nil {
		t.Fatal(err)
	}
}

// wantRead compares what is read with the containers of the notes wanted, in any order.
func (d Dir) wantRead(t *testing.T, now time.Time, containers ...string) []error {
	t.Helper()
	notes, problems := d.Read(now)
	got := map[string]bool{}
	for _, n := range notes {
		got[n.ContainerID] = true
	}
	if len(notes) != len(containers) {
		t.Errorf("read %v, want %q", notes, containers)
	}
	for _, c := range containers {
		if !got[c] {
			t.Errorf("no note of %s", c)
		}
	}
	return problems
}

func (d Dir) files(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(string(d))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestNoteIsKeptUntilItIsDone(t *testing.T) {
	t.Parallel()
	d := dir(t)
	if problems := d.wantRead(t, t0); problems != nil {
		t.Errorf("no directory: %v", problems)
	}
	if err := errors.Join(d.Remove(note("a").Key), d.Done(note("a"))); err != nil {
		t.Error(err)
	}
	d.mustWrite(t, note("a"))
	d.mustWrite(t, note("a"))
	d.mustWrite(t, note("b"))
	for path, want := range map[string]fs.FileMode{string(d): fs.ModeDir | 0o700, d.path(note("a").Key): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	notes, problems := d.Read(t0)
	if len(notes) != 2 || problems != nil {
		t.Fatalf("read %v, %v", notes, problems)
	}
	for _, n := range notes {
		if want := note(n.ContainerID); n.Key != want.Key || n.Namespace != want.Namespace || n.Pod != want.Pod || !n.Time.Equal(t0) {
			t.Errorf("read %+v, want %+v", n, want)
		}
	}
	// Reading takes nothing away.
	if err := d.Done(note("a")); err != nil {
		t.Error(err)
	}
	d.wantRead(t, t0, "b")
	if err := d.Remove(note("b").Key); err != nil {
		t.Error(err)
	}
	if left := d.files(t); left != nil {
		t.Errorf("left: %q", left)
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	d := dir(t)
	d.mustWrite(t, note("a"))
	const name = "6b53f9a23ffda01cb9149646cf817a85.json"
	const want = `{"version":1,"networkName":"aws-cni","containerID":"a","ifName":"eth0","namespace":"default","pod":"web-0","time":1800000000123456789}`
	text, err := os.ReadFile(filepath.Join(string(d), d.files(t)[0]))
	if got := string(text); err != nil || got != want || d.files(t)[0] != name {
		t.Errorf("%s is\n%s\nwant %s\n%s", d.files(t)[0], got, name, want)
	}
}

func TestKeysDoNotCollide(t *testing.T) {
	t.Parallel()
	names := map[string]Key{}
	for _, k := range []Key{{"a", "b", "c"}, {"ab", "c", ""}, {"a", "bc", ""}, {"c", "b", "a"}, {"a", "../../b", "c"}} {
		name := k.file()
		if other, twice := names[name]; twice || strings.ContainsRune(name, '/') {
			t.Errorf("%v and %v: %s", k, other, name)
		}
		names[name] = k
	}
}

func TestDoneSparesANewerNote(t *testing.T) {
	t.Parallel()
	d := dir(t)
	newer := note("a")
	newer.Time = t0.Add(time.Second)
	d.mustWrite(t, newer)
	if err := d.Done(note("a")); err != nil {
		t.Error(err)
	}
	d.wantRead(t, t0, "a")
}

func TestWhatIsNoNoteIsRemovedAndReported(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile(func() string { d := dir(t); d.mustWrite(t, note("a")); return d.path(note("a").Key) }())
	if err != nil {
		t.Fatal(err)
	}
	name := note("a").file()
	write := func(name, text string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	}
	for title, tt := range map[string]struct {
		make func(dir string) error
		want string
		stay bool
	}{
		"torn":              {make: write(name, string(good[:len(good)/2])), want: "unexpected end of JSON"},
		"empty":             {make: write(name, ""), want: "unexpected end of JSON"},
		"zeros":             {make: write(name, strings.Repeat("\x00", 200)), want: "invalid character"},
		"too large":         {make: write(name, strings.Repeat(" ", maxSize)+string(good)), want: "larger than"},
		"of another format": {make: write(name, strings.Replace(string(good), `:1,`, `:2,`, 1)), want: "version 2"},
		"of another name":   {make: write("0"+name, string(good)), want: "its name"},
		"foreign":           {make: write("README", "hello"), want: "invalid character"},
		"a FIFO":            {make: func(dir string) error { return unix.Mkfifo(filepath.Join(dir, name), 0o600) }, want: "no regular file"},
		"a link":            {make: func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, name)) }, want: "no regular file"},
		"a directory":       {make: func(dir string) error { return os.MkdirAll(filepath.Join(dir, name, "full"), 0o700) }, want: "no regular file", stay: true},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			d := dir(t)
			d.mustWrite(t, note("b"))
			if err := tt.make(string(d)); err != nil {
				t.Fatal(err)
			}
			problems := d.wantRead(t, t0, "b")
			if len(problems) != 1 || !strings.Contains(problems[0].Error(), tt.want) {
				t.Errorf("problems: %v, want %q", problems, tt.want)
			}
			if again := d.wantRead(t, t0, "b"); (len(again) == 1) != tt.stay {
				t.Errorf("problems of the next reading: %v", again)
			}
		})
	}
}

func TestUnfinishedFilesGoWhenTheyAreOld(t *testing.T) {
	t.Parallel()
	d := dir(t)
	d.mustWrite(t, note("a"))
	temp := filepath.Join(string(d), tempPrefix+"1")
	if err := os.WriteFile(temp, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(temp)
	if err != nil {
		t.Fatal(err)
	}
	if problems := d.wantRead(t, info.ModTime().Add(tempAge-1), "a"); problems != nil {
		t.Error(problems)
	}
	if problems := d.wantRead(t, info.ModTime().Add(tempAge), "a"); len(problems) != 1 {
		t.Errorf("problems: %v", problems)
	}
	if left := d.files(t); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

func TestNotesAreBounded(t *testing.T) {
	t.Parallel()
	d := dir(t)
	d.mustWrite(t, note("a"))
	for i := range maxNotes - 1 {
		if err := os.WriteFile(filepath.Join(string(d), fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Write(note("b")); !errors.Is(err, ErrFull) {
		t.Errorf("one too many: %v", err)
	}
	if _, problems := d.Read(t0); len(problems) != maxNotes-1 {
		t.Errorf("%d problems", len(problems))
	}
	d.mustWrite(t, note("b"))

	large := note("c")
	large.Pod = strings.Repeat("x", maxSize)
	if err := d.Write(large); err == nil {
		t.Error("a note was written that nobody reads")
	}
	if err := d.Write(Note{Key: Key{NetworkName: "aws-cni", ContainerID: "c"}}); err == nil {
		t.Error("a note was written of a sandbox without an interface")
	}
	d.wantRead(t, t0, "a", "b")
}

func TestWriteFails(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	if err := Dir(filepath.Join(parent, "gone", "notes")).Write(note("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory above: %v", err)
	}
	file := filepath.Join(parent, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Dir(file).Write(note("a")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("into a file: %v", err)
	}
	if _, problems := Dir(file).Read(t0); len(problems) != 1 {
		t.Errorf("problems: %v", problems)
	}
	// What stands in the place of a note cannot be replaced; nothing unfinished is left.
	d := Dir(filepath.Join(parent, "notes"))
	if err := os.MkdirAll(d.path(note("a").Key), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(note("a")); err == nil {
		t.Error("a directory was replaced")
	}
	if left := d.files(t); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

func TestFullFileSystem(t *testing.T) {
	t.Parallel()
	for what, option := range map[string]string{"no block": "size=4096", "no inode": "nr_inodes=3"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			if err := unix.Mount("tmpfs", parent, "tmpfs", 0, option); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(parent, unix.MNT_DETACH) })
			d := Dir(filepath.Join(parent, "notes"))
			d.mustWrite(t, note("a"))
			if err := d.Write(note("b")); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("got %v", err)
			}
			if left := d.files(t); len(left) != 1 {
				t.Errorf("left: %q", left)
			}
			d.wantRead(t, t0, "a")
		})
	}
}

func TestWritersAndReadersAtOnce(t *testing.T) {
	t.Parallel()
	d := dir(t)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 20 {
				if err := d.Write(note(fmt.Sprint("c", i/4))); err != nil {
					t.Error(err)
				}
				if _, problems := d.Read(time.Now()); problems != nil {
					t.Error(problems)
				}
			}
		})
	}
	wg.Wait()
	d.wantRead(t, t0, "c0", "c1", "c2", "c3")
}
