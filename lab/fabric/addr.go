package fabric

import "net/netip"

// Host names one of the fabric's own namespaces.
type Host string

// The hosts that every fabric has.
const (
	// HostVPC is the router of the VPC. What EC2 offers inside a VPC (IMDS, resolver, the EC2 endpoint) listens
	// here, on the addresses below.
	HostVPC Host = "vpc"
	// HostInternet is a host somewhere in the internet.
	HostInternet Host = "internet"
	// HostOnPrem is a host in a network that is peered with every VPC and sees private addresses.
	HostOnPrem Host = "onprem"
)

// Addresses that are the same in every VPC. They are reached from all assigned addresses of all VPCs and belong to
// HostVPC.
var (
	IMDSAddr      = netip.MustParseAddr("169.254.169.254")
	IMDSAddr6     = netip.MustParseAddr("fd00:ec2::254")
	ResolverAddr  = netip.MustParseAddr("169.254.169.253")
	ResolverAddr6 = netip.MustParseAddr("fd00:ec2::253")
	// EC2Addr is for the EC2 API: a public-looking address, outside of every VPC.
	EC2Addr = netip.MustParseAddr("198.51.100.10")
	// RouterAddr6 is the router on every ENI; its IPv4 counterpart is the subnet's base + 1 (GatewayAddr).
	RouterAddr6 = netip.MustParseAddr("fe80:ec2::1")
)

// Addresses outside of the VPCs.
var (
	InternetAddr  = netip.MustParseAddr("203.0.113.10")
	InternetAddr6 = netip.MustParseAddr("2001:db8:cb00:7100::10")
	// NATAddr is what the internet sees of a private subnet.
	NATAddr     = netip.MustParseAddr("203.0.113.11")
	OnPremAddr  = netip.MustParseAddr("192.0.2.10")
	OnPremAddr6 = netip.MustParseAddr("2001:db8:c000:200::10")
)

// GatewayAddr is the VPC router's address in a subnet: base + 1.
func GatewayAddr(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// VPCResolverAddr is the resolver's address in a VPC's first range: base + 2.
func VPCResolverAddr(cidr netip.Prefix) netip.Addr { return GatewayAddr(cidr).Next() }
