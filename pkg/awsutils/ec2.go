package awsutils

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/jonboulle/clockwork"
)

// userAgent is the key by which operators find this CNI's calls in CloudTrail.
const userAgent = "amazon-vpc-cni-k8s"

// Bounds in time. A caller's context can only make them shorter.
const (
	// DefaultHTTPTimeout bounds one HTTP attempt (HTTP_TIMEOUT).
	DefaultHTTPTimeout = 10 * time.Second
	// callTimeout bounds one call with all its attempts and waits.
	callTimeout = time.Minute
)

// EC2 calls the EC2 API for one node. It is safe for concurrent use.
//
// Errors that come back can be sorted with Classify. A mutation that is not idempotent is repeated on a throttle only;
// when its outcome is unknown the error's class is Timeout and the caller has to look.
type EC2 struct {
	api *ec2.Client
}

// EC2Options say how to reach EC2. Only Region is required.
type EC2Options struct {
	Region string // Identity.Region
	// Endpoint is AWS_EC2_ENDPOINT. AWS_ENDPOINT_URL_EC2, which the SDK reads by itself, goes before it.
	Endpoint string
	// Version is the version in the user agent.
	Version string
	// HTTPTimeout bounds one attempt; 0 means DefaultHTTPTimeout.
	HTTPTimeout time.Duration
	// Credentials are the default chain (environment, web identity, container, instance role) when nil.
	Credentials aws.CredentialsProvider
	// HTTPClient is the SDK's own, with HTTPTimeout, when nil.
	HTTPClient aws.HTTPClient
	// Config, if set, takes the place of what the SDK would read from its environment and files; Region, Credentials and
	// HTTPClient are put into it and must be set.
	Config *aws.Config
	// Observe, if set, is told of every call after it has ended. It is called by the goroutine that made the call.
	Observe func(Call)
	Clock   clockwork.Clock // nil: the real one
	// Waits is what the client's waits, deadlines and retries run on: real time if nil. A simulation has its own.
	Waits Waits
}

// NewEC2 returns a client. It makes no call; what can fail is reading the SDK's own configuration.
func NewEC2(ctx context.Context, o EC2Options) (*EC2, error) {
	if o.Region == "" {
		return nil, errors.New("ec2 client: no region")
	}
	if o.HTTPTimeout == 0 {
		o.HTTPTimeout = DefaultHTTPTimeout
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	waits := o.Waits
	if waits == nil {
		waits = realWaits{o.Clock}
	}
	cfg, err := sdkConfig(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("ec2 client: %w", err)
	}
	observe := &observer{service: ec2.ServiceID, timeout: callTimeout, observe: o.Observe, clock: o.Clock, waits: waits}
	limits := newLimiter(o.Clock, waits)
	return &EC2{api: ec2.NewFromConfig(cfg, func(opt *ec2.Options) {
		if opt.BaseEndpoint == nil && o.Endpoint != "" {
			opt.BaseEndpoint = aws.String(o.Endpoint)
		}
		if o.Waits != nil {
			if own, ok := opt.Retryer.(aws.RetryerV2); ok {
				opt.Retryer = RetryOn(own, o.Waits)
			}
		}
		opt.APIOptions = append(opt.APIOptions,
			awsmiddleware.AddUserAgentKeyValue(userAgent, o.Version),
			observe.add,
			limits.add,
		)
	})}, nil
}

// sdkConfig reads the SDK's configuration.
func sdkConfig(ctx context.Context, o EC2Options) (aws.Config, error) {
	if o.Config != nil {
		cfg := o.Config.Copy()
		cfg.Region, cfg.Credentials, cfg.HTTPClient = o.Region, aws.NewCredentialsCache(o.Credentials), o.HTTPClient
		return cfg, nil
	}
	load := []func(*config.LoadOptions) error{config.WithRegion(o.Region)}
	if o.Credentials != nil {
		load = append(load, config.WithCredentialsProvider(o.Credentials))
	}
	// A buildable client, not a plain one: the SDK adds AWS_CA_BUNDLE to no other.
	if o.HTTPClient == nil {
		o.HTTPClient = awshttp.NewBuildableClient().WithTimeout(o.HTTPTimeout)
	}
	return config.LoadDefaultConfig(ctx, append(load, config.WithHTTPClient(o.HTTPClient))...)
}

// once makes a call that is not idempotent: it is repeated only when EC2 says that it refused to look at it.
func once(o *ec2.Options) {
	inner, ok := o.Retryer.(aws.RetryerV2)
	if !ok {
		o.Retryer = aws.NopRetryer{}
		return
	}
	o.Retryer = throttleOnly{inner}
}

// throttleOnly is a retryer that repeats throttled calls only. Back-off (full jitter), number of attempts and retry
// quota stay those of the retryer inside.
type throttleOnly struct{ aws.RetryerV2 }

func (r throttleOnly) IsErrorRetryable(err error) bool {
	return isThrottleCode(Code(err)) && r.RetryerV2.IsErrorRetryable(err)
}
