// Package hostlocal hands out addresses of one small range of the node and keeps them where, and as, the host-local IPAM
// plugin does: a directory for each network, a file for each address in use, named by the address. So a node's pods can pass
// from a chain that executes host-local to one that does not, and back. The directory is meant to be on a file system that
// does not survive the machine, so nothing is flushed to a disk.
//
// Everybody who changes the directory holds its lock (flock on the file "lock"); so does the real plugin.
package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/deadline"
)

const (
	lockFile  = "lock"
	lastFile  = "last_reserved_ip.0" // the first and only set of ranges
	lineBreak = "\r\n"
)

// maxFile bounds what is read of a file, in bytes: two names of CNI's have less.
const maxFile = 4096

// ErrFull says that every address of the range is in use.
var ErrFull = errors.New("no address of the range is free")

// Owner is who has an address: a sandbox, and the name of the interface that its runtime asked for.
type Owner struct{ Container, IfName string }

// Reservation is an address in use.
type Reservation struct {
	Addr  netip.Addr
	Owner Owner
	// Since is when it was reserved.
	Since time.Time
}

// Store is the directory of one network, locked. Its methods must not be called concurrently.
type Store struct {
	dir  string
	lock *os.File
}

// Open locks the directory of a network, which it makes if need be, and waits for that as long as ctx lasts. Close
// unlocks it.
func Open(ctx context.Context, dataDir, network string) (*Store, error) {
	dir := filepath.Join(dataDir, network)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return open(ctx, dir)
}

// OpenExisting is Open for who has nothing to add: the error is fs.ErrNotExist if there is no such directory.
func OpenExisting(ctx context.Context, dataDir, network string) (*Store, error) {
	dir := filepath.Join(dataDir, network)
	if _, err := os.Stat(dir); err != nil {
		return nil, err
	}
	return open(ctx, dir)
}

func open(ctx context.Context, dir string) (*Store, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { // left behind with its thread if ctx ends first: the process is about to
		for {
			if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
				locked <- err
				return
			}
		}
	}()
	select {
	case err := <-locked:
		if err == nil {
			err = deadline.Err(ctx)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		return &Store{dir: dir, lock: f}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s is locked by somebody else: %w", dir, ctx.Err())
	}
}

// Close unlocks the directory.
func (s *Store) Close() { _ = s.lock.Close() }

// Held lists the addresses in use, in order. A file without content is what is left of a writer that was killed while it
// had the lock: it goes.
func (s *Store) Held() ([]Reservation, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var list []Reservation
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // lock, last_reserved_ip.0, and whatever else is nobody's address
		}
		r, err := s.read(addr)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, err
		case r.Owner == Owner{}:
			if err := s.Release(addr); err != nil {
				return nil, err
			}
			continue
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Reservation) int { return a.Addr.Compare(b.Addr) })
	return list, nil
}

func (s *Store) read(addr netip.Addr) (Reservation, error) {
	f, err := os.Open(s.file(addr))
	if err != nil {
		return Reservation{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Reservation{}, err
	}
	text := make([]byte, maxFile)
	n, err := f.Read(text)
	if err != nil && !errors.Is(err, io.EOF) {
		return Reservation{}, err
	}
	return Reservation{Addr: addr, Owner: parseOwner(string(text[:n])), Since: info.ModTime()}, nil
}

// parseOwner reads a file's content. Those of old versions have no interface.
func parseOwner(text string) Owner {
	id, ifName, _ := strings.Cut(strings.TrimSpace(text), lineBreak)
	return Owner{Container: strings.TrimSpace(id), IfName: ifName}
}

func (s *Store) file(addr netip.Addr) string { return filepath.Join(s.dir, addr.String()) }

// Reserve gives the owner an address of the range: the one that its sandbox has already (there is one egress interface in
// a sandbox, and its ADD may be the second after one that was killed), or the first free one behind the last that
// anybody was given, so that an address rests as long as the range allows.
func (s *Store) Reserve(ctx context.Context, owner Owner, r Range) (netip.Addr, error) {
	held, err := s.Held()
	if err != nil {
		return netip.Addr{}, err
	}
	taken := make(map[netip.Addr]bool, len(held))
	for _, h := range held {
		taken[h.Addr] = true
		if h.Owner.Container == owner.Container && r.contains(h.Addr) {
			return h.Addr, nil
		}
	}
	addr, ok := r.next(s.last(), taken)
	if !ok {
		return netip.Addr{}, ErrFull
	}
	if err := deadline.Err(ctx); err != nil {
		return netip.Addr{}, err
	}
	f, err := os.OpenFile(s.file(addr), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return netip.Addr{}, err
	}
	_, err = f.WriteString(owner.Container + lineBreak + owner.IfName)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.WriteFile(filepath.Join(s.dir, lastFile), []byte(addr.String()), 0o600)
	}
	if err != nil {
		return netip.Addr{}, errors.Join(err, s.Release(addr))
	}
	return addr, nil
}

// last is the address that was given last; invalid if that is not known, and then any will do.
func (s *Store) last() netip.Addr {
	text, err := os.ReadFile(filepath.Join(s.dir, lastFile))
	if err != nil {
		return netip.Addr{}
	}
	addr, _ := netip.ParseAddr(string(text))
	return addr
}

// Release frees an address; it may be free already.
func (s *Store) Release(addr netip.Addr) error {
	if err := os.Remove(s.file(addr)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
