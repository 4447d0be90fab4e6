package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func rangeOf(t *testing.T, subnet string) Range {
	t.Helper()
	r, err := NewRange(netip.MustParsePrefix(subnet), netip.Addr{}, netip.Addr{}, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func with(t *testing.T, dir string, f func(*Store) error) {
	t.Helper()
	s, err := Open(t.Context(), dir, "aws-cni")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := f(s); err != nil {
		t.Fatal(err)
	}
}

func reserve(t *testing.T, dir, container string, r Range) (addr netip.Addr) {
	t.Helper()
	with(t, dir, func(s *Store) (err error) {
		addr, err = s.Reserve(t.Context(), Owner{container, "eth0"}, r)
		return err
	})
	return addr
}

// TestWholeRange: every address but the gateway's is handed out once, in order, and then none; what is freed first is the
// next one, for the others are younger.
func TestWholeRange(t *testing.T) {
	t.Parallel()
	for subnet, want := range map[string]struct {
		n           int
		first, last string
	}{
		"fd00::ac:00/118":  {1022, "fd00::ac:2", "fd00::ac:3ff"},
		"169.254.172.0/22": {1021, "169.254.172.2", "169.254.175.254"},
	} {
		dir, r := t.TempDir(), rangeOf(t, subnet)
		var all []netip.Addr
		with(t, dir, func(s *Store) error {
			taken := map[netip.Addr]bool{}
			for last := (netip.Addr{}); ; { // as Reserve does, without reading a thousand files a thousand times
				addr, ok := r.next(last, taken)
				if !ok {
					break
				}
				taken[addr], last = true, addr
				all = append(all, addr)
				if err := os.WriteFile(s.file(addr), []byte("c"+addr.String()+"\r\neth0"), 0o600); err != nil {
					return err
				}
			}
			return os.WriteFile(filepath.Join(s.dir, lastFile), []byte(all[len(all)-1].String()), 0o600)
		})
		if len(all) != want.n || all[0].String() != want.first || all[want.n-1].String() != want.last {
			t.Errorf("%s: %d addresses from %s to %s", subnet, len(all), all[0], all[len(all)-1])
		}
		with(t, dir, func(s *Store) error {
			if addr, err := s.Reserve(t.Context(), Owner{"new", "eth0"}, r); !errors.Is(err, ErrFull) {
				t.Errorf("%s: %s %v of a full range", subnet, addr, err)
			}
			for _, i := range []int{700, 3} {
				if err := s.Release(all[i]); err != nil {
					return err
				}
			}
			return nil
		})
		if addr := reserve(t, dir, "new", r); addr != all[3] {
			t.Errorf("%s: %s was reused, want %s", subnet, addr, all[3])
		}
		if addr := reserve(t, dir, "newer", r); addr != all[700] {
			t.Errorf("%s: %s was reused, want %s", subnet, addr, all[700])
		}
	}
}

// TestReuseLate: an address that was freed rests until the range comes round.
func TestReuseLate(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), rangeOf(t, "169.254.172.0/28") // 13 addresses
	first := reserve(t, dir, "c0", r)
	for i := 1; i <= 13; i++ {
		with(t, dir, func(s *Store) error { return s.Release(first) })
		addr := reserve(t, dir, fmt.Sprint("c", i), r)
		if (addr == first) != (i == 13) {
			t.Fatalf("reservation %d got %s", i, addr)
		}
		if i < 13 {
			with(t, dir, func(s *Store) error { return s.Release(addr) })
		}
	}
}

func TestSameSandboxSameAddress(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), rangeOf(t, "fd00::ac:00/118")
	if a, b := reserve(t, dir, "c", r), reserve(t, dir, "c", r); a != b {
		t.Errorf("%s, then %s", a, b)
	}
	if a, b := reserve(t, dir, "c", r), reserve(t, dir, "d", r); a == b {
		t.Errorf("two sandboxes have %s", a)
	}
}

// TestFormat: byte for byte what host-local writes, and what it may have left.
func TestFormat(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), rangeOf(t, "fd00::ac:00/118")
	in := func(name string) string { return filepath.Join(dir, "aws-cni", name) }
	reserve(t, dir, "0a1b", r)
	for file, want := range map[string]string{"fd00::ac:2": "0a1b\r\neth0", lastFile: "fd00::ac:2", lockFile: ""} {
		text, err := os.ReadFile(in(file))
		if err != nil || string(text) != want {
			t.Errorf("%s: %q %v", file, text, err)
		}
	}
	for file, text := range map[string]string{
		"fd00::ac:3": "",                      // killed before its write
		"fd00::ac:4": "old\r\n",               // a version without interface names
		"fd00::ac:5": "other\r\nnet1",         //
		"notes":      "nothing to do with us", //
	} {
		if err := os.WriteFile(in(file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	with(t, dir, func(s *Store) error {
		held, err := s.Held()
		if err != nil {
			return err
		}
		var got []string
		for _, h := range held {
			got = append(got, fmt.Sprintf("%s=%s/%s", h.Addr, h.Owner.Container, h.Owner.IfName))
		}
		if fmt.Sprint(got) != "[fd00::ac:2=0a1b/eth0 fd00::ac:4=old/ fd00::ac:5=other/net1]" {
			t.Errorf("held: %s", got)
		}
		return nil
	})
	if _, err := os.Stat(in("fd00::ac:3")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file without content is there still: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	dir, r := t.TempDir(), rangeOf(t, "169.254.172.0/22")
	var (
		mu   sync.Mutex
		seen = map[netip.Addr]int{}
		wg   sync.WaitGroup
	)
	for i := range 32 {
		wg.Go(func() {
			for j := range 4 {
				s, err := Open(t.Context(), dir, "n")
				if err != nil {
					t.Error(err)
					return
				}
				addr, err := s.Reserve(t.Context(), Owner{fmt.Sprintf("c%d-%d", i, j), "eth0"}, r)
				s.Close()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				seen[addr]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 128 {
		t.Errorf("%d addresses for 128 sandboxes", len(seen))
	}
}

// TestLockIsBounded: a lock that somebody keeps costs an ADD its time, not more.
func TestLockIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	with(t, dir, func(*Store) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := Open(ctx, dir, "aws-cni"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a locked directory: %v", err)
		}
		return nil
	})
	if _, err := OpenExisting(t.Context(), dir, "never"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that nobody made: %v", err)
	}
}

func TestRange(t *testing.T) {
	t.Parallel()
	a := netip.MustParseAddr
	for _, bad := range []struct{ subnet, first, last string }{
		{"10.0.0.0/31", "", ""}, {"10.0.0.1/24", "", ""}, {"fd00::/127", "", ""},
		{"10.0.0.0/24", "10.0.1.1", ""}, {"10.0.0.0/24", "", "fd00::1"}, {"10.0.0.0/24", "10.0.0.9", "10.0.0.8"},
	} {
		var first, last netip.Addr
		if bad.first != "" {
			first = a(bad.first)
		}
		if bad.last != "" {
			last = a(bad.last)
		}
		if r, err := NewRange(netip.MustParsePrefix(bad.subnet), first, last, netip.Addr{}); err == nil {
			t.Errorf("%+v: %+v", bad, r)
		}
	}
	r, err := NewRange(netip.MustParsePrefix("10.0.0.0/24"), a("10.0.0.7"), a("10.0.0.9"), a("10.0.0.8"))
	if err != nil {
		t.Fatal(err)
	}
	taken := map[netip.Addr]bool{}
	for _, want := range []string{"10.0.0.7", "10.0.0.9"} {
		got, ok := r.next(netip.Addr{}, taken)
		if !ok || got != a(want) {
			t.Errorf("got %s, want %s", got, want)
		}
		taken[got] = true
	}
	if got, ok := r.next(a("10.0.0.9"), taken); ok {
		t.Errorf("got %s of a full range", got)
	}
}

func FuzzOwner(f *testing.F) {
	f.Add("0a1b\r\neth0")
	f.Add("0a1b")
	f.Add("\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		o := parseOwner(text)
		if o.Container != "" && parseOwner(o.Container+lineBreak+o.IfName).Container != o.Container {
			t.Errorf("%q: %+v", text, o)
		}
	})
}
