package ec2

import (
	"fmt"
	"net/http"
	"strings"
)

// Error is an error as EC2 reports it: a code that programs switch on and a message for people.
type Error struct {
	Code    string
	Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// statuses are the HTTP statuses of the codes that are not a plain 400.
var statuses = map[string]int{
	"AuthFailure":                http.StatusUnauthorized,
	"MissingAuthenticationToken": http.StatusForbidden,
	"SignatureDoesNotMatch":      http.StatusForbidden,
	"UnauthorizedOperation":      http.StatusForbidden,
	"DryRunOperation":            http.StatusPreconditionFailed,
	"InternalError":              http.StatusInternalServerError,
	"InternalFailure":            http.StatusInternalServerError,
	"RequestLimitExceeded":       http.StatusServiceUnavailable,
	"ServiceUnavailable":         http.StatusServiceUnavailable,
	"Unavailable":                http.StatusServiceUnavailable,
}

// Status is the HTTP status that EC2 sends with the code.
func (e *Error) Status() int {
	if s, ok := statuses[e.Code]; ok {
		return s
	}
	return http.StatusBadRequest
}

func errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func invalidValue(format string, args ...any) *Error {
	return errorf("InvalidParameterValue", format, args...)
}

func invalidCombination(format string, args ...any) *Error {
	return errorf("InvalidParameterCombination", format, args...)
}

// missing names parameters as EC2 does in its messages: with a small first letter.
func missing(name string) *Error {
	return errorf("MissingParameter", "The request must contain the parameter %s", lowerFirst(name))
}

func internal(err error) *Error {
	return errorf("InternalError", "An internal error has occurred: %v", err)
}

// kind is a kind of thing that has an id, with the code and the words that EC2 uses when there is none of that id or
// when the id cannot be one. EC2 does not spell these codes alike.
type kind struct{ prefix, notFoundCode, malformedCode, noun string }

var (
	kindENI        = kind{"eni", "InvalidNetworkInterfaceID.NotFound", "InvalidNetworkInterfaceId.Malformed", "networkInterface"}
	kindAttachment = kind{"eni-attach", "InvalidAttachmentID.NotFound", "InvalidNetworkInterfaceAttachmentId.Malformed", "attachment"}
	kindInstance   = kind{"i", "InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed", "instance"}
	kindSubnet     = kind{"subnet", "InvalidSubnetID.NotFound", "InvalidSubnetID.Malformed", "subnet"}
	kindVPC        = kind{"vpc", "InvalidVpcID.NotFound", "InvalidVpcID.Malformed", "vpc"}
	kindGroup      = kind{"sg", "InvalidGroup.NotFound", "InvalidSecurityGroupId.Malformed", "security group"}
)

// notFound quotes the ids singly: clients parse the unknown id out of this message.
func (k kind) notFound(ids ...string) *Error {
	quoted := strings.Join(ids, ", ")
	switch {
	case k == kindGroup:
		return errorf(k.notFoundCode, "The security group '%s' does not exist", quoted)
	case len(ids) > 1:
		return errorf(k.notFoundCode, "The %s IDs '%s' do not exist", k.noun, quoted)
	}
	return errorf(k.notFoundCode, "The %s ID '%s' does not exist", k.noun, quoted)
}

// check refuses ids that cannot be ones of the kind.
func (k kind) check(id string) *Error {
	if !strings.HasPrefix(id, k.prefix+"-") {
		return errorf(k.malformedCode, `Invalid id: "%s" (expecting "%s-...")`, id, k.prefix)
	}
	return nil
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}
