package hostnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// foreign lays down what other programs keep on a node, close to ours, and returns what it looks like.
func (n *node) foreign() string {
	n.t.Helper()
	for _, script := range []string{
		"ip link add eni0123456789a type veth peer podside && ip link set eni0123456789a up && ip link set podside up",
		"ip link set eth1 up",
		// A pod, as the plugin wires it.
		"ip route add 10.0.1.11 dev eni0123456789a scope link table 5120",
		"ip route add 10.0.1.31 dev eni0123456789a scope link table 5120 proto 89",
		"ip route add 10.0.1.11 dev eni0123456789a scope link",
		// Somebody else's, at our priorities or next to them.
		"ip rule add priority 512 to 10.0.1.11 lookup main",
		"ip rule add priority 1536 from 10.0.1.31 lookup 2",
		"ip rule add priority 1000 fwmark 0x200/0x200 lookup 77 proto 99",
		"ip rule add priority 1024 fwmark 0x400/0xc00 lookup main",
		"ip rule add priority 1536 from all iif eth1 lookup 77",
		"ip rule add priority 32765 from 192.0.2.1 lookup 77",
		"ip -6 rule add priority 512 to 2001:db8:10:1:a::1 lookup main",
		"ip -6 rule add priority 1536 from 2001:db8:10:1:b::1 lookup 2",
		"ip -6 rule add priority 1024 fwmark 0x400/0xc00 lookup main",
		"ip -6 rule add priority 32765 from 2001:db8:77::1 lookup 77",
		"ip -6 rule add priority 600 from 2001:db8:77::/64 unreachable proto 89",
		"ip rule add priority 600 from 192.0.2.0/24 unreachable proto 89",
		// Routes in and around our tables.
		"ip route add 192.0.2.0/24 dev eth1 scope link table 2 proto static",
		"ip route add default via 10.0.1.1 dev eth0 table 77 proto static",
		"ip route add default via 10.0.1.1 dev eth0 table 150 proto 89",
		"ip route add 169.254.169.254 dev eth0 scope link proto dhcp",
		"ip route add unreachable 10.9.9.9 table 5121 proto static",
		"ip -6 route add 2001:db8:10:1:a::1 dev eni0123456789a table 5120 proto 89",
		"ip -6 route add 2001:db8:10:1:a::1 dev eni0123456789a",
		"ip -6 route add 2001:db8:77::/64 dev eth1 table 2 proto static",
		"ip -6 route add default via fe80:ec2::1 dev eth0 table 150 proto 89",
		"ip -6 route add unreachable 2001:db8:79::9 table 5121 proto static",
		`nft -f - <<'END'
table ip aws-cni {
	chain snat-mark {
		counter packets 0 bytes 0 ip daddr 10.0.0.0/16 return
	}
}
table ip kube-proxy {
	set exempt {
		type ipv4_addr
		elements = { 10.9.0.1 }
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 10.9.0.1 dnat to 10.0.1.11
	}
}
table ip6 kube-proxy {
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip6 daddr 2001:db8:9::1 dnat to 2001:db8:10:1:a::1
	}
}
table inet vpc-cni {
	chain other {
	}
}
END`,
	} {
		n.Run("sh", "-e", "-c", script)
	}
	return n.foreignState()
}

// ownLines are the lines of a listing that Apply may change; the rest is not ours.
var ownRules = []string{"0:\tfrom all lookup local", "20:\tfrom all lookup local", "0:\tfrom fe80:ec2::1 ipproto ipv6-icmp", "512:\tfrom all lookup 5120", "513:\tfrom all lookup 5121", "1024:\tfrom all fwmark 0x80/0x80", "1024:\tfrom all fwmark 0x10/0x10",
	"1535:", "1537:\tfrom all fwmark", "32765:\tfrom 10.0.1.30", "32765:\tfrom 100.64.",
	"32765:\tfrom 2001:db8:10:1::30", "32765:\tfrom 2001:db8:10:2::50"}

func (n *node) foreignState() string {
	n.t.Helper()
	var b strings.Builder
	for _, line := range strings.Split(n.Run("sh", "-c", "ip -details rule; ip -6 -details rule"), "\n") {
		if !hasPrefix(line, ownRules) {
			fmt.Fprintln(&b, line)
		}
	}
	for _, line := range strings.Split(n.Run("sh", "-c", "ip -details route show table all; ip -6 -details route show table all"), "\n") {
		f := strings.Fields(line)
		own := strings.Contains(line, "proto 89") && (hasPrefix(line, []string{"unreachable"}) ||
			strings.Contains(line, "table 2 ") || strings.Contains(line, "table 3 ") || strings.Contains(line, "table 10102 "))
		// The kernel's own routes follow addresses and link state.
		if len(f) > 0 && !own && !strings.Contains(line, "proto kernel") {
			fmt.Fprintln(&b, line)
		}
	}
	for _, t := range []string{"ip aws-cni", "ip kube-proxy", "ip6 kube-proxy", "inet vpc-cni"} {
		b.WriteString(n.Run("sh", "-c", "nft list table "+t))
	}
	return b.String()
}

func hasPrefix(s string, list []string) bool {
	for _, p := range list {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// ruleSet is the part of a golden file that does not depend on what was there before: not the links, whose settings
// outlive the ENIs' time in the Config.
func ruleSet(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(b), "# links\n")
	return text
}

func TestTransitions(t *testing.T) {
	t.Parallel()
	n := newNode(t, 4)
	list := scenarios()
	step := func(s scenario) {
		t.Helper()
		n.applyTwice(s.cfg)
		if got, want := n.state(), ruleSet(t, s.name); got != want {
			t.Fatalf("%s:\n%s\n-- got --\n%s", s.name, firstDifference(want, got), got)
		}
	}
	for _, s := range list {
		step(s)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3 * len(list) {
		step(list[r.IntN(len(list))])
	}
	if err := n.host.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if state := n.state(); strings.Contains(state, "proto 89") || strings.Contains(state, "nft") {
		t.Fatalf("left behind:\n%s", state)
	}
	step(list[1])
}

// The state that a Config leads to does not depend on what was there before, whatever families, ENIs and addresses come
// and go.
func TestRandomTransitions(t *testing.T) {
	t.Parallel()
	const links, steps = 5, 8
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	all := func(n *node) string {
		var b strings.Builder
		for _, family := range []string{"-4", "-6"} {
			b.WriteString(sortRules(n.Run("ip", family, "-details", "rule")))
			routes := strings.Split(n.Run("ip", family, "-details", "route", "show", "table", "all", "proto", "89"), "\n")
			slices.Sort(routes)
			b.WriteString(strings.Join(routes, "\n") + "\n")
		}
		for _, family := range []string{"ip", "ip6"} {
			b.WriteString(sortBlocks(n.Run("sh", "-c", "nft list table "+family+" vpc-cni 2>/dev/null || true")) + "\n")
		}
		return b.String()
	}
	n := newNode(t, links)
	for range steps {
		cfg := randomConfig(r, links, 12)
		n.applyTwice(cfg)
		fresh := newNode(t, links)
		fresh.apply(cfg)
		if got, want := all(n), all(fresh); got != want {
			t.Fatalf("not as on a fresh node: %s\n-- Config --\n%+v", firstDifference(want, got), cfg)
		}
	}
}

func TestForeignStateIsNotTouched(t *testing.T) {
	t.Parallel()
	n := newNode(t, 4)
	before := n.foreign()
	for _, s := range scenarios() {
		n.applyTwice(s.cfg)
		if after := n.foreignState(); after != before {
			t.Fatalf("after %s:\n%s", s.name, firstDifference(before, after))
		}
	}
	if err := n.host.Cleanup(context.Background()); err != nil {
		t.Fatal(err)
	}
	if after := n.foreignState(); after != before {
		t.Fatalf("after Cleanup:\n%s", firstDifference(before, after))
	}
}

// What v1.23 of the predecessor leaves on a node is taken over without a second copy.
func TestPredecessorsStateIsAdopted(t *testing.T) {
	t.Parallel()
	n := newNode(t, 3)
	n.Run("sh", "-e", "-c", `
		ip address add 10.0.1.30/24 dev eth1; ip link set eth1 up; ip route delete 10.0.1.0/24 dev eth1
		ip address add 100.64.2.10/24 dev eth2; ip link set eth2 up
		ip route add 10.0.1.1 dev eth1 scope link table 2; ip route add default via 10.0.1.1 dev eth1 table 2
		ip rule add priority 1024 fwmark 0x80/0x80 lookup main
		ip rule add priority 1535 to 192.0.2.0/24 lookup main
		ip rule add priority 32765 from 10.0.1.30 lookup 2
		ip rule add priority 32765 from 10.0.1.77 lookup 2`)
	cfg := config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.31"), secondaryENI(2, "100.64.2.11"))
	n.applyTwice(cfg)

	rules := n.Run("ip", "-details", "rule")
	for rule, want := range map[string]int{
		"1024:\tfrom all fwmark 0x80/0x80 lookup main": 1,
		"32765:\tfrom 10.0.1.30 lookup 2":              1,
		"32765:\tfrom 10.0.1.77":                       0, // says otherwise about a table of ours
		"1535:":                                        0, // not configured any more
	} {
		if got := strings.Count(rules, rule); got != want {
			t.Errorf("%d times %q, want %d, in\n%s", got, rule, want, rules)
		}
	}
	if routes := n.Run("ip", "-details", "route", "show", "table", "2"); strings.Count(routes, "proto 89") != 2 {
		t.Errorf("table 2 is not ours:\n%s", routes)
	}
	if main := n.Run("ip", "route"); strings.Contains(main, "eth1") || strings.Contains(main, "eth2") {
		t.Errorf("connected routes in main:\n%s", main)
	}
}

// Damage that other programs do is repaired by the next Apply, and a pods' address that a DHCP client or
// amazon-ec2-net-utils gave the link is taken off it.
func TestRepair(t *testing.T) {
	t.Parallel()
	repairs(t, "three-enis", map[string]string{
		"rule deleted":            "ip rule delete priority 512",
		"eni rule deleted":        "ip rule delete priority 1537 fwmark 1/0x7f lookup 2",
		"table flushed":           "ip route flush table 2",
		"unreachable deleted":     "ip route flush table 5121",
		"gateway changed":         "ip route replace default via 10.0.1.1 dev eth1 metric 0 mtu 1400 table 2",
		"wrong route type":        "ip route replace blackhole 10.0.1.12 metric 4294967295 table 5121",
		"link down":               "ip link set eth1 down",
		"address gone":            "ip address flush dev eth1",
		"pods' address on a link": "ip address add 10.0.1.31/32 dev eth1",
		"rp_filter strict":        "echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter",
		"mtu":                     "ip link set eth0 mtu 1500",
		"nft table deleted":       "nft delete table ip vpc-cni",
		"ruleset flushed":         "nft flush ruleset",
		"chain flushed":           "nft flush chain ip vpc-cni prerouting",
		"rule inserted":           "nft insert rule ip vpc-cni pod_out counter accept",
		"rule appended":           "nft add rule ip vpc-cni eni_1 drop",
		"element deleted":         "nft delete element ip vpc-cni eni_src '{ 10.0.1.31 }'",
		"element redirected": "nft delete element ip vpc-cni eni_src '{ 10.0.1.31 }';" +
			"nft add element ip vpc-cni eni_src '{ 10.0.1.31 : jump eni_2 }'",
		"set flushed":    "nft flush set ip vpc-cni exempt",
		"chain added":    "nft add chain ip vpc-cni evil '{ type filter hook input priority 0; policy drop; }'",
		"set added":      "nft add set ip vpc-cni evil '{ type ipv4_addr; }'",
		"policy changed": "nft chain ip vpc-cni prerouting '{ policy drop; }'",
		"set of another kind": "nft flush chain ip vpc-cni postrouting; nft flush chain ip vpc-cni pod_out;" +
			"nft delete set ip vpc-cni exempt; nft add set ip vpc-cni exempt '{ type ipv4_addr; }'",
		"chain of another priority": "nft delete chain ip vpc-cni postrouting;" +
			"nft add chain ip vpc-cni postrouting '{ type nat hook postrouting priority 90; }'",
	})
	repairs(t, "ipv6-strict", map[string]string{
		"IPv6 rule deleted":            "ip -6 rule delete priority 512",
		"IPv6 eni rule deleted":        "ip -6 rule delete priority 1537 fwmark 1/0x7f lookup 2",
		"IPv6 table flushed":           "ip -6 route flush table 2",
		"IPv6 unreachable deleted":     "ip -6 route flush table 5121",
		"IPv6 gateway changed":         "ip -6 route replace default via fe80::77 dev eth1 table 2",
		"IPv6 gateway of another kind": "ip -6 route flush table 2; ip -6 route add blackhole default table 2",
		"IPv6 link down":               "ip link set eth1 down",
		"IPv6 address gone":            "ip -6 address flush dev eth1 scope global",
		"IPv6 pods' address on a link": "ip -6 address add 2001:db8:10:1:b::1/128 dev eth1 nodad",
		"IPv6 connected route":         "ip -6 route append 2001:db8:10:1::/64 dev eth1 proto kernel metric 256",
		"router advertised by eth1":    "ip -6 route add default via fe80::77 dev eth1 proto ra metric 100",
		"prefix advertised on eth1":    "ip -6 route add 2001:db8:10:1::/64 dev eth1 proto ra metric 100",
		"IPv6 nft table deleted":       "nft delete table ip6 vpc-cni",
		"IPv6 ruleset flushed":         "nft flush ruleset",
		"IPv6 chain flushed":           "nft flush chain ip6 vpc-cni source_check",
		"IPv6 element deleted":         "nft delete element ip6 vpc-cni eni_src '{ 2001:db8:10:2::11 }'",
		"IPv6 set of another kind": "nft flush chain ip6 vpc-cni prerouting; nft delete map ip6 vpc-cni eni_src;" +
			"nft add map ip6 vpc-cni eni_src '{ type ipv6_addr : verdict; }'",
		"local rule deleted":         "ip -6 rule delete priority 20",
		"local rule at home":         "ip -6 rule add priority 0 lookup local",
		"local rule moved home":      "ip -6 rule add priority 0 lookup local; ip -6 rule delete priority 20",
		"routers' answers go astray": "ip -6 rule delete priority 0 from fe80:ec2::1",
	})
}

// repairs does each damage to a scenario's state and has it repaired.
func repairs(t *testing.T, name string, damage map[string]string) {
	list := scenarios()
	cfg := list[slices.IndexFunc(list, func(s scenario) bool { return s.name == name })].cfg
	for name, script := range damage {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 4)
			n.apply(cfg)
			before := n.state() + n.linkState()
			n.Run("sh", "-c", script)
			if after := n.state() + n.linkState(); after == before {
				t.Fatal("the damage does not show")
			}
			n.applyTwice(cfg)
			if after := n.state() + n.linkState(); after != before {
				t.Fatalf("not repaired:\n%s", firstDifference(before, after))
			}
		})
	}
}
