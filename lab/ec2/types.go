// Package ec2 is a simulated EC2: stateful, with AWS's semantics, limits and error codes, spoken to over the real
// Query protocol. Time comes from an injected clock; the network that carries its decisions is behind Plane.
//
// A Cloud is made with New and furnished by its methods: VPCs, subnets, security groups, instances. Clients call
// Handler, over a socket or through Transport without one, and sign with Credentials, by which the cloud knows them.
// AddFault and SetThrottle make it behave badly; Requests and Counts tell what was asked of it.
//
// An action or a parameter that is not modelled is refused as EC2 refuses what it does not know, so that nobody relies
// on what is silently ignored; testdata/parameters-refused.txt lists what that is for the actions there are. Not
// modelled at all: rules of security groups, elastic IP addresses, branch ENIs, subnet CIDR reservations, and the time
// that EC2 takes to show everyone what it has told one.
package ec2

import (
	"net"
	"net/netip"
	"time"
)

// VPC is a virtual private cloud. Its ranges can grow while it runs.
type VPC struct {
	ID    string
	CIDRs []netip.Prefix
	Tags  map[string]string
}

// Subnet is a subnet of a VPC in one availability zone.
type Subnet struct {
	ID    string
	VPCID string
	Zone  string // us-west-2a
	CIDR  netip.Prefix
	IPv6  netip.Prefix // zero if the subnet has no IPv6 range
	// Public subnets have a route to the internet gateway; the others one to a NAT gateway.
	Public bool
	Tags   map[string]string
}

// SecurityGroup is a security group.
type SecurityGroup struct {
	ID, VPCID, Name, Description string
	Tags                         map[string]string
}

// Instance is a running or terminated instance.
type Instance struct {
	ID       string
	Type     string
	VPCID    string
	SubnetID string // of the primary ENI
	Zone     string
	State    string // pending, running, shutting-down, terminated
	Launched time.Time
	// PublicIP is the public address that the internet gateway maps to the primary private address; the zero Addr
	// in a private subnet.
	PublicIP netip.Addr
	Tags     map[string]string
}

// InstanceSpec asks for an instance.
type InstanceSpec struct {
	Type           string
	SubnetID       string
	SecurityGroups []string   // ids; empty: the VPC's default group
	PrivateIP      netip.Addr // zero: any free one
	PublicIP       bool       // ask for a public address; needs a public subnet
	IPv6Addresses  int        // so many of the subnet's on the primary ENI
	Tags           map[string]string
}

// ENI is an elastic network interface.
type ENI struct {
	ID               string
	MAC              net.HardwareAddr
	VPCID            string
	SubnetID         string
	Zone             string
	Description      string
	Type             string // interface, efa, trunk, branch
	Status           string // available, attaching, in-use, detaching; to clients all but the first are in-use
	SourceDestCheck  bool
	Groups           []string // security group ids
	Primary          netip.Addr
	Secondary        []netip.Addr
	Prefixes         []netip.Prefix // IPv4 /28
	IPv6             []netip.Addr
	IPv6Prefixes     []netip.Prefix // IPv6 /80
	PublicIP         netip.Addr     // mapped to Primary; zero if none
	ConnTrack        ConnectionTracking
	Tags             map[string]string
	Attachment       *Attachment // nil while available
	RequesterManaged bool
	Created          time.Time
}

// ConnectionTracking are an ENI's connection tracking time-outs in seconds; 0 = not set.
type ConnectionTracking struct {
	TCPEstablished, UDPStream, UDP int32
}

// Attachment ties an ENI to an instance.
type Attachment struct {
	ID                  string
	InstanceID          string
	Device              int
	Card                int
	State               string // attaching, attached, detaching
	DeleteOnTermination bool
	Since               time.Time
}

// Plane is the network that carries what the cloud decides. Its methods are called one at a time and before the
// API answers, so that an address that EC2 has reported as assigned is one that the network forwards.
type Plane interface {
	// Sync makes the network carry the ENI as given: its interface is plugged into the instance while
	// Attachment.State is "attached", its addresses are forwarded, and nothing else of it is.
	Sync(ENI) error
	// Remove takes a deleted ENI out of the network.
	Remove(eniID string) error
	// SyncVPC makes the network carry a VPC's ranges and subnets.
	SyncVPC(VPC, []Subnet) error
}
