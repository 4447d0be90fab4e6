package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Notice is the error of a Load that could not take everything over. It comes together with a State that can be
// worked with; nobody needs to give up because of it.
type Notice struct {
	// AllocationsLost: not all allocations could be read. Addresses may be held by pods that the State does not name,
	// so the kernel has to be asked who lives before an address is handed out.
	AllocationsLost bool
	// JournalLost: not all of the journal could be read; what the node holds has to be asked from EC2.
	JournalLost bool
	// SetAside has the names under which files that are not right are kept, for people to look at. They are in their
	// own place, too, until the next commit replaces them: a crash before that finds them again.
	SetAside []string
	// Problems say what was wrong, one sentence each.
	Problems []string
}

// Error joins the problems.
func (n *Notice) Error() string {
	s := "state not taken over in full: " + strings.Join(n.Problems, "; ")
	if len(n.SetAside) > 0 {
		s += " (kept: " + strings.Join(n.SetAside, ", ") + ")"
	}
	return s
}

// Load reads the state that the last run left. No file is an empty state. The error, if any, is a *Notice.
//
// The two files may be from two neighbouring commits, for the journal is written first: an address that was being
// released is then both held and cooling, and counts as held (its DEL was never answered and will come again).
func (s *Store) Load() (State, error) {
	var (
		state  State
		notice Notice
	)
	state.Allocations = s.loadAllocations(&notice)
	state.Journal = s.loadJournal(&notice)
	held := make(map[netip.Addr]bool, len(state.Allocations))
	for _, a := range state.Allocations {
		held[a.Address] = true
	}
	state.Journal.Cooling = slices.DeleteFunc(state.Journal.Cooling, func(c Cooling) bool { return held[c.Address] })
	if len(notice.Problems) > 0 {
		return state, &notice
	}
	return state, nil
}

func (s *Store) loadAllocations(notice *Notice) []Allocation {
	raw, err := readBounded(s.path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(s.journalPath); err == nil {
			notice.AllocationsLost = true
			notice.Problems = append(notice.Problems, s.path+" does not exist, although there is a journal")
		}
		return nil
	}
	var (
		allocations []Allocation
		problems    []string
	)
	if err == nil {
		allocations, problems, err = decodeFile(raw)
	}
	if err != nil {
		problems = append([]string{fmt.Sprintf("%s: %v", s.path, err)}, problems...)
	}
	if len(problems) > 0 {
		notice.AllocationsLost = true
		notice.Problems = append(notice.Problems, problems...)
		s.keepEvidence(s.path, notice)
	}
	return allocations
}

func (s *Store) loadJournal(notice *Notice) Journal {
	raw, err := readBounded(s.journalPath, maxJournal)
	if errors.Is(err, fs.ErrNotExist) {
		return Journal{}
	}
	var (
		journal  Journal
		problems []string
	)
	if err == nil {
		journal, problems, err = decodeJournal(raw)
	}
	if err != nil {
		problems = append(problems, fmt.Sprintf("%s: %v", s.journalPath, err))
	}
	if len(problems) > 0 {
		notice.JournalLost = true
		notice.Problems = append(notice.Problems, problems...)
		s.keepEvidence(s.journalPath, notice)
	}
	return journal
}

// keepEvidence sets a file aside that is not right, now or before it is replaced.
func (s *Store) keepEvidence(path string, notice *Notice) {
	s.damaged[path] = true
	kept, err := s.setAside(path)
	if err != nil {
		notice.Problems = append(notice.Problems, fmt.Sprintf("set aside %s: %v", path, err))
		return
	}
	notice.SetAside = append(notice.SetAside, kept)
}

// setAside gives a file a second name, the first of path.damaged-1 … path.damaged-9 that is not in use, or the last of
// them, so that a fault that comes back cannot fill the file system. It takes no room for data.
func (s *Store) setAside(path string) (string, error) {
	self, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	var name string
	for i := 1; i <= 9; i++ {
		name = fmt.Sprintf("%s.damaged-%d", path, i)
		info, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return "", err
		}
		if os.SameFile(self, info) {
			delete(s.damaged, path)
			return name, nil // an earlier start did it, and died before it wrote anything
		}
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.Link(path, name); err != nil {
		// No links on this file system, or a directory. Now a crash finds nothing in the file's place, which is told
		// from a first start by the journal.
		if renameErr := os.Rename(path, name); renameErr != nil {
			return "", errors.Join(err, renameErr)
		}
	}
	delete(s.damaged, path)
	return name, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// A file can grow while it is read, so its size is a hint and the limit holds anyway.
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	tooLarge := fmt.Errorf("larger than %d bytes", limit)
	if info.Size() > limit {
		return nil, tooLarge
	}
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, tooLarge
	}
	return raw, nil
}
