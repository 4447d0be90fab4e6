package checkpoint

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Files is how a Store replaces its files. Tests of crashes and full disks bring their own.
type Files interface {
	// Write makes a file, in the place of what is there, and syncs it. After an error anything may be there.
	Write(path string, data []byte) error
	Rename(from, to string) error
	// SyncDir makes renames in a directory durable.
	SyncDir(path string) error
}

// osFiles is the operating system's Files.
type osFiles struct{}

func (osFiles) Write(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		// What is half written takes room that a full file system has better uses for.
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func (osFiles) Rename(from, to string) error { return os.Rename(from, to) }

// SyncDir does nothing on tmpfs, where the files live on a normal host.
func (osFiles) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
