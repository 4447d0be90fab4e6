package imds

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fault is a rule by which requests go wrong. Of the conditions those that are empty hold for every request. It has one
// effect, except that Delay goes with Status.
type Fault struct {
	ID       string `json:"id"`
	Instance string `json:"instance,omitempty"`
	// Path is a glob (as of path.Match) for a path behind /latest/, and for all below it:
	// "meta-data/network/interfaces/macs/*/local-ipv4s", "meta-data/network", "api/token".
	Path string `json:"path,omitempty"`

	Delay  time.Duration `json:"delay,omitempty"`  // before the answer
	Status int           `json:"status,omitempty"` // an error instead of the answer: 404, 500 …
	Omit   bool          `json:"omit,omitempty"`   // the path is missing, from the listing above it too
	// Lag answers as it was this long ago. How things were is known from when the rule was added; of a change
	// before that, and of one that Changed did not announce, only that it had happened by the next request.
	Lag time.Duration `json:"lag,omitempty"`
	// Freeze answers as it was when the rule was added, or when the instance made its first request after that.
	Freeze bool `json:"freeze,omitempty"`

	Count int `json:"count,omitempty"` // how many requests it is good for; 0: for ever
	Hits  int `json:"hits"`            // how many requests it struck

	frozen map[string]tree // with Freeze: what each instance is shown
}

// faults are the rules, in the order in which they were added.
type faults struct {
	last  int
	rules []Fault
}

// AddFault adds a rule and returns its id; an empty ID is made up.
func (s *Server) AddFault(f Fault) (string, error) {
	if _, err := path.Match(f.Path, ""); err != nil {
		return "", fmt.Errorf("fault: path %q: %w", f.Path, err)
	}
	if f.Delay < 0 || f.Lag < 0 || f.Count < 0 {
		return "", errors.New("fault: negative delay, lag or count")
	}
	if f.Status != 0 && (f.Status < 400 || f.Status > 599) {
		return "", fmt.Errorf("fault: status %d is no error", f.Status)
	}
	effects := 0
	for _, set := range []bool{f.Delay > 0 || f.Status != 0, f.Omit, f.Lag > 0, f.Freeze} {
		if set {
			effects++
		}
	}
	if effects != 1 {
		return "", errors.New("fault: wants one of delay and status, omit, lag, freeze")
	}
	// Those that are known already are recorded before the rule holds.
	var trees map[string]tree
	if f.Freeze || f.Lag > 0 {
		trees = s.trees(f.Instance)
	}
	// People write paths as they see them.
	f.Path = strings.Trim(strings.TrimPrefix(strings.TrimPrefix(f.Path, "/"), "latest/"), "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults.last++
	f.ID = cmp.Or(f.ID, "imds-fault-"+strconv.Itoa(s.faults.last))
	f.Hits, f.frozen = 0, nil
	if f.Freeze {
		f.frozen = trees
	}
	s.faults.rules = append(s.faults.rules, f)
	now, lag := s.clock.Now(), s.faults.longestLag()
	for id, t := range trees {
		s.history.record(id, now, t, lag)
	}
	return f.ID, nil
}

// trees returns the metadata of an instance, or of all that have been heard of.
func (s *Server) trees(instanceID string) map[string]tree {
	ids := []string{instanceID}
	if instanceID == "" {
		s.mu.Lock()
		ids = slices.Collect(maps.Keys(s.history))
		s.mu.Unlock()
	}
	trees := map[string]tree{}
	for _, id := range ids {
		if t, ok := s.tree(id); ok {
			trees[id] = t
		}
	}
	return trees
}

// RemoveFault removes a rule; false if there is none of that id.
func (s *Server) RemoveFault(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.faults.rules)
	s.faults.rules = slices.DeleteFunc(s.faults.rules, func(f Fault) bool { return f.ID == id })
	return len(s.faults.rules) < before
}

// Faults returns the rules in the order in which they were added. One that is used up is gone.
func (s *Server) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults.rules)
}

// verdict is what the rules do to a request before its answer is looked up.
type verdict struct {
	delay  time.Duration
	status int
	hit    []string
}

// judge applies delays, which add up, and errors, of which the first counts.
func (s *Server) judge(instanceID, name string) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	var v verdict
	s.faults.each(instanceID, func(f *Fault) bool {
		if (f.Delay == 0 && f.Status == 0) || !covers(f.Path, name) {
			return false
		}
		v.delay += f.Delay
		v.status = cmp.Or(v.status, f.Status)
		v.hit = append(v.hit, f.ID)
		return true
	})
	return v
}

// lookUp reads a path from the instance's metadata: as it is, or as the rules have it.
func (s *Server) lookUp(instanceID string, current tree, name string) (body string, found bool, hit []string) {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history.record(instanceID, now, current, s.faults.longestLag())
	shown, stale := current, false
	s.faults.each(instanceID, func(f *Fault) bool {
		switch {
		case stale || !covers(f.Path, name):
			return false
		case f.Lag > 0:
			shown = s.history.at(instanceID, now.Add(-f.Lag), current)
		case f.Freeze:
			if _, ok := f.frozen[instanceID]; !ok {
				f.frozen[instanceID] = current
			}
			shown = f.frozen[instanceID]
		default:
			return false
		}
		stale = true
		hit = append(hit, f.ID)
		return true
	})
	body, found = shown.read(name)
	s.faults.each(instanceID, func(f *Fault) bool {
		if !f.Omit {
			return false
		}
		rest := shown.without(f.Path)
		if text, ok := rest.read(name); text != body || ok != found {
			shown, body, found = rest, text, ok
			hit = append(hit, f.ID)
			return true
		}
		return false
	})
	return body, found, hit
}

// each calls fn for every rule that holds for an instance, counts those that fn says struck, and drops what is used up.
func (f *faults) each(instanceID string, fn func(*Fault) bool) {
	kept := f.rules[:0:0]
	for _, rule := range f.rules {
		if (rule.Instance == "" || rule.Instance == instanceID) && fn(&rule) {
			rule.Hits++
		}
		if rule.Count == 0 || rule.Hits < rule.Count {
			kept = append(kept, rule)
		}
	}
	f.rules = kept
}

// longestLag is how far back the rules look.
func (f *faults) longestLag() time.Duration {
	var longest time.Duration
	for i := range f.rules {
		longest = max(longest, f.rules[i].Lag)
	}
	return longest
}
