package awsutils

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Class says what an error of EC2 or IMDS means to somebody who has to decide what to do next.
type Class int

// The classes of errors.
const (
	// Other is everything that has no class of its own.
	Other Class = iota
	// Throttled: EC2 (or this node's own limit) refused to look at the call. Nothing happened.
	Throttled
	// Denied: IAM, or the credentials themselves, do not allow the call.
	Denied
	// NotFound: the ENI, attachment, subnet … or the IMDS path does not exist.
	NotFound
	// InsufficientAddresses: the subnet has too few free addresses.
	InsufficientAddresses
	// InsufficientPrefixes: the subnet has too few free, aligned /28s; it may well have single addresses.
	InsufficientPrefixes
	// AddressLimit: the ENI holds as many addresses as the instance type allows.
	AddressLimit
	// AttachmentLimit: the instance holds as many ENIs as its type allows.
	AttachmentLimit
	// InUse: the ENI, its device index or an address is taken.
	InUse
	// IncorrectState: the object is in a state that forbids the call, attaching or detaching as a rule.
	IncorrectState
	// IdempotentMismatch: the client token was used before with other parameters.
	IdempotentMismatch
	// Timeout: the outcome is unknown. The call may have had its effect, now or later.
	Timeout
)

var classNames = [...]string{
	Other: "Other", Throttled: "Throttled", Denied: "Denied", NotFound: "NotFound",
	InsufficientAddresses: "InsufficientAddresses", InsufficientPrefixes: "InsufficientPrefixes",
	AddressLimit: "AddressLimit", AttachmentLimit: "AttachmentLimit", InUse: "InUse",
	IncorrectState: "IncorrectState", IdempotentMismatch: "IdempotentMismatch", Timeout: "Timeout",
}

// String returns the class's name.
func (c Class) String() string {
	if c < 0 || int(c) >= len(classNames) {
		return "Other"
	}
	return classNames[c]
}

// classOfCode has the codes that mean the same whatever the message says. Throttle codes are the SDK's.
var classOfCode = map[string]Class{
	"UnauthorizedOperation":       Denied,
	"AccessDenied":                Denied,
	"AccessDeniedException":       Denied,
	"AuthFailure":                 Denied,
	"Blocked":                     Denied,
	"InvalidClientTokenId":        Denied,
	"MissingAuthenticationToken":  Denied,
	"OptInRequired":               Denied,
	"PendingVerification":         Denied,
	"SignatureDoesNotMatch":       Denied,
	"UnrecognizedClientException": Denied,

	"InvalidInstanceType": NotFound,

	"InsufficientFreeAddressesInSubnet": InsufficientAddresses,
	"InsufficientCidrBlocks":            InsufficientPrefixes,
	"PrivateIpAddressLimitExceeded":     AddressLimit,
	"AttachmentLimitExceeded":           AttachmentLimit,
	"InvalidNetworkInterface.InUse":     InUse,
	"InvalidIPAddress.InUse":            InUse,
	"IncorrectState":                    IncorrectState,
	"IncorrectInstanceState":            IncorrectState,
	"IdempotentParameterMismatch":       IdempotentMismatch,

	// EC2's own troubles: it does not say whether it got as far as the effect.
	"InternalError":       Timeout,
	"InternalFailure":     Timeout,
	"InternalServerError": Timeout,
	"RequestTimeout":      Timeout,
	"ServiceUnavailable":  Timeout,
	"Unavailable":         Timeout,
}

// classOfInvalidValue tells the meanings of InvalidParameterValue apart by the message, which is all that EC2 gives.
// This is the one place that reads messages.
func classOfInvalidValue(message string) Class {
	m := strings.ToLower(message)
	switch {
	// CreateNetworkInterface with prefixes in a full subnet, where AssignPrivateIpAddresses says
	// InsufficientCidrBlocks: "There aren't sufficient free Ipv4 addresses or prefixes"
	// (github.com/aws/amazon-vpc-cni-k8s/issues/3105).
	case strings.Contains(m, "sufficient free") && strings.Contains(m, "prefix"):
		return InsufficientPrefixes
	case strings.Contains(m, "sufficient free"):
		return InsufficientAddresses
	// DeleteNetworkInterface of an attached ENI: "Network interface 'eni-…' is currently in use."
	case strings.Contains(m, "currently in use"):
		return InUse
	}
	return Other
}

// Classify says what a non-nil error from this package means.
func Classify(err error) Class {
	if errors.Is(err, errOwnLimit) {
		return Throttled
	}
	class := Other
	api, answered := apiError(err)
	if answered {
		class = classOfAPIError(api)
	}
	if credentialsFailed(err) {
		// The call itself was never sent, so nothing but a denial says anything about it.
		if class == Denied {
			return Denied
		}
		return Other
	}
	var response *smithyhttp.ResponseError
	if class == Other && errors.As(err, &response) {
		class = classOfStatus(response.HTTPStatusCode())
	}
	if class == Other && !answered {
		class = classOfTransport(err)
	}
	return class
}

// credentialsFailed tells whether a call failed for want of credentials: its error then holds that of another service,
// the one that hands out credentials.
func credentialsFailed(err error) bool {
	var call, inner *smithy.OperationError
	return errors.As(err, &call) && errors.As(call.Err, &inner) && inner.ServiceID != call.ServiceID
}

func apiError(err error) (smithy.APIError, bool) {
	var api smithy.APIError
	ok := errors.As(err, &api)
	return api, ok
}

func isThrottleCode(code string) bool {
	_, ok := retry.DefaultThrottleErrorCodes[code]
	return ok
}

func classOfAPIError(api smithy.APIError) Class {
	code := api.ErrorCode()
	switch {
	case isThrottleCode(code):
		return Throttled
	case code == "InvalidParameterValue":
		return classOfInvalidValue(api.ErrorMessage())
	case strings.HasSuffix(code, ".NotFound"):
		return NotFound
	}
	return classOfCode[code]
}

func classOfStatus(status int) Class {
	switch {
	case status == http.StatusNotFound:
		return NotFound
	case status == http.StatusTooManyRequests:
		return Throttled
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return Denied
	case status >= http.StatusInternalServerError:
		return Timeout
	}
	return Other
}

// classOfTransport classifies an error without an answer to go by.
func classOfTransport(err error) Class {
	// What failed before a request could be written had no effect.
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return Other
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return Other
	}
	var (
		send     *smithyhttp.RequestSendError
		canceled *aws.RequestCanceledError
		garbled  *smithy.DeserializationError
		timeout  interface{ Timeout() bool }
	)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &send), errors.As(err, &canceled), errors.As(err, &garbled),
		errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	}
	return Other
}

// Code returns EC2's code for an error, such as InvalidNetworkInterfaceID.NotFound; empty when EC2 did not answer.
func Code(err error) string {
	if api, ok := apiError(err); ok {
		return api.ErrorCode()
	}
	return ""
}
