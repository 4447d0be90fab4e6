// Package ipamd is the daemon that holds a node's ENIs and addresses: it observes, plans (warmpool), acts through
// EC2 and the host's network, remembers (checkpoint), and hands addresses to pods.
package ipamd

import (
	"fmt"
	"net/netip"
	"time"
)

// Sandbox names one interface of one pod sandbox: the key of an allocation.
type Sandbox struct {
	NetworkName string // aws-cni with the stock conflist
	ContainerID string
	IfName      string
}

// AddRequest asks for an address for a sandbox.
type AddRequest struct {
	Sandbox
	Namespace string
	Pod       string
}

// AddReply is what a pod gets.
type AddReply struct {
	Address netip.Addr
	Device  int // device index of the ENI
	Table   int // route table of the ENI, 254 for the primary one
	// ExternalSNAT and NoSNAT (the VPC's ranges, and the excluded ones unless ExternalSNAT) are for the reply's
	// readers on the other side of the socket.
	ExternalSNAT bool
	NoSNAT       []netip.Prefix
	// PerPodRules has the plugin write rules of the pod's own (POD_RULE_LAYOUT).
	PerPodRules bool
	// Waited is how long it took until there was an address, Recorded how long after that until it was durable.
	Waited   time.Duration
	Recorded time.Duration
	// Sole says that this request, and no other one of the same sandbox, brought the address, at Time: it can be taken
	// back if the reply reaches nobody (Daemon.Undelivered).
	Sole bool
	Time time.Time
}

// DelRequest releases what a sandbox holds.
type DelRequest struct {
	Sandbox
	Namespace string
	Pod       string
	// Gone, unless zero, is since when the sandbox is gone, for a request that comes late: the address cools from then
	// on, and an ADD of the same sandbox that came later stands.
	Gone time.Time
}

// DelReply is what a sandbox held.
type DelReply struct {
	Address netip.Addr
	Device  int
	Table   int
	// Recorded is how long it took until the release was durable.
	Recorded time.Duration
}

// NodeState is what Kubernetes says of the node. The zero value says nothing.
type NodeState struct {
	// MaxPods is how many pods the kubelet takes; 0 if that is not known.
	MaxPods int
	// Cordoned nodes get no new pods, but for those of DaemonSets.
	Cordoned bool
}

// Notice is a change that somebody who looks at the node should see; it becomes a Kubernetes event.
type Notice struct {
	Warning bool
	// Reason is a stable name in CamelCase, Message a sentence.
	Reason  string
	Message string
}

// Code is a stable name for the reason of a refusal.
type Code string

// The codes of a refusal.
const (
	// CodeAtLimit: every address that the instance type (or MAX_ENI) allows is held by a pod.
	CodeAtLimit Code = "AtLimit"
	// CodeWaitTimeout: addresses were being brought in, but not within the wait.
	CodeWaitTimeout Code = "WaitTimeout"
	// CodeSubnetExhausted: no subnet that may be used has a free address.
	CodeSubnetExhausted Code = "SubnetExhausted"
	// CodeDenied: IAM refuses the EC2 calls that would bring in an address.
	CodeDenied Code = "Denied"
	// CodeCancelled: the caller went away, or a DEL of the same sandbox came first.
	CodeCancelled Code = "Cancelled"
	// CodeQueueFull: too many ADDs wait already.
	CodeQueueFull Code = "QueueFull"
	// CodeInvalid: the request lacks a network name, container id or interface name.
	CodeInvalid Code = "InvalidRequest"
	// CodeStorage: the state could not be made durable.
	CodeStorage Code = "Storage"
	// CodeShutdown: ipamd is ending.
	CodeShutdown Code = "Shutdown"
)

// Refusal is the error of an ADD that gets no address. Reason is a sentence that a person can act on.
type Refusal struct {
	Code   Code
	Reason string
}

// Error joins code and reason.
func (r *Refusal) Error() string { return fmt.Sprintf("%s: %s", r.Code, r.Reason) }
