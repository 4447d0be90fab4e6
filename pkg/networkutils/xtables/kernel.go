package xtables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers and sizes of the socket options (ip_tables.h, x_tables.h).
const (
	soReplace     = 64
	soAddCounters = 65
	soGetInfo     = 64
	soGetEntries  = 65

	tableNameSize  = 32
	infoSize       = 84
	entriesHead    = 40 // name, size, padding
	replaceHead    = 96
	countersHead   = 40
	maxTries       = 8
	lockPause      = 20 * time.Millisecond
	largestTable   = 64 << 20
	nativeWordSize = 8
)

// LockFile is the file that every user of the legacy backend locks while it changes a table.
const LockFile = "/run/xtables.lock"

// Options say what to remove, and where.
type Options struct {
	// Rules chooses rules, Chains user-defined chains. A chain goes with its rules, and only if no rule that stays jumps
	// to it.
	Rules  func(table string, r Rule) bool
	Chains func(table, chain string) bool
	// Lock is the lock file; LockFile if empty.
	Lock string
}

// Remove takes what the Options choose out of the IPv4 tables of the calling thread's network namespace and returns
// how many entries went (a chain is one for its name, one for its end and one for each of its rules). Tables that are not in use are not touched: asking for one would load it. The caller
// needs CAP_NET_ADMIN; ctx bounds the wait for the lock.
func Remove(ctx context.Context, o Options) (removed int, err error) {
	err = locked(ctx, o.Lock, func(fd int, name string) error {
		n, err := edit(fd, name, o)
		removed += n
		return err
	})
	return removed, err
}

// Chains lists the user-defined chains of one table, none if the table is not in use.
func Chains(ctx context.Context, name, lock string) (chains []string, err error) {
	err = locked(ctx, lock, func(fd int, n string) error {
		if n != name {
			return nil
		}
		t, err := read(fd, name)
		if err != nil {
			return err
		}
		for _, r := range t.rules[:len(t.rules)-1] {
			if r.head {
				chains = append(chains, r.Chain)
			}
		}
		return nil
	})
	return chains, err
}

// locked calls f for each table in use, while it holds the lock.
func locked(ctx context.Context, path string, f func(fd int, table string) error) error {
	names, err := tables()
	if err != nil || len(names) == 0 {
		return err
	}
	if nativeWordSize != unsafe.Sizeof(uintptr(0)) {
		return errors.New("xtables: tables are only understood on 64-bit machines")
	}
	unlock, err := lock(ctx, cmp.Or(path, LockFile))
	if err != nil {
		return err
	}
	defer unlock()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("xtables: open socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, name := range names {
		if err := f(fd, name); err != nil {
			return fmt.Errorf("xtables: table %s: %w", name, err)
		}
	}
	return nil
}

// tables lists the tables in use. None is no error: the backend may not be there at all.
func tables() ([]string, error) {
	text, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("xtables: %w", err)
	}
	names := strings.Fields(string(text))
	slices.Sort(names)
	return names, nil
}

func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("xtables: open lock: %w", err)
	}
	tick := time.NewTicker(lockPause)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("xtables: lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("xtables: %s is held by somebody else: %w", path, ctx.Err()), f.Close())
		case <-tick.C:
		}
	}
}

// edit rewrites one table, again if somebody who does not know the lock was faster.
func edit(fd int, name string, o Options) (removed int, err error) {
	for range maxTries {
		var old *table
		if old, err = read(fd, name); err != nil {
			return 0, err
		}
		next, kept := old.without(
			func(r Rule) bool { return o.Rules != nil && o.Rules(name, r) },
			func(chain string) bool { return o.Chains != nil && o.Chains(name, chain) })
		removed = len(old.rules) - len(next.rules)
		if removed == 0 {
			return 0, nil
		}
		if err = replace(fd, next, len(old.rules), kept); !errors.Is(err, unix.EAGAIN) {
			return removed, err
		}
	}
	return 0, err
}

// read reads a table, again if it changes meanwhile.
func read(fd int, name string) (t *table, err error) {
	for range maxTries {
		if t, err = readOnce(fd, name); !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return t, err
}

func readOnce(fd int, name string) (*table, error) {
	var info [infoSize]byte
	copy(info[:tableNameSize-1], name)
	if err := getsockopt(fd, soGetInfo, info[:]); err != nil {
		return nil, fmt.Errorf("get info: %w", err)
	}
	t := &table{name: name, validHooks: native.Uint32(info[tableNameSize:])}
	for h := range hooks {
		t.hookEntry[h] = native.Uint32(info[36+4*h:])
		t.underflow[h] = native.Uint32(info[56+4*h:])
	}
	size := native.Uint32(info[80:])
	if size > largestTable {
		return nil, fmt.Errorf("%d bytes", size)
	}
	buf := make([]byte, entriesHead+size)
	copy(buf[:tableNameSize-1], name)
	native.PutUint32(buf[tableNameSize:], size)
	// EAGAIN: the table has changed since.
	if err := getsockopt(fd, soGetEntries, buf); err != nil {
		return nil, fmt.Errorf("get entries: %w", err)
	}
	if err := t.parse(buf[entriesHead:]); err != nil {
		return nil, err
	}
	if n := native.Uint32(info[76:]); int(n) != len(t.rules) {
		return nil, fmt.Errorf("%w: %d entries, %d announced", errMalformed, len(t.rules), n)
	}
	return t, nil
}

// replace puts the table in place of one with oldCount entries, and gives the kept ones their counts back.
func replace(fd int, t *table, oldCount int, kept []int) error {
	counters := make([]byte, counterSize*max(oldCount, 1))
	buf := make([]byte, replaceHead, replaceHead+int(t.size()))
	copy(buf[:tableNameSize-1], t.name)
	native.PutUint32(buf[32:], t.validHooks)
	native.PutUint32(buf[36:], uint32(len(t.rules)))
	native.PutUint32(buf[40:], t.size())
	for h := range hooks {
		native.PutUint32(buf[44+4*h:], t.hookEntry[h])
		native.PutUint32(buf[64+4*h:], t.underflow[h])
	}
	native.PutUint32(buf[84:], uint32(oldCount))
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&counters[0])
	// The kernel writes the counts of the old table there.
	native.PutUint64(buf[88:], uint64(uintptr(unsafe.Pointer(&counters[0]))))
	for _, r := range t.rules {
		buf = append(buf, r.raw...)
		// The count of a new entry starts at 0; what follows adds the old one.
		clear(buf[len(buf)-len(r.raw)+countersAt:][:counterSize])
	}
	if err := setsockopt(fd, soReplace, buf); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	add := make([]byte, countersHead+counterSize*len(t.rules))
	copy(add[:tableNameSize-1], t.name)
	native.PutUint32(add[tableNameSize:], uint32(len(t.rules)))
	for i, old := range kept {
		copy(add[countersHead+counterSize*i:], counters[counterSize*old:][:counterSize])
	}
	// Counts that are lost because the table has changed again are no reason to fail.
	if err := setsockopt(fd, soAddCounters, add); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("restore counters: %w", err)
	}
	return nil
}

func getsockopt(fd, option int, buf []byte) error {
	size := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func setsockopt(fd, option int, buf []byte) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_IP, uintptr(option),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
