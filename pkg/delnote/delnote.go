// Package delnote is how the CNI plugin tells ipamd of a DEL while ipamd is away. The DEL succeeds all the same, or no
// pod could leave the node; the note it leaves says which sandbox is gone, and ipamd releases its address when it is
// back. A note is kept for ipamd's absence, not for the machine's: it lies on the tmpfs that holds ipamd's state, and is
// not synced.
//
// There is one note per sandbox interface, a file whose name is a hash of the sandbox's key. It is replaced as a whole,
// so a reader sees all of it or nothing. Nobody locks: who may change what at the same time is said at each method.
//
// The package is linked into the plugin, which is executed once per pod: it imports nothing but the standard library.
package delnote

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Node is where the notes of a node are.
const Node Dir = "/var/run/aws-node/del-notes"

// Limits of what is kept and read. More notes than a node has pods say that nobody reads them.
const (
	maxNotes = 4096
	maxSize  = 4 << 10 // bytes of a note; names and ids of a pod take less than 1 KiB
)

// tempAge is when a file that was not finished is rubbish: no plugin lives this long.
const tempAge = 2 * time.Minute

const (
	version    = 1
	suffix     = ".json"
	tempPrefix = ".new-"
)

// Key names one interface of one sandbox, as ipamd's allocations do.
type Key struct {
	NetworkName string `json:"networkName"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// Note says that a sandbox interface is gone.
type Note struct {
	Key
	Namespace string
	Pod       string
	// Time is since when. An allocation that was asked for later is another one.
	Time time.Time
}

// noteJSON is a note's file.
type noteJSON struct {
	Version int `json:"version"`
	Key
	Namespace string `json:"namespace,omitempty"`
	Pod       string `json:"pod,omitempty"`
	Time      int64  `json:"time"` // Unix time, ns
}

// Dir is a directory of notes, which need not exist. The one above it must, for Write.
type Dir string

// ErrFull says that there are too many notes for another one.
var ErrFull = errors.New("too many notes")

// Write leaves a note, in the place of one about the same sandbox. Any number of processes may write at once.
func (d Dir) Write(n Note) error {
	if n.NetworkName == "" || n.ContainerID == "" || n.IfName == "" {
		return errors.New("the sandbox is not named in full")
	}
	text, err := json.Marshal(noteJSON{version, n.Key, n.Namespace, n.Pod, n.Time.UnixNano()})
	if err != nil {
		return err
	}
	if len(text) > maxSize {
		return fmt.Errorf("a note of %d bytes, at most %d are read", len(text), maxSize)
	}
	if err := os.Mkdir(string(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.room(); err != nil {
		return err
	}
	return d.replace(d.path(n.Key), text)
}

// room says ErrFull if the directory has no room. Writers that look at the same time may exceed the limit by their
// number, which is why it is only a limit against growth without end.
func (d Dir) room() error {
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxNotes)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(names) >= maxNotes {
		return fmt.Errorf("%s: %w", d, ErrFull)
	}
	return nil
}

func (d Dir) replace(path string, text []byte) error {
	temp, err := os.CreateTemp(string(d), tempPrefix+"*") // mode 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}

// Remove takes back what was noted about a sandbox, because it is being set up again. No note is no error.
func (d Dir) Remove(k Key) error { return gone(os.Remove(d.path(k))) }

// Done removes a note that was acted on. One that was written about the same sandbox since then stays; a writer at the
// very same moment may lose its note, and the address is then found by ipamd's own comparison with the kernel.
func (d Dir) Done(n Note) error {
	path := d.path(n.Key)
	now, err := read(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !now.Time.Equal(n.Time) {
		return nil
	}
	return gone(os.Remove(path))
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Read returns all notes by name, and one error for each file that is none or could not be read. What is no note is
// removed, for nobody could ever make use of it; so is what a writer did not finish, unless it may still be at it.
func (d Dir) Read(now time.Time) (notes []Note, problems []error) {
	entries, err := os.ReadDir(string(d)) // sorted by name
	if err := gone(err); err != nil {
		problems = append(problems, err)
	}
	for _, e := range entries {
		n, err := d.entry(e, now)
		switch {
		case err == nil:
			notes = append(notes, n)
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errUnfinished):
		case errors.Is(err, errNoNote):
			err = errors.Join(err, gone(os.Remove(filepath.Join(string(d), e.Name()))))
			fallthrough
		default:
			problems = append(problems, fmt.Errorf("%s: %w", e.Name(), err))
		}
	}
	return notes, problems
}

var (
	errNoNote     = errors.New("no note of a DEL")
	errUnfinished = errors.New("not finished")
)

func (d Dir) entry(e fs.DirEntry, now time.Time) (Note, error) {
	// Opening a FIFO could take for ever.
	if !e.Type().IsRegular() {
		return Note{}, fmt.Errorf("%w: no regular file (%s)", errNoNote, e.Type())
	}
	if strings.HasPrefix(e.Name(), tempPrefix) {
		info, err := e.Info()
		if err != nil {
			return Note{}, err
		}
		if now.Sub(info.ModTime()) < tempAge {
			return Note{}, errUnfinished
		}
		return Note{}, fmt.Errorf("%w: its writer did not finish it", errNoNote)
	}
	n, err := read(filepath.Join(string(d), e.Name()))
	if err == nil && n.file() != e.Name() {
		return Note{}, fmt.Errorf("%w: its name is not that of its sandbox", errNoNote)
	}
	return n, err
}

// read ends in errNoNote only if another try would end there, too.
func read(path string) (Note, error) {
	f, err := os.Open(path)
	if err != nil {
		return Note{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return Note{}, err
	}
	if len(text) > maxSize {
		return Note{}, fmt.Errorf("%w: larger than %d bytes", errNoNote, maxSize)
	}
	var file noteJSON
	if err := json.Unmarshal(text, &file); err != nil {
		return Note{}, fmt.Errorf("%w: %w", errNoNote, err)
	}
	if file.Version != version {
		return Note{}, fmt.Errorf("%w: version %d, want %d", errNoNote, file.Version, version)
	}
	return Note{Key: file.Key, Namespace: file.Namespace, Pod: file.Pod, Time: time.Unix(0, file.Time)}, nil
}

func (d Dir) path(k Key) string { return filepath.Join(string(d), k.file()) }

// file names a note by a hash: what a key's parts may look like is the runtime's affair. None of them has a NUL, for
// the ids come from the environment and CNI has rules for names of networks.
func (k Key) file() string {
	sum := sha256.Sum256([]byte(k.NetworkName + "\x00" + k.ContainerID + "\x00" + k.IfName))
	return hex.EncodeToString(sum[:16]) + suffix
}
