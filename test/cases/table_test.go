package cases

import (
	"fmt"
	"strings"
	"testing"
)

// row is one of the end-to-end cases of amazon-vpc-cni-k8s v1.23.1, by its number, and how it is covered here: by exactly
// one of check, tests and not.
type row struct {
	number      int
	suite, what string
	// check runs it in the lab.
	check func(*testing.T)
	// tests run it, or what it is about, elsewhere: "package.TestName", the package without vpccni/. A test of another
	// module, or behind a build tag, is found by the folder as well.
	tests []string
	// not is why it is not run.
	not string
	// note says what differs.
	note string
}

// Why cases are not run.
const (
	notENICfg = "custom networking (ENIConfig) comes later"
	notTrunk  = "ipamd has no trunk ENIs yet"
	notCalico = "needs Calico's images and an API server for its policies"
	notImages = "needs images, which come with the packaging"
)

var table = []row{
	{number: 1, suite: "cni/host_networking", what: "set-up and teardown, pods on primary and secondary ENI", check: hostNetworking, note: "POD_RULE_LAYOUT=per-pod"},
	{number: 2, suite: "cni/host_networking", what: "veth prefix and AWS_VPC_ENI_MTU changed", check: changedMTU, note: "POD_RULE_LAYOUT=per-pod"},
	{number: 3, suite: "cni/host_networking", what: "veth prefix, AWS_VPC_ENI_MTU and POD_MTU changed", check: changedPodMTU, note: "POD_RULE_LAYOUT=per-pod"},
	{number: 4, suite: "cni/host_networking", what: "the tester fails for a wrong address, a wrong pod and a running pod", check: testerFails},
	{number: 5, suite: "cni/pod_traffic", what: "ICMP, 6 placements", check: icmp},
	{number: 6, suite: "cni/pod_traffic", what: "UDP, 6 placements; wrong port fails", check: udp},
	{number: 7, suite: "cni/pod_traffic", what: "TCP, 6 placements; wrong port fails", check: tcp},
	{number: 8, suite: "cni/pod_traffic", what: "udev MACAddressPolicy=none, new pod reaches the internet", check: macIsSet, note: "no udev: it leaves addresses alone that were set (addr_assign_type 3), which is checked"},
	{number: 9, suite: "cni/pod_traffic", what: "udev MACAddressPolicy=persistent, new pod reaches the internet", check: macIsSet, note: "as 8"},
	{number: 10, suite: "cni/PD_enabled", what: "TCP, prefixes, 20 servers × 20 clients, ≥ 99 %", check: prefixTCP, note: "all of them"},
	{number: 11, suite: "cni/PD_enabled", what: "UDP, same", check: prefixUDP, note: "all of them"},
	{number: 12, suite: "cni/PD_toggle", what: "TCP after prefixes were switched on", tests: []string{"test/slice.TestModeSwitch"}},
	{number: 13, suite: "cni/PD_toggle", what: "TCP after prefixes were switched off on the same nodes", tests: []string{"test/slice.TestModeSwitch"}},
	{number: 14, suite: "cni/service_connectivity", what: "CLB service", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: a load balancer is a host of the VPC that asks a NodePort"},
	{number: 15, suite: "cni/service_connectivity", what: "NLB service", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: as 14, and in IP mode with the client's address and without"},
	{number: 16, suite: "cni/service_connectivity", what: "ClusterIP; bad port fails; ≤ 3 ENIs", check: clusterIP, note: "with kube-proxy's DNAT by hand"},
	{number: 17, suite: "cni/service_connectivity", what: "NodePort 30443; bad port fails", check: nodePort, note: "as 16; to pods on both ENIs, asked from another node and from on-prem"},
	{number: 18, suite: "cni/snat_kube_proxy", what: "kube-proxy in iptables mode", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: the released kube-proxy, pods of all ENIs → ClusterIP, internet; both backends"},
	{number: 19, suite: "cni/snat_kube_proxy", what: "kube-proxy in nftables mode", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix"},
	{number: 20, suite: "cni/snat_kube_proxy", what: "kube-proxy in ipvs mode", not: "needs a kernel with IPVS"},
	{number: 21, suite: "run-mixed-os", what: "18 to 20 on three distributions", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: what differs is the backend of iptables and rp_filter, which are varied there"},
	{number: 22, suite: "cni/vpc_cni_logfile", what: "AWS_VPC_K8S_CNI_LOG_FILE", check: logFile},
	{number: 23, suite: "cni/soak", what: "12 times case 7", check: soak, note: "without the 5 minutes between them"},
	{number: 24, suite: "cni-egress", what: "IPv6 egress in an IPv4 cluster", tests: []string{"test/slice.TestEgressV6", "cmd/egress-cni-plugin.TestPackets"}},
	{number: 25, suite: "cni-egress", what: "IPv4 egress in an IPv6 cluster", tests: []string{"cmd/egress-cni-plugin.TestPackets"}},
	{number: 26, suite: "cni-upgrade-downgrade", what: "pods of the initial version are torn down by the target", tests: []string{"test/slice.TestTakeOverChaos", "cmd/routed-eni-cni-plugin.TestDelOfThePredecessorsPods"}},
	{number: 27, suite: "cni-upgrade-downgrade", what: "TCP with prefixes before and after", tests: []string{"test/slice.TestTakeOverChaos"}, note: "flows live on; with addresses, which a take-over treats like prefixes"},
	{number: 28, suite: "cni-upgrade-downgrade", what: "UDP, same", tests: []string{"test/slice.TestTakeOverChaos"}, note: "as 27"},
	{number: 29, suite: "core-plugins", what: "18 binaries in /opt/cni/bin", not: notImages + "; those that stand in chains with ours are run (cmd/routed-eni-cni-plugin.TestChains)"},
	{number: 30, suite: "core-plugins", what: "bandwidth plugin, annotated pods", tests: []string{"cmd/routed-eni-cni-plugin.TestChains"}},
	{number: 31, suite: "custom-networking", what: "pods on the ENIConfig's subnet", not: notENICfg},
	{number: 32, suite: "custom-networking", what: "unreachable port", not: notENICfg},
	{number: 33, suite: "custom-networking", what: "egress", not: notENICfg},
	{number: 34, suite: "custom-networking", what: "kubernetes.default", not: notENICfg},
	{number: 35, suite: "custom-networking", what: "no ENIConfig: not ready", not: notENICfg},
	{number: 36, suite: "custom-networking", what: "ENIConfig without security groups", not: notENICfg},
	{number: 37, suite: "custom-networking-sgpp", what: "branch ↔ regular pods", not: notENICfg},
	{number: 38, suite: "custom-networking-sgpp", what: "branch ↔ branch", not: notENICfg},
	{number: 39, suite: "custom-networking-sgpp", what: "closed port", not: notENICfg},
	{number: 40, suite: "custom-networking-sgpp", what: "host networking of branch pods", not: notENICfg},
	{number: 41, suite: "custom-networking-sgpp", what: "trunk ENI's security group", not: notENICfg},
	{number: 42, suite: "pod-eni", what: "regular clients → branch servers", not: notTrunk},
	{number: 43, suite: "pod-eni", what: "branch → branch", not: notTrunk},
	{number: 44, suite: "pod-eni", what: "closed port", not: "security groups are AWS's"},
	{number: 45, suite: "pod-eni", what: "DISABLE_TCP_EARLY_DEMUX=false: one restart", not: notTrunk},
	{number: 46, suite: "pod-eni", what: "DISABLE_TCP_EARLY_DEMUX=true: none", not: notTrunk},
	{number: 47, suite: "pod-eni", what: "host networking, prefix vlan", tests: []string{"pkg/networkutils/podnet.TestBranchMessages", "pkg/networkutils/podnet.TestBranchTeardown"}, note: "the plugin's part; ipamd has no trunk ENIs yet"},
	{number: 48, suite: "eni-trunking", what: "ENABLE_POD_ENI on an instance without trunks", not: notTrunk},
	{number: 49, suite: "eni-subnet-discovery", what: "tagged subnet", tests: []string{"test/slice.TestSecondSubnet"}},
	{number: 50, suite: "eni-subnet-discovery", what: "no right to DescribeSubnets", tests: []string{"pkg/ipamd.TestDescribeSubnetsDenied"}},
	{number: 51, suite: "eni-subnet-discovery", what: "mistyped tag", tests: []string{"pkg/ipamd.TestSubnetTags"}},
	{number: 52, suite: "eni-subnet-discovery", what: "discovery off", check: discoveryOff},
	{number: 53, suite: "eni-subnet-discovery/enhanced", what: "primary subnet tagged 0", tests: []string{"pkg/ipamd.TestExcludedFromTheStart"}},
	{number: 54, suite: "eni-subnet-discovery/enhanced", what: "tag of the cluster", tests: []string{"pkg/ipamd.TestSubnetTags"}},
	{number: 55, suite: "eni-subnet-discovery/enhanced", what: "old tag of another cluster on the primary subnet", tests: []string{"pkg/ipamd.TestSubnetTags"}},
	{number: 56, suite: "eni-subnet-discovery/enhanced", what: "new tag of another cluster on the primary subnet, no cni tag", tests: []string{"pkg/ipamd.TestSubnetTags"}},
	{number: 57, suite: "eni-subnet-discovery/primary_exclusion", what: "primary subnet excluded while pods run", tests: []string{"pkg/ipamd.TestExcludedPrimarySubnet"}},
	{number: 58, suite: "eni-subnet-discovery/primary_exclusion", what: "with prefixes", tests: []string{"pkg/ipamd.TestExcludedPrimarySubnet"}},
	{number: 59, suite: "eni-subnet-discovery/secondary_exclusion", what: "secondary subnet excluded while pods run", tests: []string{"pkg/ipamd.TestSubnetTags"}, note: "the choice only"},
	{number: 60, suite: "eni-subnet-discovery/secondary_exclusion", what: "with prefixes", tests: []string{"pkg/ipamd.TestSubnetTags"}, note: "the choice only"},
	{number: 61, suite: "eni-subnet-discovery/secondary_exclusion", what: "untagged subnet", tests: []string{"pkg/ipamd.TestSubnetTags"}},
	{number: 62, suite: "eni-subnet-discovery/secondary_exclusion", what: "old tag of another cluster", tests: []string{"pkg/ipamd.TestSubnetTags"}},
	{number: 63, suite: "eni-subnet-discovery/secondary_exclusion", what: "new tag of another cluster", tests: []string{"pkg/ipamd.TestSubnetTags"}},
	{number: 64, suite: "ipamd/eni_ip_leak", what: "half of the pods come and go: ENIs and addresses as at the start", check: noLeak},
	{number: 65, suite: "ipamd/eni_tag", what: "ADDITIONAL_ENI_TAGS", check: tags},
	{number: 66, suite: "ipamd/eni_tag", what: "CLUSTER_NAME", check: tags},
	{number: 67, suite: "ipamd/introspection", what: "default address, DISABLE_INTROSPECTION", check: introspection},
	{number: 68, suite: "ipamd/introspection", what: "INTROSPECTION_BIND_ADDRESS", check: introspectionAddress},
	{number: 69, suite: "ipamd/metrics", what: "DISABLE_METRICS", check: metricsPort},
	{number: 70, suite: "ipamd/event", what: "MissingIAMPermissions", tests: []string{"test/slice.TestAPIServer", "pkg/ipamd/kube.TestMissingPermissions", "test/slice.TestDeniedActions"}},
	{number: 71, suite: "ipamd/warm_target", what: "WARM_ENI_TARGET=3, MAX_ENI=2", check: warmTargets(71)},
	{number: 72, suite: "ipamd/warm_target", what: "WARM_ENI_TARGET=3", check: warmTargets(72)},
	{number: 73, suite: "ipamd/warm_target", what: "WARM_ENI_TARGET=2", check: warmTargets(73)},
	{number: 74, suite: "ipamd/warm_target", what: "WARM_IP_TARGET=2", check: warmTargets(74)},
	{number: 75, suite: "ipamd/warm_target", what: "WARM_IP_TARGET=16", check: warmTargets(75)},
	{number: 76, suite: "ipamd/warm_target", what: "MINIMUM_IP_TARGET=2", check: warmTargets(76)},
	{number: 77, suite: "ipamd/warm_target", what: "MINIMUM_IP_TARGET=16", check: warmTargets(77)},
	{number: 78, suite: "ipamd/warm_target", what: "MINIMUM_IP_TARGET=6, WARM_IP_TARGET=10", check: warmTargets(78)},
	{number: 84, suite: "ipamd/warm_target PD", what: "WARM_PREFIX_TARGET=2", check: warmTargets(84)},
	{number: 90, suite: "ipv6/host_networking", what: "set-up and teardown", tests: []string{"cmd/routed-eni-cni-plugin.TestRulesPerPod", "pkg/networkutils/hostnet.TestGolden"}, note: "without ipamd's IPv6 mode, which comes later"},
	{number: 91, suite: "ipv6/host_networking", what: "ENI MTU", tests: []string{"cmd/routed-eni-cni-plugin.TestPodMTU"}, note: "see 2"},
	{number: 92, suite: "ipv6/host_networking", what: "POD_MTU and veth prefix", tests: []string{"cmd/routed-eni-cni-plugin.TestPodMTU", "cmd/routed-eni-cni-plugin.TestVethPrefixChange"}, note: "see 3"},
	{number: 93, suite: "ipv6/host_networking", what: "the tester fails", not: "the tester is that of 4"},
	{number: 94, suite: "ipv6/pod_traffic", what: "TCP with prefixes", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: with a stand-in for ipamd's IPv6 mode, which comes later"},
	{number: 95, suite: "ipv6/pod_traffic", what: "UDP with prefixes", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: with a stand-in for ipamd's IPv6 mode, which comes later"},
	{number: 96, suite: "ipv6/service_connectivity", what: "ClusterIP", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: with a stand-in for ipamd's IPv6 mode, which comes later"},
	{number: 97, suite: "ipv6/service_connectivity", what: "NodePort", tests: []string{"test/matrix.TestEveryPathIsThere"}, note: "make matrix: with a stand-in for ipamd's IPv6 mode, which comes later"},
	{number: 98, suite: "snat", what: "no external source NAT: internet from a private subnet", check: sourceNAT},
	{number: 99, suite: "snat", what: "external source NAT", check: externalSourceNAT},
	{number: 100, suite: "snat", what: "AWS_VPC_K8S_CNI_RANDOMIZESNAT prng → none", check: randomizeSNAT, note: "by intent: the rule is nftables', the ranges are a set"},
	{number: 101, suite: "snat", what: "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", check: excludedFromSNAT},
	{number: 124, suite: "metrics-helper", what: "CloudWatch has addReqCount", not: "CloudWatch is AWS's; the metrics' names are held by pkg/ipamd/metrics.TestUpstreamsMetrics"},
	{number: 125, suite: "multus", what: "logs of multus pods", not: "needs Multus' image"},
	{number: 126, suite: "az-traffic", what: "a node in every zone", check: zones},
	{number: 127, suite: "az-traffic", what: "TCP between zones", check: betweenZones},
	{number: 128, suite: "az-traffic", what: "API server from every zone", not: "needs a control plane behind a load balancer"},
	{number: 129, suite: "kOps", what: "conformance on Ubuntu", not: "needs kOps and a cluster"},
	{number: 130, suite: "perf scripts", what: "scale-up of 130, 730 and 5,000 pods", tests: []string{"test/slice.TestHundredTenPodsByPrefixes", "lab/fleet.TestAFleetRestartsFromItsJournals"}, note: "ADD at 700 pods: make bench; 5,000 nodes: make fleet"},
}

func init() {
	for i, what := range []string{"WARM_IP_TARGET=2", "WARM_IP_TARGET=16", "MINIMUM_IP_TARGET=2", "MINIMUM_IP_TARGET=16", "MINIMUM_IP_TARGET=6, WARM_IP_TARGET=10"} {
		table = append(table, row{number: 79 + i, suite: "ipamd/warm_target PD", what: what, check: warmTargets(79 + i)})
	}
	for i := 85; i <= 89; i++ {
		table = append(table, row{number: i, suite: "ipamd/warm_target PD", what: "mixed WARM_IP_TARGET, MINIMUM_IP_TARGET and WARM_PREFIX_TARGET", tests: []string{"pkg/ipamd/warmpool.TestUpstreamAcceptance"}})
	}
	for i := 102; i <= 123; i++ {
		table = append(table, row{number: i, suite: "calico", what: "\"stars\" demo", not: notCalico})
	}
}

// how is the last column.
func (r row) how() string {
	var how string
	switch {
	case r.check != nil:
		how = "run here"
	case r.tests != nil:
		how = strings.Join(r.tests, ", ")
	default:
		how = "not run: " + r.not
	}
	if r.note != "" {
		how += fmt.Sprintf(" (%s)", r.note)
	}
	return how
}
