package kubeapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// watchTimeout is how long a watch lasts that does not say.
const watchTimeout = 30 * time.Minute

// selector picks objects by the values of fields and labels: equal, unequal, or, for labels, not there at all.
type selector struct {
	fields, labels []term
}

// term is a condition: what is at key is value, or is not (not). Without a value the label must not be there.
type term struct {
	key, value string
	not, none  bool
}

func selectorOf(q url.Values) (sel selector, err error) {
	read := func(name string) (terms []term) {
		for text := range strings.SplitSeq(q.Get(name), ",") {
			if text == "" {
				continue
			}
			t := term{key: text}
			if k, v, ok := strings.Cut(text, "!="); ok {
				t = term{key: k, value: v, not: true}
			} else if k, v, ok := strings.Cut(text, "="); ok {
				t = term{key: k, value: strings.TrimPrefix(v, "=")}
			} else if k, ok := strings.CutPrefix(text, "!"); ok && name == "labelSelector" {
				t = term{key: k, none: true}
			}
			if t == (term{key: text}) || strings.ContainsAny(t.key, "! (") {
				err = fmt.Errorf("the lab takes %s of the forms a=b, a!=b and, for labels, !a, not %q", name, text)
			}
			terms = append(terms, t)
		}
		return terms
	}
	sel = selector{read("fieldSelector"), read("labelSelector")}
	return sel, err
}

func (t term) holds(have string, there bool) bool {
	if t.none {
		return !there
	}
	return (have == t.value) != t.not
}

func (s selector) takes(o Object) bool {
	for _, t := range s.fields {
		at := any(o)
		for part := range strings.SplitSeq(t.key, ".") {
			parent, _ := at.(map[string]any)
			at = parent[part]
		}
		if have, ok := at.(string); !t.holds(have, ok) {
			return false
		}
	}
	labels, _ := meta(o)["labels"].(map[string]any)
	for _, t := range s.labels {
		have, there := labels[t.key].(string)
		if !t.holds(have, there) {
			return false
		}
	}
	return true
}

// watchEvent is a line of a watch.
type watchEvent struct {
	Type   string `json:"type"`
	Object any    `json:"object"`
}

// seen is what a change looks like to a watch; false if it does not concern it.
func (s selector) seen(c change) (e watchEvent, ok bool) {
	before, after := c.before != nil && s.takes(c.before), c.after != nil && s.takes(c.after)
	switch {
	case after && !before:
		return watchEvent{"ADDED", c.after}, true
	case after:
		return watchEvent{"MODIFIED", c.after}, true
	case before:
		last := clone(c.before)
		meta(last)["resourceVersion"] = strconv.FormatUint(c.version, 10)
		return watchEvent{"DELETED", last}, true
	}
	return watchEvent{}, false
}

// bookmark tells a watch how far it has come.
func bookmark(r Resource, version uint64) watchEvent {
	return watchEvent{"BOOKMARK", Object{"apiVersion": r.apiVersion(), "kind": r.Kind,
		"metadata": Object{"resourceVersion": strconv.FormatUint(version, 10)}}}
}

// watch streams changes until the client goes, its time is up, or CutWatches.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, t target) {
	q := r.URL.Query()
	sel, err := selectorOf(q)
	if err != nil {
		fail(w, failure(http.StatusBadRequest, "BadRequest", err.Error()))
		return
	}
	lasts := watchTimeout
	if n, err := strconv.Atoi(q.Get("timeoutSeconds")); err == nil && n > 0 {
		lasts = time.Duration(n) * time.Second
	}
	end := time.NewTimer(lasts) // a matter of connections, not of simulated time
	defer end.Stop()

	s.mu.Lock()
	at, cuts := s.version, s.cuts
	var initial []Object
	if v, err := strconv.ParseUint(q.Get("resourceVersion"), 10, 64); err == nil && v > 0 {
		at = v
	} else {
		initial = s.list(t.Resource, t.namespace, sel)
	}
	s.mu.Unlock()

	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := json.NewEncoder(w)
	flush := http.NewResponseController(w).Flush
	for _, o := range initial {
		if out.Encode(watchEvent{"ADDED", o}) != nil {
			return
		}
	}
	for {
		events, next, gone, cut, changed := s.since(t, sel, at, cuts)
		if cut {
			return
		}
		if gone {
			_ = out.Encode(watchEvent{"ERROR", failure(http.StatusGone, "Expired", "too old resource version")})
			_ = flush()
			return
		}
		for _, e := range events {
			if out.Encode(e) != nil {
				return
			}
		}
		if len(events) == 0 && next > at && q.Get("allowWatchBookmarks") == "true" {
			if out.Encode(bookmark(t.Resource, next)) != nil {
				return
			}
		}
		at = next
		if flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-end.C:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// since returns what a watch has not seen yet, and what tells it when to look again.
func (s *Server) since(t target, sel selector, at, cuts uint64) (events []watchEvent, next uint64, gone, cut bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cuts != cuts {
		return nil, at, false, true, nil
	}
	if at < s.oldest {
		return nil, at, true, false, nil
	}
	for _, c := range s.history {
		if c.version <= at || c.key.group != t.Group || c.key.resource != t.Name || t.namespace != "" && t.namespace != c.key.namespace {
			continue
		}
		if e, ok := sel.seen(c); ok {
			events = append(events, e)
		}
	}
	return events, s.version, false, false, s.changed
}
