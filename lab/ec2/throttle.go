package ec2

import (
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
)

// throttles are EC2's token buckets: one per action, shared by all callers of the account.
type throttles struct {
	clock   clockwork.Clock
	mu      sync.Mutex
	buckets map[string]*bucket
}

type bucket struct {
	burst, perSecond float64
	tokens           float64
	at               time.Time
}

// SetThrottle gives an action a token bucket, full at first; a burst of 0 takes it away again.
func (c *Cloud) SetThrottle(action string, burst int, perSecond float64) {
	t := &c.throttle
	t.mu.Lock()
	defer t.mu.Unlock()
	if burst <= 0 {
		delete(t.buckets, action)
		return
	}
	if t.buckets == nil {
		t.buckets = map[string]*bucket{}
	}
	t.buckets[action] = &bucket{burst: float64(burst), perSecond: perSecond, tokens: float64(burst), at: t.clock.Now()}
}

// allow takes a token of the action's bucket; false if it is empty.
func (t *throttles) allow(action string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, ok := t.buckets[action]
	if !ok {
		return true
	}
	now := t.clock.Now()
	b.tokens = min(b.burst, b.tokens+b.perSecond*now.Sub(b.at).Seconds())
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
