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
	// AllocationsLost: the allocations could not be read at all. Addresses may be held by pods that the State does
	// not name, so the kernel has to be asked who lives before an address is handed out.
	AllocationsLost bool
	// JournalLost: the journal could not be read; what the node holds has to be asked from EC2.
	JournalLost bool
	// SetAside has the new names of files that were moved or copied out of the way, for people to look at.
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
		notice.AllocationsLost = true
		notice.setAside(s.path, err)
		return nil
	}
	if len(problems) > 0 {
		notice.Problems = append(notice.Problems, problems...)
		// The next commit replaces the file; its evidence would be gone.
		if kept, err := keepCopy(s.path, raw); err != nil {
			notice.Problems = append(notice.Problems, err.Error())
		} else {
			notice.SetAside = append(notice.SetAside, kept)
		}
	}
	return allocations
}

func (s *Store) loadJournal(notice *Notice) Journal {
	raw, err := readBounded(s.journalPath, maxJournal)
	if errors.Is(err, fs.ErrNotExist) {
		return Journal{}
	}
	var journal Journal
	if err == nil {
		journal, err = decodeJournal(raw)
	}
	if err != nil {
		notice.JournalLost = true
		notice.setAside(s.journalPath, err)
		return Journal{}
	}
	return journal
}

func (n *Notice) setAside(path string, cause error) {
	n.Problems = append(n.Problems, fmt.Sprintf("%s: %v", path, cause))
	to, err := freeName(path)
	if err == nil {
		err = os.Rename(path, to)
	}
	if err != nil {
		n.Problems = append(n.Problems, fmt.Sprintf("set aside %s: %v", path, err))
		return
	}
	n.SetAside = append(n.SetAside, to)
}

func keepCopy(path string, raw []byte) (string, error) {
	to, err := freeName(path)
	if err != nil {
		return "", err
	}
	return to, os.WriteFile(to, raw, 0o600)
}

// freeName is the first of path.damaged-1 … path.damaged-9 that does not exist, or the last of them, so that a fault
// that comes back cannot fill the file system.
func freeName(path string) (string, error) {
	var name string
	for i := 1; i <= 9; i++ {
		name = fmt.Sprintf("%s.damaged-%d", path, i)
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
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
