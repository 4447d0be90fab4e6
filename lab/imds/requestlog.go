package imds

import (
	"maps"
	"time"
)

// Request is one request that was answered.
type Request struct {
	Seq      uint64        `json:"seq"`
	Time     time.Time     `json:"time"`
	Instance string        `json:"instance"` // empty if nobody knew who asked
	Method   string        `json:"method"`
	Path     string        `json:"path"` // behind /latest/, without slashes around it
	Status   int           `json:"status"`
	Duration time.Duration `json:"duration"`
	Faults   []string      `json:"faults,omitempty"` // ids of the rules that struck
}

// CountKey is what requests are counted by.
type CountKey struct {
	Instance, Path string
}

// MarshalText makes the key usable in JSON objects: "i-0123 meta-data/mac".
func (k CountKey) MarshalText() ([]byte, error) { return []byte(k.Instance + " " + k.Path), nil }

const (
	// logLength is how many requests are remembered in full; all are counted.
	logLength = 16384
	// maxCounters bounds the counters: paths are the clients' to choose. What is beyond is counted as Path "…".
	maxCounters = 4096
)

// requestLog remembers the last requests and counts all.
type requestLog struct {
	seq    uint64
	ring   []Request // the oldest is at start once it is full
	start  int
	counts map[CountKey]int
}

func newRequestLog() requestLog { return requestLog{counts: map[CountKey]int{}} }

func (s *Server) record(r Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.log
	l.seq++
	r.Seq = l.seq
	key := CountKey{r.Instance, r.Path}
	if _, ok := l.counts[key]; !ok && len(l.counts) >= maxCounters {
		key.Path = "…"
	}
	l.counts[key]++
	if len(l.ring) < logLength {
		l.ring = append(l.ring, r)
		return
	}
	l.ring[l.start] = r
	l.start = (l.start + 1) % logLength
}

// Requests returns the remembered requests in the order in which they ended.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.log
	found := make([]Request, 0, len(l.ring))
	found = append(found, l.ring[l.start:]...)
	return append(found, l.ring[:l.start]...)
}

// Counts returns the number of requests by instance and path.
func (s *Server) Counts() map[CountKey]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.log.counts)
}

// ResetRequests forgets all requests and counts. The numbering goes on.
func (s *Server) ResetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log.ring, s.log.start, s.log.counts = nil, 0, map[CountKey]int{}
}
