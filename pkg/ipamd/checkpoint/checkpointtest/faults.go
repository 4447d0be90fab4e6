// Package checkpointtest has what tests of a checkpoint's users need: files that a process dies over, and the other
// reader of ipam.json.
package checkpointtest

import (
	"errors"
	"os"
	"path/filepath"
)

// ErrDead is the error of everything that a process does after its death.
var ErrDead = errors.New("the process is dead")

// Faults are a Store's files, changed by a process that dies at a point of somebody's choice. Nothing is synced: the
// machine lives.
type Faults struct {
	// At is told of each point and says whether the process dies there.
	At func(point string) bool
	// Dead processes change nothing.
	Dead bool
	// Err, if set, is what every write ends in, half way through: a full or a read-only file system.
	Err error
}

func (f *Faults) passes(point, path string) bool {
	f.Dead = f.Dead || f.At(point+" "+filepath.Base(path))
	return !f.Dead
}

// Write has three points: before the file, when half of it is written, and when all of it is.
func (f *Faults) Write(path string, data []byte) error {
	if f.Dead || !f.passes("before the write of", path) {
		return ErrDead
	}
	if f.Err != nil {
		return errors.Join(f.Err, os.WriteFile(path, data[:len(data)/2], 0o600))
	}
	if !f.passes("half way through", path) {
		return errors.Join(ErrDead, os.WriteFile(path, data[:len(data)/2], 0o600))
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return err
	}
	if !f.passes("before the rename of", path) {
		return ErrDead
	}
	return nil
}

// Rename has a point after it.
func (f *Faults) Rename(from, to string) error {
	if f.Dead {
		return ErrDead
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if !f.passes("after the rename to", to) {
		return ErrDead
	}
	return nil
}

// SyncDir does nothing.
func (f *Faults) SyncDir(string) error {
	if f.Dead {
		return ErrDead
	}
	return nil
}
