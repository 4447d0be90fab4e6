// Package upstream writes down what versions of amazon-vpc-cni-k8s leave in a node's network, as shell scripts, for the
// tests that take a node over from them and hand it back.
package upstream

import (
	"fmt"
	"net/netip"
	"strings"
)

// Version is a version whose state differs from that of the others.
type Version string

// The versions. V119 keeps its marks in chains of iptables' nft backend, V122 in those of the legacy backend, V123 in
// an nftables table of its own.
const (
	V119 Version = "v1.19"
	V122 Version = "v1.22"
	V123 Version = "v1.23"
)

// Versions are all of them.
var Versions = []Version{V119, V122, V123}

// Node is the node that the state is for.
type Node struct {
	PrimaryLink string
	PrimaryIP   netip.Addr
	VPC         []netip.Prefix
	ENIs        []ENI // secondary ones
	Pods        []Pod
}

// ENI is a secondary ENI.
type ENI struct {
	Link   string
	IP     netip.Addr
	Subnet netip.Prefix
	Table  int
}

// Pod is a pod with its host veth, which must be there.
type Pod struct {
	IP    netip.Addr
	Veth  string
	Table int // 254 on the primary ENI
}

// iptables is the command of the version's backend.
func (v Version) iptables() string {
	if v == V122 {
		return "iptables-legacy -w"
	}
	return "iptables-nft -w"
}

// Script lays the whole state down.
func (v Version) Script(n Node) string {
	return v.ENIScript(n.ENIs...) + v.HostScript(n) + v.PodScript(n.Pods...)
}

// ENIScript is what is done for ENIs that were attached.
func (v Version) ENIScript(enis ...ENI) string {
	var b strings.Builder
	for _, e := range enis {
		gw := e.Subnet.Masked().Addr().Next()
		// In one process, as there: each of these on its own would cost pods several times the packets on a busy machine.
		// What may fail is the connected route, which may be gone, and the rule, which may be there.
		fmt.Fprintf(&b, `
ip link set %[1]s mtu 9001 up
ip -force -batch - >/dev/null 2>&1 <<'END' || true
address flush dev %[1]s scope global
address add %[2]s/%[3]d dev %[1]s
route replace %[4]s dev %[1]s scope link table %[5]d
route replace default via %[4]s dev %[1]s table %[5]d
route del %[6]s dev %[1]s src %[2]s scope link
rule add from %[2]s lookup %[5]d priority 32765
END
`, e.Link, e.IP, e.Subnet.Bits(), gw, e.Table, e.Subnet.Masked())
	}
	return b.String()
}

// HostScript is what is done for the host as a whole, at every start.
func (v Version) HostScript(n Node) string {
	var b strings.Builder
	ipt := v.iptables()
	fmt.Fprintf(&b, `
ip rule del fwmark 0x80/0x80 lookup main priority 1024 2>/dev/null || true
ip rule add fwmark 0x80/0x80 lookup main priority 1024
%[1]s -t nat -N AWS-SNAT-CHAIN-0 2>/dev/null || %[1]s -t nat -F AWS-SNAT-CHAIN-0
%[1]s -t nat -C POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0 2>/dev/null ||
	%[1]s -t nat -A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
`, ipt)
	for _, p := range n.VPC {
		fmt.Fprintf(&b, "%s -t nat -I AWS-SNAT-CHAIN-0 1 -d %s -m comment --comment \"AWS SNAT CHAIN\" -j RETURN\n", ipt, p)
	}
	fmt.Fprintf(&b, "%s -t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment \"AWS, SNAT\" -m addrtype ! --dst-type LOCAL -j SNAT --to-source %s --random-fully\n",
		ipt, n.PrimaryIP)
	for _, rule := range []string{
		"PREROUTING -i " + n.PrimaryLink + " -m comment --comment \"AWS, primary ENI\" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80",
		"PREROUTING -i eni+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
		"PREROUTING -i vlan+ -m comment --comment \"AWS, primary ENI\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
	} {
		fmt.Fprintf(&b, "%[1]s -t mangle -C %[2]s 2>/dev/null || %[1]s -t mangle -A %[2]s\n", ipt, rule)
	}
	if v == V123 {
		return b.String() + markTable(n.VPC)
	}
	fmt.Fprintf(&b, `
%[1]s -t nat -N AWS-CONNMARK-CHAIN-0 2>/dev/null || %[1]s -t nat -F AWS-CONNMARK-CHAIN-0
%[1]s -t nat -D PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --mask 0x80 2>/dev/null || true
%[1]s -t nat -C PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0 2>/dev/null ||
	%[1]s -t nat -A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
%[1]s -t nat -A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --mask 0x80
`, ipt)
	for _, p := range n.VPC {
		fmt.Fprintf(&b, "%s -t nat -I AWS-CONNMARK-CHAIN-0 1 -d %s -m comment --comment \"AWS CONNMARK CHAIN\" -j RETURN\n", ipt, p)
	}
	fmt.Fprintf(&b, "%s -t nat -A AWS-CONNMARK-CHAIN-0 -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --set-xmark 0x80/0x80\n", ipt)
	return b.String()
}

func markTable(vpc []netip.Prefix) string {
	var b strings.Builder
	b.WriteString(`
nft -f - <<'END'
table ip aws-cni
delete table ip aws-cni
table ip aws-cni {
	chain snat-mark {
`)
	for _, p := range vpc {
		fmt.Fprintf(&b, "\t\tcounter ip daddr %s return\n", p)
	}
	b.WriteString(`		counter ct mark set ct mark | 0x80
	}
	chain nat-prerouting {
		type nat hook prerouting priority -90; policy accept;
		fib daddr type local return
		iifname "eni*" counter jump snat-mark
		counter meta mark set ct mark & 0x80
	}
}
END
`)
	return b.String()
}

// PodScript is what ADD writes for pods.
func (v Version) PodScript(pods ...Pod) string {
	var b strings.Builder
	for _, p := range pods {
		fmt.Fprintf(&b, "ip route replace %s dev %s scope link\nip rule add to %s lookup main priority 512 2>/dev/null || true\n", p.IP, p.Veth, p.IP)
		if p.Table != 254 {
			fmt.Fprintf(&b, "ip rule add from %s lookup %d priority 1536 2>/dev/null || true\n", p.IP, p.Table)
		}
	}
	return b.String()
}

// DelScript is what DEL does for pods.
func (v Version) DelScript(pods ...Pod) string {
	var b strings.Builder
	for _, p := range pods {
		fmt.Fprintf(&b, "ip rule del to %s lookup main priority 512 2>/dev/null || true\n", p.IP)
		fmt.Fprintf(&b, "while ip rule del from %s priority 1536 2>/dev/null; do :; done\n", p.IP)
		fmt.Fprintf(&b, "ip route del %s scope link table main 2>/dev/null || true\n", p.IP)
	}
	return b.String()
}
