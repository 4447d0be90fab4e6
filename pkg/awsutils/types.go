// Package awsutils speaks with EC2 and the instance metadata service: narrow clients, errors classified once, rate
// limits, and the limits of instance types. It knows nothing of ipamd.
package awsutils

import (
	"net"
	"net/netip"
	"time"
)

// Identity is what the instance says about itself.
type Identity struct {
	Region       string
	Zone         string
	InstanceID   string
	InstanceType string
	VPCID        string
	SubnetID     string     // of the primary ENI
	PrimaryENI   string     // eni-…
	PrimaryMAC   string     // lower case, colons
	PrimaryIP    netip.Addr // the node's own IPv4 address
}

// ENI is an elastic network interface, as EC2 or IMDS describes it.
type ENI struct {
	ID          string
	MAC         net.HardwareAddr
	Device      int // device index; -1 while not attached
	Card        int // network card index
	SubnetID    string
	SubnetCIDR  netip.Prefix // known to IMDS only; the zero Prefix in EC2's answers
	Primary     netip.Addr   // the ENI's own address, never a pod's
	Secondary   []netip.Addr // sorted
	Prefixes    []netip.Prefix
	Description string
	Tags        map[string]string
	Type        string // interface, efa, trunk, branch …
	Status      string // available, attaching, in-use, detaching
	// Attachment; empty while not attached.
	AttachmentID        string
	InstanceID          string
	DeleteOnTermination bool
}

// Tags and description of the ENIs that nodes create. Cleaners and the field's IAM policies key on them.
const (
	TagInstance       = "node.k8s.amazonaws.com/instance_id"
	TagCreatedAt      = "node.k8s.amazonaws.com/createdAt" // RFC 3339
	TagNoManage       = "node.k8s.amazonaws.com/no_manage"
	TagCluster        = "cluster.k8s.amazonaws.com/name"
	DescriptionPrefix = "aws-K8S-" // the instance's id follows
)

// NewENI asks for an ENI. Exactly one of IPs and Prefixes may be positive.
type NewENI struct {
	SubnetID    string
	Groups      []string
	Description string
	Tags        map[string]string
	IPs         int // secondary IPv4 addresses
	Prefixes    int // IPv4 /28 prefixes
	// Token makes the call idempotent: a repetition with the same token and parameters gives the same ENI.
	Token string
}

// Limits are the limits of an instance type, for the default network card.
type Limits struct {
	ENIs        int // ENIs of the default network card, the primary one included
	IPv4PerENI  int // addresses per ENI, its own primary address included
	Cards       []CardLimits
	DefaultCard int
	Hypervisor  string // nitro, xen or unknown
	BareMetal   bool
	Trunking    bool
	VCPUs       int // virtual CPUs by default; known to EC2 only, 0 in the table built in
}

// TakesPrefixes tells whether ENIs of the instance type can hold prefixes.
func (l Limits) TakesPrefixes() bool { return l.Hypervisor == "nitro" || l.BareMetal }

// CardLimits are the limits of one network card.
type CardLimits struct {
	Index int
	ENIs  int
}

// AttachTimeout bounds the time between AttachNetworkInterface and the interface's appearance on the node.
const AttachTimeout = 2 * time.Minute
