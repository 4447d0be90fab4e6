// Package program puts programs on disk so that they can be started right away.
package program

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// Write makes the executable file path out of what src gives, and the directories above it. A program that runs from
// the path goes on undisturbed with its old file.
//
// A file that any process holds open for writing cannot be executed (ETXTBSY). A process that is forked while this one
// writes inherits the descriptor until its own exec, so nothing is forked meanwhile.
func Write(path string, src io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	content, err := io.ReadAll(src)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	syscall.ForkLock.RLock()
	err = os.WriteFile(tmp, content, 0o755)
	syscall.ForkLock.RUnlock()
	// The umask may have taken bits away.
	if err := errors.Join(err, os.Chmod(tmp, 0o755), os.Rename(tmp, path)); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

// Copy makes the executable file to out of the file from. See Write.
func Copy(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	return Write(to, in)
}
