// Package names holds the constants of the data plane's contract, once: link names, route tables, rule priorities,
// marks, paths. Each of them is read by somebody who does not import this code (kubelet, kube-proxy, Calico, an
// operator's script, a version of the CNI before or after this one), so none may change.
package names

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
)

// Paths on the node.
const (
	IPAMDSocket    = "/var/run/aws-node/ipamd.sock"
	CheckpointFile = "/var/run/aws-node/ipam.json"
	JournalFile    = "/var/run/aws-node/ipamd-journal.json"
	HeartbeatFile  = "/var/run/aws-node/ipamd-heartbeat"
	ConflistFile   = "/etc/cni/net.d/10-aws.conflist"
	LogDir         = "/var/log/aws-routed-eni"
)

// NetworkName is the name of the CNI network in the stock conflist, and thus part of every allocation key.
const NetworkName = "aws-cni"

// Route tables. Table numbers of ENIs come from RouteTable.
const (
	TableMain  = 254
	TableLocal = 255
	// TablePods holds one /32 (or /128) route per pod of this node.
	TablePods = 5120
	// TableUnassigned holds an unreachable route for every address of the ENIs that is meant for pods. It is asked
	// after TablePods, and after the rules that the predecessor writes for each of its pods at the same priority: so it
	// does no harm to pods of a predecessor that comes back.
	TableUnassigned = 5121
)

// Priorities of ip rules. Those that peers in the field use keep their numbers.
const (
	PriorityLocalMoved      = 20   // "lookup local", moved behind branch pods' rules in strict mode
	PriorityVLAN            = 10   // branch ENI pods, by incoming interface
	PriorityPods            = 512  // all pods of the node: lookup TablePods
	PriorityUnassigned      = 513  // what is no pod's: lookup TableUnassigned
	PriorityPrimaryMark     = 1024 // packets marked to leave by the primary ENI: lookup main
	PriorityExternalService = 1535 // external service CIDRs: lookup main
	// PriorityENI is that of packets of a secondary ENI's addresses: lookup that ENI's table. The predecessor's rules
	// for single pods, at 1536, go first: should it come back, an address may be on another ENI by then.
	PriorityENI = 1537
	// PriorityToPod and PriorityFromPod are those of the rules of single pods, which the predecessor writes, and this
	// version with POD_RULE_LAYOUT=per-pod: to POD lookup main; from POD lookup the table of its ENI, unless that is the
	// primary one.
	PriorityToPod      = 512
	PriorityFromPod    = 1536
	PriorityENIAddress = 32765 // host sockets bound to a secondary ENI's own address
)

// Marks. A packet's and a connection's mark share one layout; only these bits are ever read or written.
const (
	// DefaultPrimaryMark is set in connections that must leave by the primary ENI
	// (AWS_VPC_K8S_CNI_CONNMARK overrides it).
	DefaultPrimaryMark uint32 = 0x80
	// DefaultENIMask is the field that holds the index of the secondary ENI a packet leaves by.
	DefaultENIMask uint32 = 0x7f
)

// NFTable is the name of this project's nftables table, one per family. The table that v1.23 of the predecessor
// leaves behind is called aws-cni and is another one.
const NFTable = "vpc-cni"

// NFEgressSet is the set of that table with the ranges that the egress plugin gives addresses of. The rules for them come
// and go with it.
const NFEgressSet = "egress"

// The egress plugin's interface in the pod, by its family, and what its host ends' names begin with. The minus is no
// hexadecimal digit, so none of them can be an ordinary veth's, whatever that one's prefix is.
const (
	EgressV4         = "v4if0"
	EgressV6         = "v6if0"
	EgressVethPrefix = "veth-"
)

// The ranges of the egress plugin, as its configuration has them.
var (
	EgressRangeV4 = netip.MustParsePrefix("169.254.172.0/22")
	EgressRangeV6 = netip.MustParsePrefix("fd00::ac:0/118")
)

// GroupSourceCheck is the device group (IFLA_GROUP) of the host veths whose pods are held to their own source addresses.
// Names of veths change with their prefix; the group of a veth stays.
const GroupSourceCheck = 0x5643

// GroupStrictPod is the device group of both links of a pod on a branch ENI whose security groups are enforced strictly.
const GroupStrictPod = 0x5644

// RouteProtocol marks routes as ours (rtm_protocol, see /etc/iproute2/rt_protos: unused upstream). Routes of pods in
// table main keep protocol boot, as every version before this one wrote them.
const RouteProtocol = 89

// RuleProtocol marks ip rules as ours (FRA_PROTOCOL).
const RuleProtocol = 89

// VethSuffix returns the 11 hex digits that identify a pod's index-th interface in link names: the start of SHA-1
// over "namespace.name", with ".index" behind it for every interface but the first.
func VethSuffix(namespace, pod string, index int) string {
	key := namespace + "." + pod
	if index > 0 {
		key += "." + strconv.Itoa(index)
	}
	sum := sha1.Sum([]byte(key))
	return hex.EncodeToString(sum[:])[:11]
}

// HostVeth returns the name of the host end of a pod's index-th veth pair. The prefix (AWS_VPC_K8S_CNI_VETHPREFIX)
// has at most four characters, so the result fits IFNAMSIZ.
func HostVeth(prefix, namespace, pod string, index int) string {
	return prefix + VethSuffix(namespace, pod, index)
}

// StrictVethPrefix starts, in the place of the configured prefix, the names of host veths of pods on branch ENIs whose
// security groups are enforced strictly.
const StrictVethPrefix = "vlan"

// Ends of a pod's veth pair, for VethMAC.
const (
	HostEnd = "host"
	PodEnd  = "pod"
)

// VethMAC returns the address of one end of a sandbox's veth pair: it says whose the pair is, as its name, which the next
// sandbox of the same pod has too, does not.
func VethMAC(containerID, ifName, end string) [6]byte {
	sum := sha1.Sum([]byte(containerID + "/" + ifName + "/" + end))
	m := [6]byte(sum[:6])
	m[0] = m[0]&^1 | 2 // unicast, locally administered
	return m
}

// VLANLinkPrefix starts the names of branch ENIs' links.
const VLANLinkPrefix = "vlan.eth."

// VLANLink returns the name of a branch ENI's link on the trunk ENI.
func VLANLink(vlan int) string { return VLANLinkPrefix + strconv.Itoa(vlan) }

// MaxVLAN is the highest number of a VLAN; 0 is none.
const MaxVLAN = 4094

// VLANTable returns the route table of a branch ENI.
func VLANTable(vlan int) int { return vlan + 100 }

// RouteTable returns the route table of the ENI at a device index of a network card. The first ENI of the first card
// is the node's primary ENI and uses main; other cards use the numbers that amazon-ec2-net-utils gives them.
func RouteTable(card, device int) int {
	switch {
	case card == 0 && device == 0:
		return TableMain
	case card == 0:
		return device + 1
	default:
		return 10000 + 100*card + device
	}
}

// PodGateway returns the link-local next hop inside a pod for its index-th interface: 169.254.1.<index+1> or
// fe80::<index+1>. Nobody owns that address; the pod has a permanent neighbour entry for it.
func PodGateway(v6 bool, index int) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fe80::%x", index+1))
	}
	return netip.AddrFrom4([4]byte{169, 254, 1, byte(index + 1)})
}
