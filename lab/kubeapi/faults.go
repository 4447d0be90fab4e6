package kubeapi

import (
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Fault is something that goes wrong. Of Status, Hang, Abort and Lose one is set.
type Fault struct {
	Verb     string // get, list, watch, create, update, patch, delete; empty: all
	Resource string // leases; empty: all
	Status   int    // answer with this: 403, 410, 429, 500 …
	Hang     bool   // never answer; a request that hangs goes on when the fault is removed
	Abort    bool   // close the connection
	Lose     bool   // do what is asked for and close the connection instead of an answer
	Times    int    // how often; 0: until it is removed

	removed chan struct{}
}

// reasons are what the API calls the statuses.
var reasons = map[int]string{
	http.StatusForbidden: "Forbidden", http.StatusGone: "Expired", http.StatusTooManyRequests: "TooManyRequests",
	http.StatusInternalServerError: "InternalError", http.StatusServiceUnavailable: "ServiceUnavailable",
	http.StatusConflict: "Conflict", http.StatusNotFound: "NotFound",
}

// AddFault makes something go wrong from now on. The function that is returned ends that; it may be called twice.
// Watches that are open are not concerned: cut them.
func (s *Server) AddFault(f Fault) (remove func()) {
	f.removed = make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if i := slices.Index(s.faults, &f); i >= 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
			close(f.removed)
		}
	}
}

// injected makes a request go wrong if one of the faults is for it.
func (s *Server) injected(w http.ResponseWriter, r *http.Request, verb string, t target, known bool) (answered bool) {
	f, ok := s.fault(verb, t.Name)
	switch {
	case !ok:
		return false
	case f.Abort:
		panic(http.ErrAbortHandler)
	case f.Lose:
		s.fulfil(nowhere{}, r, verb, t, known)
		panic(http.ErrAbortHandler)
	case f.Hang:
		select {
		case <-f.removed:
			return false
		case <-r.Context().Done():
			return true
		}
	}
	message := fmt.Sprintf("injected: cannot %s resource %q", verb, t.Name)
	fail(w, failure(f.Status, reasons[f.Status], message))
	return true
}

// fault finds the fault for a request and counts it.
func (s *Server) fault(verb, resource string) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.faults {
		if f.Verb != "" && f.Verb != verb || f.Resource != "" && f.Resource != resource {
			continue
		}
		if f.Times > 0 {
			f.Times--
			if f.Times == 0 {
				s.faults = slices.Delete(s.faults, i, i+1)
			}
		}
		return *f, true
	}
	return Fault{}, false
}

// nowhere takes an answer that is lost.
type nowhere struct{}

func (nowhere) Header() http.Header         { return http.Header{} }
func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) WriteHeader(int)             {}

// Request is an entry of the request log.
type Request struct {
	Time     time.Time
	Verb     string
	Resource string
	Name     string
	Path     string
}

func (s *Server) record(r Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Time = s.clock.Now()
	s.requests = append(s.requests, r)
}

// Requests returns everything that was asked, in order; those that went wrong on purpose as well.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Count tells how many requests there were with this verb and resource; empty means all.
func (s *Server) Count(verb, resource string) (n int) {
	for _, r := range s.Requests() {
		if (verb == "" || verb == r.Verb) && (resource == "" || resource == r.Resource) {
			n++
		}
	}
	return n
}
