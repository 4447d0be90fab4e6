package awsutils

import (
	"context"
	"errors"
	"net/http"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/jonboulle/clockwork"
)

// Call is what an observer learns of one call to EC2 or IMDS.
type Call struct {
	Service   string // EC2, ec2imds
	Operation string // CreateNetworkInterface, …
	Err       error  // nil on success
	Code      string // EC2's error code; empty on success and when no answer came
	Status    int    // HTTP status of the last answer; 0 when none came
	Duration  time.Duration
	Attempts  int
	Throttled int           // attempts that EC2 refused because it was asked too often
	Waited    time.Duration // for this node's own rate limit
}

// waited adds up what the attempts of one call wait for the node's own limit. It is written and read by the call's
// goroutine only.
type waited struct{ total time.Duration }

type waitedKey struct{}

// observer is a middleware around whole calls: it bounds them in time and reports them.
type observer struct {
	service string
	timeout time.Duration
	observe func(Call)
	clock   clockwork.Clock
	waits   Waits
}

func (o *observer) add(stack *middleware.Stack) error {
	operation := stack.ID()
	return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("vpccni/observe", func(
		ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
	) (middleware.InitializeOutput, middleware.Metadata, error) {
		ctx, cancel := o.waits.WithTimeout(ctx, o.timeout)
		defer cancel()
		own := &waited{}
		ctx = context.WithValue(ctx, waitedKey{}, own)
		start := o.clock.Now()
		out, meta, err := next.HandleInitialize(ctx, in)
		if o.observe != nil {
			o.observe(Call{
				Service:   o.service,
				Operation: operation,
				Err:       err,
				Code:      Code(err),
				Status:    status(meta, err),
				Duration:  o.clock.Since(start),
				Attempts:  attempts(meta),
				Throttled: throttles(meta),
				Waited:    own.total,
			})
		}
		return out, meta, err
	}), middleware.Before)
}

// attempts returns the number of HTTP requests that a call took.
func attempts(meta middleware.Metadata) int {
	results, ok := retry.GetAttemptResults(meta)
	if !ok {
		return 0
	}
	return len(results.Results)
}

// throttles counts the attempts of a call that were throttled.
func throttles(meta middleware.Metadata) int {
	results, _ := retry.GetAttemptResults(meta)
	n := 0
	for _, r := range results.Results {
		if r.Err != nil && isThrottleCode(Code(r.Err)) {
			n++
		}
	}
	return n
}

// status returns the HTTP status of a call's last answer.
func status(meta middleware.Metadata, err error) int {
	var withStatus interface{ HTTPStatusCode() int }
	if errors.As(err, &withStatus) {
		return withStatus.HTTPStatusCode()
	}
	if response, ok := awsmiddleware.GetRawResponse(meta).(*smithyhttp.Response); ok && response != nil {
		return response.StatusCode
	}
	if err == nil {
		return http.StatusOK
	}
	return 0
}
