package imds

import (
	"maps"
	"time"
)

// maxStates bounds what is remembered of one instance.
const maxStates = 1024

// state is the metadata of an instance from a time on.
type state struct {
	since time.Time
	tree  tree
}

// history has the states of each instance that has been heard of, the oldest first.
type history map[string][]state

// record adds a state if it is a new one, and forgets those that are too old for any lag to show.
func (h history) record(instanceID string, now time.Time, t tree, longestLag time.Duration) {
	states := h[instanceID]
	if longestLag == 0 {
		h[instanceID] = nil // heard of
		return
	}
	if n := len(states); n == 0 || !sameButForClock(states[n-1].tree, t) {
		states = append(states, state{now, t})
	}
	for len(states) > 1 && (len(states) > maxStates || now.Sub(states[1].since) > longestLag) {
		states = states[1:]
	}
	h[instanceID] = states
}

// at returns the state of an instance at a time, or the oldest that is remembered.
func (h history) at(instanceID string, when time.Time, current tree) tree {
	states := h[instanceID]
	if len(states) == 0 {
		return current
	}
	shown := states[0]
	for _, s := range states {
		if s.since.After(when) {
			break
		}
		shown = s
	}
	return shown.tree
}

// sameButForClock compares trees without the documents that have the time of the request in them.
func sameButForClock(a, b tree) bool {
	const clocked = "meta-data/iam"
	return maps.Equal(a.without(clocked), b.without(clocked))
}

// Changed announces that an instance's metadata may have changed just now, so that a lag can be counted from here and
// not from the next request. It costs nothing while no rule needs it.
func (s *Server) Changed(instanceID string) {
	s.mu.Lock()
	needed := s.faults.longestLag() > 0
	s.mu.Unlock()
	if !needed {
		return
	}
	current, ok := s.tree(instanceID)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.record(instanceID, s.clock.Now(), current, s.faults.longestLag())
}
