package awsutils

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

var (
	assignedXML = "<AssignPrivateIpAddressesResponse/>"
	lost        = answer{err: io.ErrUnexpectedEOF}
	hang        = answer{hang: true}
	internal    = failed(500, "InternalError", "An internal error has occurred")
	garbage     = answer{status: 502, body: "<html>bad gateway"}
)

func assign(ctx context.Context, e *EC2) error {
	_, err := e.AssignIPs(ctx, "eni-1", 1)
	return err
}

func describe(ctx context.Context, e *EC2) error {
	_, err := e.DescribeENIs(ctx, "i-1")
	return err
}

func create(ctx context.Context, e *EC2) error {
	_, err := e.CreateENI(ctx, NewENI{SubnetID: "subnet-1"})
	return err
}

// What is repeated, and what an outcome that is not repeated counts as. Back-off and timeouts are of fake time.
func TestRetries(t *testing.T) {
	t.Parallel()
	const none = Class(-1)
	for _, tc := range []struct {
		name    string
		call    func(context.Context, *EC2) error
		answers []answer
		sent    int
		class   Class
	}{
		{"assign: throttled twice", assign, []answer{throttled, throttled, ok(assignedXML)}, 3, none},
		{"assign: throttled always", assign, []answer{throttled}, 3, Throttled},
		{"assign: response lost", assign, []answer{lost, ok(assignedXML)}, 1, Timeout},
		{"assign: response cut", assign, []answer{{status: 200, body: assignedXML, cut: true}, ok(assignedXML)}, 1, Timeout},
		{"assign: no answer", assign, []answer{hang, ok(assignedXML)}, 1, Timeout},
		{"assign: internal error", assign, []answer{internal, ok(assignedXML)}, 1, Timeout},
		{"assign: bad gateway", assign, []answer{garbage, ok(assignedXML)}, 1, Timeout},
		{"assign: throttled, then lost", assign, []answer{throttled, lost, ok(assignedXML)}, 2, Timeout},
		{"describe: throttled twice", describe, []answer{throttled, throttled, ok(describeXML("", eniXML))}, 3, none},
		{"describe: lost and failed", describe, []answer{lost, internal, ok(describeXML("", eniXML))}, 3, none},
		{"describe: no answer", describe, []answer{hang}, 3, Timeout},
		{"describe: denied", describe, []answer{failed(403, "UnauthorizedOperation", "")}, 1, Denied},
		{"create: lost", create, []answer{lost, ok(createdXML)}, 2, none},
		{"create: no answer", create, []answer{hang, ok(createdXML)}, 2, none},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &wire{answers: tc.answers}
				e, calls := client(t, w)
				start := time.Now()
				err := tc.call(context.Background(), e)
				class := none
				if err != nil {
					class = Classify(err)
				}
				if class != tc.class || w.sent() != tc.sent {
					t.Errorf("class %v after %d requests, want %v after %d; error: %v", class, w.sent(), tc.class, tc.sent, err)
				}
				if took := time.Since(start); took > callTimeout {
					t.Errorf("took %s", took)
				}
				refusals := 0
				for i := range tc.sent {
					if tc.answers[min(i, len(tc.answers)-1)].body == throttled.body {
						refusals++
					}
				}
				if c := calls(); len(c) != 1 || c[0].Attempts != tc.sent || c[0].Throttled != refusals || (c[0].Err == nil) != (err == nil) || c[0].Code != Code(err) {
					t.Errorf("observed %+v", c)
				}
				for n := range w.requests {
					if w.form(n) != w.form(0) {
						t.Errorf("repeated as another request:\n%s\nfirst:\n%s", w.form(n), w.form(0))
					}
				}
			})
		})
	}
}

// A caller's deadline holds, and its end leaves the outcome unknown.
func TestDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e, _ := client(t, &wire{answers: []answer{hang}})
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		start := time.Now()
		err := describe(ctx, e)
		if took := time.Since(start); Classify(err) != Timeout || took != 2*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		ctx, cancel = context.WithCancel(context.Background())
		cancel()
		if err := assign(ctx, e); Classify(err) != Timeout {
			t.Errorf("cancelled: %v", err)
		}
	})
}

// What never left the node has a known outcome.
func TestNotSent(t *testing.T) {
	t.Parallel()
	refused := answer{err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}}
	w := &wire{answers: []answer{refused}}
	e, _ := client(t, w)
	if err := assign(t.Context(), e); Classify(err) != Other || w.sent() != 1 {
		t.Errorf("connection refused: %v after %d requests", err, w.sent())
	}

	sent := &wire{answers: []answer{ok(assignedXML)}}
	for name, tc := range map[string]struct {
		err   error
		class Class
	}{
		"no answer": {&smithy.OperationError{ServiceID: "ec2imds", Err: &smithyhttp.RequestSendError{Err: io.EOF}}, Other},
		"denied":    {&smithy.OperationError{ServiceID: "STS", Err: &smithy.GenericAPIError{Code: "AccessDenied"}}, Denied},
		"throttled": {&smithy.OperationError{ServiceID: "STS", Err: &smithy.GenericAPIError{Code: "Throttling"}}, Other},
	} {
		synctest.Test(t, func(t *testing.T) {
			e, err := NewEC2(t.Context(), EC2Options{
				Region:     "us-west-2",
				HTTPClient: &http.Client{Transport: sent},
				Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
					return aws.Credentials{}, tc.err
				}),
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := assign(t.Context(), e); Classify(err) != tc.class || sent.sent() != 0 {
				t.Errorf("credentials, %s: class %v, %d requests; %v", name, Classify(err), sent.sent(), err)
			}
		})
	}
}

func TestOwnLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &wire{answers: []answer{ok(assignedXML)}}
		e, calls := client(t, w)
		start := time.Now()
		var wait sync.WaitGroup
		for range mutateBurst + 10 {
			wait.Go(func() {
				if err := assign(context.Background(), e); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := w.sent(); n != mutateBurst {
			t.Errorf("%d requests at once, want %d", n, mutateBurst)
		}
		// Another operation has a bucket of its own.
		if err := create(context.Background(), e); err == nil || time.Since(start) != 0 {
			t.Errorf("create: %v after %s", err, time.Since(start))
		}
		// The next token is 11 tokens away: too far for this caller, whose call is not sent and takes no token.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := assign(ctx, e); !errors.Is(err, errOwnLimit) || Classify(err) != Throttled {
			t.Errorf("over the limit: %v", err)
		}
		wait.Wait()
		if took := time.Since(start); took != 10*time.Second/mutateRatePerSecond {
			t.Errorf("10 calls over the burst took %s", took)
		}
		var waited time.Duration
		for _, c := range calls() {
			waited += c.Waited
		}
		// 10 calls stood in the queue for 1, 2 … 10 times the time of a token.
		if want := 55 * time.Second / mutateRatePerSecond; waited != want {
			t.Errorf("calls waited %s in all, want %s", waited, want)
		}
	})
}

const mutateRatePerSecond = time.Duration(mutateRate)

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		status        int
		code, message string
		want          Class
	}{
		{503, "RequestLimitExceeded", "", Throttled},
		{400, "Throttling", "", Throttled},
		{503, "EC2ThrottledException", "", Throttled},
		{403, "UnauthorizedOperation", "You are not authorized", Denied},
		{401, "AuthFailure", "", Denied},
		{400, "InvalidNetworkInterfaceID.NotFound", "", NotFound},
		{400, "InvalidAttachmentID.NotFound", "", NotFound},
		{400, "InvalidSubnetID.NotFound", "", NotFound},
		{400, "InvalidInstanceType", "", NotFound},
		{400, "InsufficientFreeAddressesInSubnet", "", InsufficientAddresses},
		{400, "InsufficientCidrBlocks", "", InsufficientPrefixes},
		{400, "InvalidParameterValue", "There aren't sufficient free Ipv4 addresses or prefixes", InsufficientPrefixes},
		{400, "InvalidParameterValue", "There aren't sufficient free Ipv4 addresses", InsufficientAddresses},
		{400, "InvalidParameterValue", "Network interface 'eni-1' is currently in use.", InUse},
		{400, "InvalidParameterValue", "Value (x) for parameter y is invalid", Other},
		{400, "PrivateIpAddressLimitExceeded", "", AddressLimit},
		{400, "AttachmentLimitExceeded", "", AttachmentLimit},
		{400, "InvalidNetworkInterface.InUse", "", InUse},
		{400, "IncorrectState", "", IncorrectState},
		{400, "IdempotentParameterMismatch", "", IdempotentMismatch},
		{500, "InternalError", "", Timeout},
		{503, "Unavailable", "", Timeout},
		{500, "SomethingNew", "", Timeout},
		{400, "SomethingNew", "", Other},
		{400, "NetworkInterfaceLimitExceeded", "", Other},
	} {
		synctest.Test(t, func(t *testing.T) {
			e, calls := client(t, &wire{answers: []answer{failed(tc.status, tc.code, tc.message)}})
			err := assign(context.Background(), e)
			if got := Classify(err); got != tc.want || Code(err) != tc.code {
				t.Errorf("%s %q: class %v, code %q; want %v", tc.code, tc.message, got, Code(err), tc.want)
			}
			if c := calls(); c[0].Code != tc.code || c[0].Status != tc.status {
				t.Errorf("%s: observed %+v", tc.code, c[0])
			}
		})
	}
	if got := fmt.Sprint(Class(-1), Class(99), Timeout); got != "Other Other Timeout" {
		t.Error(got)
	}
}
