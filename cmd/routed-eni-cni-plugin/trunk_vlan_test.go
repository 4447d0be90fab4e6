//go:build vlan

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/cmd/routed-eni-cni-plugin/plugin"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/nstest"
	"vpccni/rpc"
)

// The tests of this tag need a kernel with VLANs. make vm boots one.

// family is what differs between clusters of one family and the other.
type ipFamily struct {
	name                   string
	flag                   string // of ip
	nodeIP, peer, internet string
	ordinary               string // a pod's on the primary ENI
	branch                 string // a pod's on the branch ENI of a VLAN, as a format
	router                 string // of a VLAN's subnet, as a format
	bits                   int
}

var families = []ipFamily{
	{"IPv4", "-4", "10.0.1.10", "10.0.2.20", "203.0.113.10", "10.0.1.11", "10.0.%d.11", "10.0.%d.1", 32},
	{"IPv6", "-6", "2001:db8:1::10", "2001:db8:2::20", "2001:db8:ffff::10", "2001:db8:1::11", "2001:db8:%d::11", "fe80:ec2::1", 128},
}

func (f ipFamily) pod(vlan int) string { return fmt.Sprintf(f.branch, vlan) }

func (f ipFamily) gateway(vlan int) string {
	if strings.Contains(f.router, "%") {
		return fmt.Sprintf(f.router, vlan)
	}
	return f.router
}

// trunk is a node whose second ENI is a trunk, and a VPC that does with the branch ENIs what AWS does: each of them is a
// VLAN on the trunk's wire, takes nothing from it but its own address, and has a security group, which here refuses
// connections to port 81.
type trunk struct {
	*node
	ipFamily
	vpc *nstest.NS
	net *hostnet.Host
	// What is asked for often comes without a program.
	handle *netlink.Handle
	nft    *nftables.Conn // in the VPC
	bare   string         // what the host has without pods
}

var vlans = []int{7, 8}

func branchMAC(vlan int) string { return fmt.Sprintf("02:00:00:00:01:%02x", vlan) }

func newTrunk(t *testing.T, f ipFamily, mode hostnet.BranchMode) *trunk {
	t.Helper()
	n := &trunk{node: newNode(t, ipamdtest.Config{}), ipFamily: f, vpc: nstest.New(t)}
	n.host.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link del eth0
		for d in all default; do echo 1 >/proc/sys/net/ipv4/conf/$d/rp_filter; done
		echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
		echo 0 >/proc/sys/net/ipv4/tcp_early_demux
		echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; echo 0 >/proc/sys/net/ipv6/conf/default/accept_ra
		ip -batch - <<'END'
link add eth0 address 02:00:00:00:00:01 type veth peer name r0 netns %[1]s
link add eth1 address 02:00:00:00:00:02 mtu 9001 type veth peer name r1 mtu 9001 netns %[1]s
address add 10.0.1.10/24 dev eth0
address add 2001:db8:1::10/64 dev eth0 nodad
link set eth0 up
link set eth1 up
route add default via 10.0.1.1 dev eth0
route add ::/0 via fe80:ec2::1 dev eth0
END`, n.vpc.Path()))
	var script, checks strings.Builder
	script.WriteString(`
		echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
		echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
		ip -batch - <<'END'
link set r0 address 02:00:00:00:00:fe
link set r0 up
link set r1 up
address add 10.0.2.20/32 dev lo
address add 203.0.113.10/32 dev lo
address add 2001:db8:2::20/128 dev lo nodad
address add 2001:db8:ffff::10/128 dev lo nodad
address add 10.0.1.1/32 dev r0
address add fe80:ec2::1/64 dev r0 nodad
`)
	for _, a := range []string{"10.0.1.10", "10.0.1.11", "2001:db8:1::10", "2001:db8:1::11"} {
		fmt.Fprintf(&script, "route add %[1]s dev r0\nneigh add %[1]s lladdr 02:00:00:00:00:01 dev r0\n", a)
	}
	drop := "counter name dropped add @drops { iifname . ip saddr . ip daddr . ip protocol } drop\n"
	drop6 := "counter name dropped add @drops6 { iifname . ip6 saddr . ip6 daddr . meta l4proto } drop\n"
	fmt.Fprintf(&checks, "iifname r0 ip saddr != { 10.0.1.10, 10.0.1.11 } %[1]s"+
		"iifname r0 ip6 saddr != { 2001:db8:1::10, 2001:db8:1::11, ::, fe80::/10 } %[2]s"+
		"iifname r1 meta protocol ip %[1]siifname r1 ip6 saddr != { ::, fe80::/10 } %[2]s", drop, drop6)
	for _, v := range vlans {
		fmt.Fprintf(&script, `link add link r1 name r1.%[1]d type vlan id %[1]d
link set r1.%[1]d up
address add 10.0.%[1]d.1/32 dev r1.%[1]d
address add fe80:ec2::1/64 dev r1.%[1]d nodad
`, v)
		for _, a := range []string{families[0].pod(v), families[1].pod(v)} {
			fmt.Fprintf(&script, "route add %[1]s dev r1.%[2]d\nneigh add %[1]s lladdr %[3]s dev r1.%[2]d\n", a, v, branchMAC(v))
		}
		fmt.Fprintf(&checks, "iifname r1.%[1]d ip saddr != %[2]s %[4]siifname r1.%[1]d ip6 saddr != { %[3]s, ::, fe80::/10 } %[5]s",
			v, families[0].pod(v), families[1].pod(v), drop, drop6)
	}
	script.WriteString("END\n")
	n.vpc.Run("sh", "-e", "-c", script.String())
	n.vpc.Run("sh", "-e", "-c", `nft -f - <<'END'
table inet vpc {
	counter dropped { }
	counter branch { }
	set drops { type ifname . ipv4_addr . ipv4_addr . inet_proto; flags dynamic; size 100; }
	set drops6 { type ifname . ipv6_addr . ipv6_addr . inet_proto; flags dynamic; size 100; }
	chain source { type filter hook prerouting priority raw; iifname "r1.*" meta l4proto tcp counter name branch
		`+checks.String()+`	}
	chain group { type filter hook forward priority 0; oifname "r1.*" tcp dport 81 reject with tcp reset; }
	chain out { type filter hook output priority 0; oifname "r1.*" tcp dport 81 reject with tcp reset; }
}
END`)
	var err error
	if n.net, err = hostnet.New(hostnet.Options{NetNS: n.host.FD(), Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.net.Close)
	if n.handle, err = netlink.NewHandleAt(netns.NsHandle(n.host.FD()), unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.handle.Close)
	if n.nft, err = nftables.New(nftables.WithNetNSFd(n.vpc.FD())); err != nil {
		t.Fatal(err)
	}
	n.apply(mode)
	for ns, addrs := range map[*nstest.NS][]string{n.vpc: {f.peer, f.internet}, n.host: {f.nodeIP}} {
		for _, a := range addrs {
			serve(t, ns, net.JoinHostPort(a, "80"))
		}
	}
	n.bare = n.everything()
	return n
}

// apply has the host as ipamd would.
func (n *trunk) apply(mode hostnet.BranchMode) {
	n.Helper()
	mac := func(s string) net.HardwareAddr { m, _ := net.ParseMAC(s); return m }
	conf := hostnet.Config{
		IPv4: n.bits == 32, IPv6: n.bits == 128, BranchPods: mode, NodePort: true, VethPrefix: "eni",
		PrimaryMark: 0x80, ENIMask: 0x7f, VPCCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("2001:db8::/32")},
		ENIs: []hostnet.ENI{
			{
				ID: "eni-0", MAC: mac("02:00:00:00:00:01"), Primary: true,
				Address: netip.MustParseAddr("10.0.1.10"), SubnetCIDR: netip.MustParsePrefix("10.0.1.0/24"),
				Address6: netip.MustParseAddr("2001:db8:1::10"), SubnetCIDR6: netip.MustParsePrefix("2001:db8:1::/64"),
			},
			{
				ID: "eni-1", MAC: mac("02:00:00:00:00:02"), Device: 1, Trunk: true,
				Address: netip.MustParseAddr("10.0.1.30"), SubnetCIDR: netip.MustParsePrefix("10.0.1.0/24"),
				Address6: netip.MustParseAddr("2001:db8:1::30"), SubnetCIDR6: netip.MustParsePrefix("2001:db8:1::/64"),
			},
		},
	}
	report, err := n.net.Apply(context.Background(), conf)
	if err != nil || len(report.NotReady) > 0 {
		n.Fatalf("%v, %v", report.NotReady, err)
	}
}

// everything is what pods can change on the host. It is asked for so often that programs would take most of the time.
func (n *trunk) everything() string {
	n.Helper()
	var lines []string
	links, err := n.handle.LinkList()
	if err != nil {
		n.Fatal(err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		lines = append(lines, "link "+l.Attrs().Name)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := n.handle.RuleList(family)
		if err != nil {
			n.Fatal(err)
		}
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("rule %d of %d: from %v to %v iif %s mark %#x lookup %d", r.Priority, family, r.Src, r.Dst, r.IifName, r.Mark, r.Table))
		}
		routes, err := n.handle.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			n.Fatal(err)
		}
		for _, r := range routes {
			if r.Protocol != unix.RTPROT_KERNEL {
				lines = append(lines, fmt.Sprintf("route of %d to %v via %v dev %s table %d", family, r.Dst, r.Gw, names[r.LinkIndex], r.Table))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// eventuallyBare waits until a namespace's end has taken its veth away, and compares.
func (n *trunk) eventuallyBare(what string) {
	n.Helper()
	var got string
	for range 200 {
		if got = n.everything(); got == n.bare {
			return
		}
		pause := time.NewTimer(50 * time.Millisecond)
		<-pause.C
	}
	n.Errorf("%s leaves\n%s\nwant\n%s", what, got, n.bare)
}

// on makes the next ADDs pods of a branch ENI, 0 for ordinary ones.
func (n *trunk) on(vlan int) {
	link, err := n.handle.LinkByName("eth1")
	if err != nil {
		n.Fatal(err)
	}
	n.ipamd.Configure(func(c *ipamdtest.Config) {
		c.Branch = ipamdtest.Branch{}
		addr := n.ordinary
		if vlan != 0 {
			c.Branch = ipamdtest.Branch{VLAN: int32(vlan), MAC: branchMAC(vlan), Gateway: n.gateway(vlan), Trunk: int32(link.Attrs().Index)}
			addr = n.pod(vlan)
		}
		c.Edit = func(r *rpc.AddNetworkReply) {
			m := r.GetIPAllocationMetadata()[0]
			m.IPv4Addr, m.IPv6Addr = addr, ""
			if n.bits == 128 {
				m.IPv4Addr, m.IPv6Addr = "", addr
			}
		}
	})
}

// do executes one of the plugin's verbs in this process: a program takes a second to start in an emulated machine.
func (n *trunk) do(verb string, s sandbox) (string, error) {
	var out strings.Builder
	p := &plugin.Plugin{Version: "test", Stdout: &out}
	args := &skel.CmdArgs{
		ContainerID: s.id, Netns: s.netns, IfName: "eth0", StdinData: []byte(s.conf),
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + s.pod + ";K8S_POD_UID=uid-" + s.pod,
	}
	err := n.host.Do(func() error {
		ctx, cancel := context.WithTimeout(n.Context(), time.Minute)
		defer cancel()
		return map[string]func(context.Context, *skel.CmdArgs) error{"ADD": p.Add, "DEL": p.Del, "CHECK": p.Check}[verb](ctx, args)
	})
	return out.String(), err
}

func (n *trunk) mustDo(verb string, s sandbox) string {
	n.Helper()
	out, err := n.do(verb, s)
	if err != nil {
		n.Fatalf("%s of %s: %v", verb, s.id, err)
	}
	return out
}

// confOf is the plugin's configuration with an enforcing mode, and a result of ADD in it.
func (n *trunk) confOf(mode, prev string) string {
	conf := fmt.Sprintf(`{"cniVersion":"0.4.0","name":"aws-cni","type":"aws-cni","podSGEnforcingMode":%q,"pluginLogFile":%q`, mode, n.log)
	if prev != "" {
		conf += `,"prevResult":` + prev
	}
	return conf + "}"
}

// newPod starts a pod on a branch ENI, with a server on ports 80 and 81.
func (n *trunk) newPod(t *testing.T, id, name, mode string, vlan int) (sandbox, *nstest.NS) {
	t.Helper()
	ns := nstest.New(t)
	n.on(vlan)
	s := sandbox{id: id, pod: name, netns: ns.Path(), version: "0.4.0", conf: n.confOf(mode, "")}
	s.prevResult = n.mustDo("ADD", s)
	s.conf = n.confOf(mode, s.prevResult)
	addr := n.ordinary
	if vlan != 0 {
		addr = n.pod(vlan)
	}
	for _, port := range []string{"80", "81"} {
		serve(t, ns, net.JoinHostPort(addr, port))
	}
	return s, ns
}

// counter reads a counter of the VPC.
func (n *trunk) counter(name string) uint64 {
	n.Helper()
	object, err := n.nft.GetObject(&nftables.CounterObj{Table: &nftables.Table{Name: "vpc", Family: nftables.TableFamilyINet}, Name: name})
	if err != nil {
		n.Fatal(err)
	}
	counter, ok := object.(*nftables.CounterObj)
	if !ok {
		n.Fatalf("%s is a %T", name, object)
	}
	return counter.Packets
}

// checkDrops fails if the VPC has dropped anything.
func (n *trunk) checkDrops() {
	n.Helper()
	if n.counter("dropped") == 0 {
		return
	}
	n.Errorf("the VPC dropped\n%s", n.vpc.Run("nft", "list", "sets", "inet"))
}

// serve answers every connection with the address that it came from.
func serve(t *testing.T, ns *nstest.NS, addr string) {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().Unmap().String())
			_ = c.Close()
		}
	}()
}

const patience = 20 * time.Second

// seen connects and returns the source address that the server saw.
func seen(ns *nstest.NS, from, to, port string) (string, error) {
	var text []byte
	err := ns.Do(func() error {
		d := net.Dialer{Timeout: patience}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial("tcp", net.JoinHostPort(to, port))
		if err != nil {
			return err
		}
		err = c.SetDeadline(time.Now().Add(patience))
		if err == nil {
			text, err = io.ReadAll(c)
		}
		return errors.Join(err, c.Close())
	})
	return string(text), err
}
