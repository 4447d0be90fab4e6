package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock that somebody holds is tried again.
const lockPoll = 100 * time.Millisecond

// Lock makes this process the only one that works on the files, and makes their directory if need be. A predecessor
// that is still ending is waited for until ctx ends: two processes with one state would give one address to two pods.
// The kernel releases the lock of a process that dies.
func (s *Store) Lock(ctx context.Context) (release func(), err error) {
	path := s.path + ".lock"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			err := fmt.Errorf("%s is held by another process: %w", path, context.Cause(ctx))
			return nil, errors.Join(err, f.Close())
		}
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		timer.Reset(lockPoll)
	}
}
