package ipamd

import (
	"log/slog"
	"net"
	"net/netip"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/hostnet"
)

// An event is something that happened; step turns it into effects, which are things to do. Neither has behaviour:
// the shell (Daemon) carries effects out and reports what became of them as events.
type event interface{ isEvent() }

type (
	// evStart begins the controller's life.
	evStart struct{}
	// evStop ends it: nothing new is begun.
	evStop struct{}
	// evAdd is an ADD; it is answered by effAdd with the same id, once.
	evAdd struct {
		id  uint64
		req AddRequest
	}
	// evAddEnded follows every evAdd: its caller has the answer, or went away without.
	evAddEnded struct {
		id        uint64
		key       datastore.Key
		delivered bool
	}
	// evUndelivered says that an ADD's reply, given at an earlier moment, reached nobody.
	evUndelivered struct {
		key     datastore.Key
		address netip.Addr
		time    time.Time // of the allocation
	}
	// evDel is a DEL; it is answered by effDel with the same id, once.
	evDel struct {
		id  uint64
		req DelRequest
	}
	// evCommitted is the end of an effCommit.
	evCommitted struct{ err error }
	// evCalled is the end of an effCall.
	evCalled struct {
		call call
		result
	}
	// evApplied is the end of an effApply.
	evApplied struct {
		cfg    hostnet.Config
		report hostnet.Report
		err    error
	}
	// evTimer says that the time asked for by effTimer has come.
	evTimer struct{}
	// evHost says that the host's network may have been changed.
	evHost struct{}
	// evRepaired says what was put right of pods' wiring.
	evRepaired struct{ hostnet.Repair }
	// evVPC says that the VPC's ranges changed.
	evVPC struct{ cidrs []netip.Prefix }
	// evNode says what Kubernetes says of the node.
	evNode struct{ NodeState }
	// evLeaving says why the instance is about to end; empty if it is not.
	evLeaving struct{ why string }
)

func (evStart) isEvent()       {}
func (evStop) isEvent()        {}
func (evAdd) isEvent()         {}
func (evAddEnded) isEvent()    {}
func (evUndelivered) isEvent() {}
func (evDel) isEvent()         {}
func (evCommitted) isEvent()   {}
func (evCalled) isEvent()      {}
func (evApplied) isEvent()     {}
func (evTimer) isEvent()       {}
func (evHost) isEvent()        {}
func (evRepaired) isEvent()    {}
func (evVPC) isEvent()         {}
func (evNode) isEvent()        {}
func (evLeaving) isEvent()     {}

// An effect is something for the shell to do.
type effect interface{ isEffect() }

type (
	// effCall is a call to EC2, or the wait for an interface; it ends in evCalled.
	effCall struct{ call }
	// effApply makes the host's network right; it ends in evApplied. There is at most one at a time.
	effApply struct{ cfg hostnet.Config }
	// effCommit makes the state durable; it ends in evCommitted. There is at most one at a time.
	effCommit struct{}
	// effAdd and effDel answer a request.
	effAdd struct {
		id    uint64
		reply AddReply
		err   error
	}
	effDel struct {
		id    uint64
		reply DelReply
		err   error
	}
	// effTimer asks for one evTimer at a time, instead of any asked for before. The zero time asks for none.
	effTimer struct{ at time.Time }
	// effReady says that pods can be served.
	effReady struct{}
	// effLog is a line for the log.
	effLog struct {
		level slog.Level
		msg   string
		args  []any
		site  uintptr // program counter of who says it
	}
	// effNotice is something for people to see.
	effNotice struct{ Notice }
)

func (effCall) isEffect()   {}
func (effApply) isEffect()  {}
func (effCommit) isEffect() {}
func (effAdd) isEffect()    {}
func (effDel) isEffect()    {}
func (effTimer) isEffect()  {}
func (effReady) isEffect()  {}
func (effLog) isEffect()    {}
func (effNotice) isEffect() {}

// method is what a call calls.
type method string

const (
	callDescribe         method = "DescribeENIs"      // of the instance
	callDescribeByID     method = "DescribeENIsByID"  // eni
	callDescribeByTag    method = "DescribeENIsByTag" // of this instance
	callCreate           method = "CreateENI"         // spec
	callAttach           method = "AttachENI"         // eni, device, card
	callProtect          method = "DeleteOnTermination"
	callDetach           method = "DetachENI" // attachment
	callDelete           method = "DeleteENI" // eni
	callSubnets          method = "DescribeSubnets"
	callAssign           method = "AssignIPs"       // eni, n
	callAssignAddresses  method = "AssignAddresses" // eni, addrs
	callUnassign         method = "UnassignIPs"
	callAssignPrefixes   method = "AssignPrefixes" // eni, n
	callUnassignPrefixes method = "UnassignPrefixes"
	callWaitLink         method = "WaitLink" // mac
	// Of IMDS: what lies on the ENIs (prefixed), and everything.
	callPools    method = "IMDSPools"
	callMetadata method = "IMDSENIs"
)

// metadata tells whether a method asks IMDS.
func (m method) metadata() bool { return m == callPools || m == callMetadata }

// call is a call to make. Only the fields that its method needs are set.
type call struct {
	op         uint64 // the operation it belongs to
	method     method
	eni        string
	attachment string
	device     int
	card       int
	n          int
	addrs      []netip.Addr
	prefixes   []netip.Prefix
	spec       awsutils.NewENI
	mac        net.HardwareAddr
	prefixed   bool
}

// result is what a call returned.
type result struct {
	err        error
	enis       []awsutils.ENI
	subnets    []awsutils.Subnet
	attachment string
	addrs      []netip.Addr
	prefixes   []netip.Prefix
}
