package hostnet

import (
	"fmt"
	"testing"

	"vpccni/pkg/networkutils/nstest"
)

// branchPod is where a pod with a branch ENI is.
type branchPod struct {
	plan
	addr, gateway string
	config        func(*vpc) Config
}

// branchPods are one of each family.
var branchPods = []branchPod{
	{plan4, "10.0.3.200", "10.0.3.1", (*vpc).config},
	{plan6, "2001:db8:10:3::200", "fe80:ec2::1", (*vpc).config6},
}

// flag is what ip wants to hear of the family.
func (p plan) flag() string { return map[string]string{"ip": "-4", "ip6": "-6"}[p.name] }

// branch wires a pod with a branch ENI as the plugin does, on a link that stands for the trunk's VLAN; the VPC counts its
// packets.
func (v *vpc) branch(p branchPod, mode BranchMode) *nstest.NS {
	v.t.Helper()
	pod := nstest.New(v.t)
	veth, rules := "vlan0000000000c", `
		ip $f route add $pod dev $veth table 105
		ip $f rule add priority 10 iif vlan.eth.5 lookup 105
		ip $f rule add priority 10 iif $veth lookup 105`
	if mode == BranchStandard {
		veth, rules = "eni0000000000c", `
		ip $f route add $pod dev $veth table 5120
		ip $f route add $pod dev $veth
		ip $f rule add priority 1536 from $pod lookup 105`
	}
	v.Run("sh", "-e", "-c", fmt.Sprintf(`
		router=%s netns=%s pod=%s gateway=%s f=%s veth=%s
		ip link add vlan.eth.5 address 02:00:00:00:00:55 type veth peer name rv netns $router
		ip link add $veth address 02:00:00:00:01:01 type veth peer name eth0 address 02:00:00:00:01:02 netns $netns
		echo 2 > /proc/sys/net/ipv4/conf/vlan.eth.5/rp_filter
		ip link set vlan.eth.5 up; ip link set $veth up
		ip neigh add $pod lladdr 02:00:00:00:01:02 dev $veth
		ip $f route add $gateway dev vlan.eth.5 table 105
		ip $f route add default via $gateway dev vlan.eth.5 table 105`, v.router.Path(), pod.Path(), p.addr, p.gateway, p.flag(), veth)+rules)
	v.router.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link set rv up; ip address add %[1]s dev rv; ip %[3]s route add %[2]s dev rv; ip neigh add %[2]s lladdr 02:00:00:00:00:55 dev rv
		nft 'add counter ip vpc branch; add rule ip vpc source_check iifname rv counter name branch'
		nft 'add counter ip6 vpc branch; insert rule ip6 vpc source_check iifname rv ip6 saddr != fe80::/10 counter name branch'`,
		map[string]string{"ip": p.gateway + "/32", "ip6": p.gateway + "/64 nodad"}[p.name], p.addr, p.flag()))
	gateway := map[string]string{"ip": "169.254.1.1", "ip6": "fe80::1"}[p.name]
	pod.Run("sh", "-e", "-c", fmt.Sprintf(`
		echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
		ip link set eth0 up; ip %[3]s address add %[1]s dev eth0 $([ "%[3]s" = -4 ] || echo nodad)
		ip %[3]s route add %[2]s dev eth0; ip %[3]s route add default via %[2]s dev eth0
		ip neigh add %[2]s lladdr 02:00:00:00:01:01 dev eth0`, p.addr, gateway, p.flag()))
	serve(v.t, pod, on(p.addr, 80))
	return pod
}

// In standard mode a branch ENI's pod has its node as a neighbour, and what must leave by the primary ENI does so: source
// NAT, and replies to a NodePort. The rest leaves by the branch ENI.
func TestStandardPodsPackets(t *testing.T) {
	for _, p := range branchPods {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			v := newVPC(t, 1)
			v.applyTwice(with(p.config(v), func(c *Config) { c.BranchPods = BranchStandard }))
			pod := v.branch(p, BranchStandard)
			v.Run("nft", fmt.Sprintf(`table %[1]s kube-proxy {
				chain prerouting {
					type nat hook prerouting priority dstnat
					%[1]s daddr { %[2]s, %[3]s } tcp dport 30080 dnat to %[4]s
				}
			}`, p.name, p.node, p.eth1, on(p.addr, 80)))
			seenOutside := p.addr
			if p.name == "ip" {
				seenOutside = p.node
			}
			for _, c := range []struct {
				name          string
				ns            *nstest.NS
				from, to, see string
				branch        bool // something of it leaves by the branch ENI
			}{
				{"pod to the VPC", pod, "", on(p.peer, 80), p.addr, true},
				{"pod to the internet", pod, "", on(p.internet, 80), seenOutside, p.name == "ip6"},
				{"VPC to the pod", v.router, p.peer, on(p.addr, 80), p.peer, true},
				{"load balancer outside to the pod", v.router, p.internet, on(p.addr, 80), p.internet, true},
				{"pod to its node", pod, "", on(p.node, 80), p.addr, false},
				{"node to the pod", v.NS, p.node, on(p.addr, 80), p.node, false},
				{"pod on eth1 to the pod", v.pod1, "", on(p.addr, 80), p.pod1, false},
				{"NodePort on eth0 to the pod", v.router, p.internet, on(p.node, 30080), p.internet, false},
			} {
				before := v.counter(p.name, "branch")
				if seen, err := seenBy(c.ns, c.from, c.to); err != nil || seen != c.see {
					t.Errorf("%s: seen as %q, want %q (%v)", c.name, seen, c.see, err)
				}
				if after := v.counter(p.name, "branch"); (after != before) != c.branch {
					t.Errorf("%s: the branch ENI had %s packets before and %s after", c.name, before, after)
				}
			}
			v.noneDropped()
		})
	}
}
