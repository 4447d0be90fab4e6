package awsutils

import (
	"context"
	"math"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/jonboulle/clockwork"
)

// Waits is how a client lets time pass.
type Waits interface {
	// Sleep returns after d, or as soon as ctx has ended, with its error.
	Sleep(ctx context.Context, d time.Duration) error
	// Until is the time left before a deadline of a context.
	Until(deadline time.Time) time.Duration
	// WithTimeout is context.WithTimeout.
	WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc)
	// Float64 is a random number in [0, 1).
	Float64() float64
}

// realWaits waits on a clock; contexts end in real time.
type realWaits struct{ clock clockwork.Clock }

func (w realWaits) Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-w.clock.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (realWaits) Until(deadline time.Time) time.Duration { return time.Until(deadline) }

func (realWaits) WithTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

// Float64 is not needed: the SDK spreads its own retries.
func (realWaits) Float64() float64 { return 0 }

// sdkMaxBackoff is the SDK's longest wait between two attempts.
const sdkMaxBackoff = 20 * time.Second

// RetryOn has an SDK's retryer wait on another time.
func RetryOn(inner aws.RetryerV2, w Waits) aws.RetryerV2 { return waitingRetryer{inner, w} }

// waitingRetryer is the SDK's retryer with its waits on another time. The SDK sleeps on the real clock only, so the
// wait takes place where it asks how long to wait; how long is the SDK's own formula (full jitter below a power of
// two seconds), from a random source that can be seeded.
type waitingRetryer struct {
	aws.RetryerV2
	waits Waits
}

func (r waitingRetryer) RetryDelay(attempt int, _ error) (time.Duration, error) {
	longest := min(time.Duration(math.Exp2(float64(min(attempt, 16))))*time.Second, sdkMaxBackoff)
	// The SDK's call has no context for this wait. Its own deadline is seen by the next attempt.
	return 0, r.waits.Sleep(context.Background(), time.Duration(r.waits.Float64()*float64(longest)))
}
