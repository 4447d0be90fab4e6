package daemon

import (
	"net/netip"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/lab/imds"
)

// Methods of a lab's control socket.
const (
	MethodReady    = "ready"
	MethodDown     = "down"
	MethodStatus   = "status"
	MethodExec     = "exec"
	MethodPodAdd   = "pod.add"
	MethodPodDel   = "pod.del"
	MethodPodList  = "pod.list"
	MethodFaultAdd = "fault.add"
	MethodFaultDel = "fault.remove"
	MethodFaults   = "fault.list"
	MethodRequests = "requests"
	MethodEnv      = "env"
	MethodLogs     = "logs"
	MethodIPAMD    = "ipamd"
	MethodNode     = "node"
	MethodAddCIDR  = "vpc.add-cidr"
)

// Ready asks to be told when the lab is up. PID is the lab's first process as the machine sees it.
type Ready struct{ PID int }

// Status is a lab at one moment.
type Status struct {
	Name      string         `json:"name"`
	PID       int            `json:"pid"` // first process, as the machine sees it
	Since     time.Time      `json:"since"`
	VPC       string         `json:"vpc"`
	CIDRs     []netip.Prefix `json:"cidrs"`
	Subnets   []SubnetStatus `json:"subnets"`
	Nodes     []NodeStatus   `json:"nodes"`
	Pods      []cluster.Pod  `json:"pods"`
	Broken    []string       `json:"broken,omitempty"` // sandboxes that could not be cleaned up
	Drops     []DropStatus   `json:"drops"`
	Endpoints Endpoints      `json:"endpoints"`
}

// SubnetStatus is a subnet of the VPC.
type SubnetStatus struct {
	Name   string       `json:"name"`
	ID     string       `json:"id"`
	CIDR   netip.Prefix `json:"cidr"`
	Zone   string       `json:"zone"`
	Public bool         `json:"public"`
	Free   int          `json:"free"` // addresses
}

// NodeStatus is a node.
type NodeStatus struct {
	Name      string     `json:"name"`
	Instance  string     `json:"instance"`
	Type      string     `json:"type"`
	Subnet    string     `json:"subnet"`
	Address   netip.Addr `json:"address"`
	PublicIP  netip.Addr `json:"publicIP"`
	Running   bool       `json:"running"`
	IPAMD     string     `json:"ipamd"` // running, stopped, none
	ENIs      int        `json:"enis"`
	Addresses int        `json:"addresses"` // secondary ones and those of prefixes
	Pods      int        `json:"pods"`
}

// DropStatus are packets that the VPC did not forward.
type DropStatus struct {
	Cause       string     `json:"cause"`
	ENI         string     `json:"eni,omitempty"`
	Instance    string     `json:"instance,omitempty"`
	Source      netip.Addr `json:"source"`
	Destination netip.Addr `json:"destination"`
	Packets     uint64     `json:"packets"`
}

// Endpoints are where EC2 listens for programs on the machine.
type Endpoints struct {
	HTTP  string `json:"http"`
	HTTPS string `json:"https"`
}

// Exec runs a program on a node or, if Pod is set, in a pod. The call's files are its standard input, output and
// error.
type Exec struct {
	Node      string
	Namespace string
	Pod       string
	Command   []string
	Terminal  bool     // the files are a terminal that the program is to control
	Env       []string // in front of the node's
}

// Exit is how the program ended.
type Exit struct{ Code int }

// PodRef names pods: Count of them, Name-1 to Name-<Count>, if Count is positive, else the one of that name. For
// deletion All means all pods of the node, or of the lab if Node is empty.
type PodRef struct {
	Node, Namespace, Name string
	Count                 int
	All                   bool
}

// Fault is a rule of EC2 or of IMDS.
type Fault struct {
	EC2  *ec2.Fault  `json:"ec2,omitempty"`
	IMDS *imds.Fault `json:"imds,omitempty"`
}

// Faults are all rules.
type Faults struct {
	EC2  []ec2.Fault  `json:"ec2"`
	IMDS []imds.Fault `json:"imds"`
}

// FaultID names a rule.
type FaultID struct{ ID string }

// RequestsQuery asks for what has been asked of EC2 and IMDS.
type RequestsQuery struct {
	Log   bool // every request, not only the counts
	Reset bool // and count anew
}

// Requests are what has been asked of EC2 and IMDS.
type Requests struct {
	EC2     []Count        `json:"ec2"`
	IMDS    []Count        `json:"imds"`
	EC2Log  []ec2.Request  `json:"ec2Log,omitempty"`
	IMDSLog []imds.Request `json:"imdsLog,omitempty"`
}

// Count is a number of requests. What is the action and the outcome, or the path.
type Count struct {
	Caller  string `json:"caller"`
	What    string `json:"what"`
	Outcome string `json:"outcome,omitempty"`
	Count   int    `json:"count"`
}

// Env is what AWS's tools on the machine need.
type Env struct {
	Endpoint    string `json:"endpoint"`
	EndpointTLS string `json:"endpointTLS"`
	Region      string `json:"region"`
	CABundle    string `json:"caBundle"` // a path of the machine, valid while the lab runs
	AccessKey   string `json:"accessKey"`
	SecretKey   string `json:"secretKey"`
}

// LogsQuery asks for logs; a Node of "" is the lab itself. Plugin asks for the CNI plugin's.
type LogsQuery struct {
	Node   string
	Plugin bool
}

// Control is an order: kill, stop, start for ipamd; kill, boot, reboot for a node.
type Control struct{ Node, Do string }

// CIDR is one more range of the VPC.
type CIDR struct{ CIDR netip.Prefix }
