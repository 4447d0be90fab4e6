// Package hostnet keeps the node's own network state: rules, routes, per-interface settings and the nftables tables
// that carry pods' packets to the right ENI. The state wanted is a value (Config → Desired), the difference to the
// kernel is computed, and only the difference is written; what is not ours (by priority and protocol, table number
// or table name) is never touched.
package hostnet

import (
	"net"
	"net/netip"
)

// SNATRandom says how the kernel picks source ports for masqueraded connections (AWS_VPC_K8S_CNI_RANDOMIZESNAT).
type SNATRandom int

// The values of AWS_VPC_K8S_CNI_RANDOMIZESNAT.
const (
	SNATRandomFully SNATRandom = iota // prng, the default
	SNATRandomHash                    // hashrandom
	SNATRandomNone                    // none
)

// BranchMode says how pods with branch ENIs (security groups for pods) are wired
// (ENABLE_POD_ENI, POD_SECURITY_GROUP_ENFORCING_MODE).
type BranchMode int

// The modes. What a pod was wired with stays: in every mode there may be pods of the others.
const (
	BranchOff      BranchMode = iota // no pod has a branch ENI
	BranchStandard                   // a branch ENI's pod is reached by its node as any pod is
	BranchStrict                     // all packets of the pod pass its branch ENI, those from and to its node too
)

// Config is everything that the host's network state depends on. Equal Configs give equal states.
type Config struct {
	// IPv4 and IPv6 say which addresses the node's pods have. Neither means IPv4.
	IPv4, IPv6 bool
	// ENIs are the managed ENIs that are to be ready for pods, the primary one included.
	ENIs []ENI
	// VPCCIDRs are the ranges that pods reach without source NAT; ExcludeSNATCIDRs are added to them.
	VPCCIDRs         []netip.Prefix
	ExcludeSNATCIDRs []netip.Prefix
	// ExternalServiceCIDRs are always reached through table main (AWS_EXTERNAL_SERVICE_CIDRS).
	ExternalServiceCIDRs []netip.Prefix
	// ExternalSNAT leaves source NAT to somebody outside the node (AWS_VPC_K8S_CNI_EXTERNALSNAT).
	ExternalSNAT bool
	// NodePort makes replies to connections that came in by the primary ENI leave by it
	// (AWS_VPC_CNI_NODE_PORT_SUPPORT).
	NodePort   bool
	SNATRandom SNATRandom
	// BranchPods is how the plugin wires pods with branch ENIs.
	BranchPods BranchMode
	// Egress are the ranges of the egress plugin (ENABLE_V6_EGRESS, ENABLE_V4_EGRESS).
	Egress []Egress
	// PrimaryMark is the one bit (AWS_VPC_K8S_CNI_CONNMARK) that sends packets by the primary ENI; ENIMask is the
	// contiguous field for the index of a secondary ENI. They must not overlap.
	PrimaryMark uint32
	ENIMask     uint32
	// VethPrefix starts the names of pods' host veths (AWS_VPC_K8S_CNI_VETHPREFIX).
	VethPrefix string
	// MTU of every managed ENI, in bytes (AWS_VPC_ENI_MTU). 0 leaves it alone.
	MTU int
	// RuleLayout is how ip rules lead to pods (POD_RULE_LAYOUT).
	RuleLayout RuleLayout
}

// ENI is one managed ENI as the host's network sees it.
type ENI struct {
	ID      string
	MAC     net.HardwareAddr
	Device  int // device index
	Card    int // network card index
	Primary bool
	// Trunk marks the ENI that branch ENIs hang on.
	Trunk bool
	// Address is the ENI's own primary address, SubnetCIDR its subnet; the VPC router is the subnet's base + 1.
	Address    netip.Addr
	SubnetCIDR netip.Prefix
	// Address6 and SubnetCIDR6 are the same in IPv6, where an ENI may have none; the VPC router is fe80:ec2::1.
	Address6    netip.Addr
	SubnetCIDR6 netip.Prefix
	// Pool are the addresses and prefixes that pods may get from this ENI, of both families: secondary IPs as /32 and
	// /128, prefixes as /28 and /80.
	Pool []netip.Prefix
}

// Report says what an Apply did.
type Report struct {
	// Writes counts the changes made to the kernel: 0 when the state was right already.
	Writes int
	// Changes are the Writes by kind.
	Changes map[Kind]int
	// By names programs that changed something since the last Apply, as far as the kernel says who it was.
	By []string
	// NotReady has the reason for each ENI (by id) that cannot serve pods yet; every other ENI of the Config can.
	NotReady map[string]error
}
