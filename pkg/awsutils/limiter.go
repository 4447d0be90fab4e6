package awsutils

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"
	"github.com/jonboulle/clockwork"
	"golang.org/x/time/rate"
)

// What one node may ask of EC2, per operation. EC2's own buckets are per account and region (at the time of writing
// 20/s with a burst of 100 for most Describe actions, 5/s with a burst of 50 for most mutations of ENIs), so a node
// that has gone wrong must not empty them for its cluster. The bursts are what a node needs to fill its largest
// instance type at once: 15 ENIs per card.
const (
	describeRate  rate.Limit = 2
	describeBurst            = 10
	mutateRate    rate.Limit = 4
	mutateBurst              = 30
)

// errOwnLimit is returned when a node's own limit would keep a call waiting for longer than its deadline allows. The
// call has not been sent.
var errOwnLimit = errors.New("over this node's own rate limit")

// limiter is a middleware around every attempt: one token bucket per operation.
type limiter struct {
	clock   clockwork.Clock
	waits   Waits
	mu      sync.Mutex
	buckets map[string]*rate.Limiter // guarded by mu
}

func newLimiter(clock clockwork.Clock, waits Waits) *limiter {
	return &limiter{clock: clock, waits: waits, buckets: map[string]*rate.Limiter{}}
}

func (l *limiter) add(stack *middleware.Stack) error {
	bucket := l.bucket(stack.ID())
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("vpccni/limit", func(
		ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler,
	) (middleware.FinalizeOutput, middleware.Metadata, error) {
		if err := l.wait(ctx, bucket); err != nil {
			return middleware.FinalizeOutput{}, middleware.Metadata{}, err
		}
		return next.HandleFinalize(ctx, in)
	}), (*retry.Attempt)(nil).ID(), middleware.After)
}

func (l *limiter) bucket(operation string) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.buckets[operation]
	if !ok {
		b = rate.NewLimiter(mutateRate, mutateBurst)
		if strings.HasPrefix(operation, "Describe") {
			b = rate.NewLimiter(describeRate, describeBurst)
		}
		l.buckets[operation] = b
	}
	return b
}

// wait takes a token, at once or after the time it takes to appear, and gives it back if ctx ends first.
func (l *limiter) wait(ctx context.Context, bucket *rate.Limiter) error {
	now := l.clock.Now()
	r := bucket.ReserveN(now, 1)
	delay := r.DelayFrom(now)
	if delay == 0 {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok && l.waits.Until(deadline) < delay {
		r.CancelAt(now)
		return fmt.Errorf("%w (%s to wait)", errOwnLimit, delay.Round(time.Millisecond))
	}
	if own, ok := ctx.Value(waitedKey{}).(*waited); ok {
		defer func() { own.total += l.clock.Since(now) }()
	}
	if err := l.waits.Sleep(ctx, delay); err != nil {
		r.CancelAt(l.clock.Now())
		return fmt.Errorf("%w: %w", errOwnLimit, err)
	}
	return nil
}
