package ec2

import (
	"sync"
	"time"
)

// Request is one call that was made over HTTP.
type Request struct {
	Seq      uint64            `json:"seq"`
	Time     time.Time         `json:"time"`
	Action   string            `json:"action"`
	Caller   string            `json:"caller"`         // instance id, "operator" or "unknown"
	Outcome  string            `json:"outcome"`        // "ok" or the error code
	Lost     bool              `json:"lost,omitempty"` // the caller never saw the outcome
	Duration time.Duration     `json:"duration"`
	Params   map[string]string `json:"params,omitempty"`
}

// CountKey is what calls are counted by.
type CountKey struct {
	Action, Caller, Outcome string
}

// MarshalText makes the key usable in JSON objects: "AttachNetworkInterface i-0123 ok".
func (k CountKey) MarshalText() ([]byte, error) {
	return []byte(k.Action + " " + k.Caller + " " + k.Outcome), nil
}

// logLength is how many calls are remembered in full; all are counted.
const logLength = 16384

// requestLog remembers the last calls and counts all.
type requestLog struct {
	mu     sync.Mutex
	seq    uint64
	ring   []Request // the oldest is at start once it is full
	start  int
	counts map[CountKey]int
}

func newRequestLog() requestLog { return requestLog{counts: map[CountKey]int{}} }

func (l *requestLog) next() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	return l.seq
}

func (l *requestLog) add(r Request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[CountKey{r.Action, r.Caller, r.Outcome}]++
	if len(l.ring) < logLength {
		l.ring = append(l.ring, r)
		return
	}
	l.ring[l.start] = r
	l.start = (l.start + 1) % logLength
}

// Requests gives the remembered calls in the order in which they ended.
func (c *Cloud) Requests() []Request { return c.RequestsSince(0) }

// RequestsSince gives the remembered calls with a higher number than seq, in the order in which they ended.
func (c *Cloud) RequestsSince(seq uint64) []Request {
	l := &c.requests
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []Request
	for n := range l.ring {
		if r := l.ring[(l.start+n)%len(l.ring)]; r.Seq > seq {
			found = append(found, r)
		}
	}
	return found
}

// Counts gives the number of calls by action, caller and outcome.
func (c *Cloud) Counts() map[CountKey]int {
	l := &c.requests
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := make(map[CountKey]int, len(l.counts))
	for k, n := range l.counts {
		counts[k] = n
	}
	return counts
}

// ResetRequests forgets all calls and counts. The numbering goes on.
func (c *Cloud) ResetRequests() {
	l := &c.requests
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring, l.start, l.counts = nil, 0, map[CountKey]int{}
}
