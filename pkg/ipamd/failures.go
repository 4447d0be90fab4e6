package ipamd

import (
	"strings"

	"vpccni/pkg/awsutils"
)

// Failure is a kind of failed call: what was called, what for, and the class of the error.
type Failure struct {
	Call    string // DeleteENI, …
	Purpose string // create, assign, unassign, remove, undo, leftover, protect, link, observe
	Class   string // of awsutils.Class
}

// MarshalText makes it a key in JSON.
func (f Failure) MarshalText() ([]byte, error) {
	return []byte(strings.Join([]string{f.Call, f.Purpose, f.Class}, "/")), nil
}

// Why an ENI is deleted that is not among the node's.
const (
	reasonUndo     = "could not be attached"
	reasonLeftover = "left over from an earlier life"
)

// purpose says what an operation is for, finer than its kind.
func (op *operation) purpose() string {
	if op.kind == opRemove {
		switch op.reason {
		case reasonUndo:
			return "undo"
		case reasonLeftover:
			return "leftover"
		}
	}
	return op.kind
}

// callFailed counts a failed call.
func (c *controller) callFailed(op *operation, m method, err error) {
	c.counters.Failures[Failure{string(m), op.purpose(), awsutils.Classify(err).String()}]++
}
