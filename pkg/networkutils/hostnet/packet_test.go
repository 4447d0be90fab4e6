package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

// dialTimeout is how long a test waits for a packet that may never come.
const dialTimeout = 5 * time.Second

// Addresses of the small VPC below.
const (
	peerAddr     = "10.0.2.20"    // another instance of the VPC
	internetAddr = "203.0.113.10" // answers only what comes with the primary address
	nodeAddr     = "10.0.1.10"
	eth1Addr     = "10.0.1.30"
	pod0Addr     = "10.0.1.11" // on the primary ENI
	pod1Addr     = "10.0.1.31" // on the secondary one
	freeAddr     = "10.0.1.32" // the secondary ENI's, without a pod
)

// plan is who has which address in one family. seen0 and seen1 are the addresses by which the internet knows the pods.
type plan struct {
	name                                                  string
	peer, internet, node, eth1, pod0, pod1, free, service string
	seen0, seen1                                          string
}

var (
	plan4 = plan{
		name: "ip", peer: peerAddr, internet: internetAddr, node: nodeAddr, eth1: eth1Addr, pod0: pod0Addr, pod1: pod1Addr, free: freeAddr,
		service: "10.9.0.1", seen0: nodeAddr, seen1: nodeAddr,
	}
	plan6 = plan{
		name: "ip6", peer: "2001:db8:10:2::20", internet: "2001:db8:ffff::10", node: "2001:db8:10:1::10", eth1: "2001:db8:10:1::30",
		pod0: "2001:db8:10:1:a::11", pod1: "2001:db8:10:1:b::31", free: "2001:db8:10:1:b::32", service: "2001:db8:9::1",
		seen0: "2001:db8:10:1:a::11", seen1: "2001:db8:10:1:b::31",
	}
)

// on is the place of a server.
func on(addr string, port int) string { return net.JoinHostPort(addr, strconv.Itoa(port)) }

// vpc is a node with two ENIs in one subnet, a pod on each, and a router that stands for everything else. The router
// takes from an ENI only what the VPC would: packets with an address of that ENI. All of them have both families.
type vpc struct {
	*node
	router, pod0, pod1 *nstest.NS
}

func newVPC(t *testing.T, rpFilterAll int) *vpc {
	t.Helper()
	v := &vpc{node: &node{NS: nstest.New(t), t: t}, router: nstest.New(t), pod0: nstest.New(t), pod1: nstest.New(t)}
	for _, ns := range []*nstest.NS{v.NS, v.router} {
		ns.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad") // or link-local addresses take a second
	}
	v.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link add eth0 address %s type veth peer name r0 netns %s
		ip link add eth1 address %s type veth peer name r1 netns %s
		echo 1 > /proc/sys/net/ipv4/ip_forward
		echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
		echo %d > /proc/sys/net/ipv4/conf/all/rp_filter
		ip address add %s/24 dev eth0; ip -6 address add %s/64 dev eth0 nodad; ip link set eth0 up
		ip route add default via 10.0.1.1 dev eth0; ip -6 route add default via fe80:ec2::1 dev eth0`,
		mac(0), v.router.Path(), mac(1), v.router.Path(), rpFilterAll, nodeAddr, plan6.node))
	// The real thing maps addresses to ENIs without ARP.
	v.router.Run("sh", "-e", "-c", fmt.Sprintf(`
		echo 1 > /proc/sys/net/ipv4/ip_forward
		for a in %s %s; do ip address add $a/32 dev lo; done
		for r in r0 r1; do ip link set $r up; ip address add 10.0.1.1/32 dev $r; done
		enter() { ip route add $1 dev $2 scope link; ip neigh add $1 lladdr $3 dev $2; }
		for a in %s %s; do enter $a r0 %s; done
		for a in %s %s %s; do enter $a r1 %s; done`,
		peerAddr, internetAddr, nodeAddr, pod0Addr, mac(0), eth1Addr, pod1Addr, freeAddr, mac(1)))
	p := plan6
	v.router.Run("sh", "-e", "-c", fmt.Sprintf(`
		echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
		for a in %s %s; do ip -6 address add $a/128 dev lo nodad; done
		for r in r0 r1; do ip -6 address add fe80:ec2::1/64 dev $r nodad; done
		enter() { ip -6 route add $1 dev $2; ip -6 neigh add $1 lladdr $3 dev $2; }
		for a in %s %s; do enter $a r0 %s; done
		for a in %s %s %s; do enter $a r1 %s; done`,
		p.peer, p.internet, p.node, p.pod0, mac(0), p.eth1, p.pod1, p.free, mac(1)))
	v.router.Run("sh", "-e", "-c", fmt.Sprintf(`nft -f - <<'END'
table ip vpc {
	counter dropped { }
	counter looped { }
	chain source_check {
		type filter hook prerouting priority raw; policy accept;
		ip daddr %s counter name looped
		iifname r0 ip saddr != { %s, %s } counter name dropped drop
		iifname r1 ip saddr != { %s, %s, %s } counter name dropped drop
	}
	chain gateway {
		type filter hook input priority 0; policy accept;
		ip daddr %s tcp dport 80 ip saddr != %s counter name dropped drop
	}
}
table ip6 vpc {
	counter dropped { }
	counter looped { }
	chain source_check {
		type filter hook prerouting priority raw; policy accept;
		ip6 saddr { ::, fe80::/10 } accept
		ip6 daddr %s counter name looped
		iifname r0 ip6 saddr != { %s, %s } counter name dropped drop
		iifname r1 ip6 saddr != { %s, %s, %s } counter name dropped drop
	}
}
END`, freeAddr, nodeAddr, pod0Addr, eth1Addr, pod1Addr, freeAddr, internetAddr, nodeAddr,
		p.free, p.node, p.pod0, p.eth1, p.pod1, p.free))
	v.wirePod(v.pod0, pod0Addr, p.pod0, "eni0000000000a")
	v.wirePod(v.pod1, pod1Addr, p.pod1, "eni0000000000b")
	v.host = v.open()
	for _, p := range []plan{plan4, plan6} {
		serve(t, v.router, on(p.peer, 80))
		serve(t, v.router, on(p.internet, 80))
		serve(t, v.pod0, on(p.pod0, 80))
		serve(t, v.pod1, on(p.pod1, 80))
		serve(t, v.NS, on(p.node, 80))
	}
	return v
}

// wirePod does what the plugin does.
func (v *vpc) wirePod(pod *nstest.NS, addr, addr6, veth string) {
	v.t.Helper()
	v.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link add %[1]s address 02:00:00:00:01:01 group %[5]d type veth peer name eth0 address 02:00:00:00:01:02 netns %[2]s
		echo 0 > /proc/sys/net/ipv6/conf/%[1]s/accept_dad
		echo 1 > /proc/sys/net/ipv4/conf/%[1]s/rp_filter
		ip link set %[1]s up
		for a in %[3]s %[4]s; do
			ip neigh add $a lladdr 02:00:00:00:01:02 dev %[1]s
			ip route add $a dev %[1]s table 5120
			ip route add $a dev %[1]s
		done`, veth, pod.Path(), addr, addr6, names.GroupSourceCheck))
	pod.Run("sh", "-e", "-c", fmt.Sprintf(`
		echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
		ip link set eth0 up; ip address add %s/32 dev eth0; ip address add %s/128 dev eth0 nodad
		ip route add 169.254.1.1 dev eth0 scope link; ip route add default via 169.254.1.1 dev eth0
		ip -6 route add fe80::1 dev eth0; ip -6 route add default via fe80::1 dev eth0
		for a in 169.254.1.1 fe80::1; do ip neigh add $a lladdr 02:00:00:00:01:01 dev eth0; done`, addr, addr6))
}

func (v *vpc) config() Config {
	cfg := config(primaryENI(pod0Addr), secondaryENI(1, pod1Addr, freeAddr))
	cfg.MTU = 1500
	return cfg
}

// config6 is the same for pods that have IPv6 alone.
func (v *vpc) config6() Config {
	cfg := config(with6(primaryENI(), "2001:db8:10:1:a::/80"), with6(secondaryENI(1), "2001:db8:10:1:b::/80"))
	cfg.MTU, cfg.IPv6, cfg.VPCCIDRs = 1500, true, nil
	return cfg
}

// configDual is the same for pods that have both, IPv6 as single addresses.
func (v *vpc) configDual() Config {
	cfg := config(with6(primaryENI(pod0Addr), plan6.pod0), with6(secondaryENI(1, pod1Addr, freeAddr), plan6.pod1, plan6.free))
	cfg.MTU, cfg.IPv4, cfg.IPv6 = 1500, true, true
	return cfg
}

// counter reads a counter of the router.
func (v *vpc) counter(family, name string) string {
	v.t.Helper()
	for _, f := range strings.Split(v.router.Run("nft", "list", "counter", family, "vpc", name), "\n") {
		if f = strings.TrimSpace(f); strings.HasPrefix(f, "packets") {
			return strings.Fields(f)[1]
		}
	}
	v.t.Fatalf("no counter %s", name)
	return ""
}

// noneDropped fails the test if the VPC had to drop a packet.
func (v *vpc) noneDropped() {
	v.t.Helper()
	for _, family := range []string{"ip", "ip6"} {
		for _, c := range []string{"dropped", "looped"} {
			if n := v.counter(family, c); n != "0" {
				v.t.Errorf("the VPC saw %s packets of %s that were %s", n, family, c)
			}
		}
	}
}

// serve answers every connection with the address that it came from.
func serve(t testing.TB, ns *nstest.NS, addr string) {
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
			_, _ = io.WriteString(c, netip.MustParseAddrPort(c.RemoteAddr().String()).Addr().String())
			_ = c.Close()
		}
	}()
}

// seenBy connects and returns the source address that the server saw.
func seenBy(ns *nstest.NS, from, to string) (string, error) {
	var seen []byte
	err := ns.Do(func() error {
		d := net.Dialer{Timeout: dialTimeout}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial("tcp", to)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
			return err
		}
		seen, err = io.ReadAll(c)
		return err
	})
	return string(seen), err
}

func TestPackets(t *testing.T) {
	for _, c := range []struct {
		name   string
		rp     int // net.ipv4.conf.all.rp_filter
		config func(*vpc) Config
		plans  []plan
	}{
		{"all.rp_filter=0", 0, (*vpc).config, []plan{plan4}},
		{"all.rp_filter=1", 1, (*vpc).config, []plan{plan4}},
		{"all.rp_filter=2", 2, (*vpc).config, []plan{plan4}},
		{"IPv6", 1, (*vpc).config6, []plan{plan6}},
		{"dual stack", 1, (*vpc).configDual, []plan{plan4, plan6}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := newVPC(t, c.rp)
			v.applyTwice(c.config(v))
			for _, p := range c.plans {
				v.paths(p)
			}
			v.noneDropped()
		})
	}
}

// paths tries every path of a family.
func (v *vpc) paths(p plan) {
	// What kube-proxy does for a NodePort with externalTrafficPolicy Local.
	v.Run("sh", "-e", "-c", fmt.Sprintf(`nft -f - <<'END'
table %[1]s kube-proxy {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		%[1]s daddr { %[2]s, %[3]s } tcp dport 30080 dnat to %[4]s
		%[1]s daddr { %[2]s, %[3]s } tcp dport 30081 dnat to %[5]s
		%[1]s daddr %[6]s tcp dport 80 dnat to %[7]s
	}
}
END`, p.name, p.node, p.eth1, on(p.pod1, 80), on(p.pod0, 80), p.service, p.internet))
	for _, c := range []struct {
		name     string
		ns       *nstest.NS
		from, to string
		seen     string
	}{
		{"pod on eth0 to the VPC", v.pod0, "", on(p.peer, 80), p.pod0},
		{"pod on eth1 to the VPC", v.pod1, "", on(p.peer, 80), p.pod1},
		{"pod on eth0 to the internet", v.pod0, "", on(p.internet, 80), p.seen0},
		{"pod on eth1 to the internet", v.pod1, "", on(p.internet, 80), p.seen1},
		{"pod on eth1 to a Service outside", v.pod1, "", on(p.service, 80), p.seen1},
		{"pod to pod, by two ENIs", v.pod0, "", on(p.pod1, 80), p.pod0},
		{"pod on eth1 to its node", v.pod1, "", on(p.node, 80), p.pod1},
		{"node to the internet", v.NS, "", on(p.internet, 80), p.node},
		{"node to a pod on eth1", v.NS, p.node, on(p.pod1, 80), p.node},
		{"node from eth1's address", v.NS, p.eth1, on(p.peer, 80), p.eth1},
		{"VPC to a pod on eth0", v.router, p.peer, on(p.pod0, 80), p.peer},
		{"VPC to a pod on eth1", v.router, p.peer, on(p.pod1, 80), p.peer},
		{"load balancer outside to a pod on eth1", v.router, p.internet, on(p.pod1, 80), p.internet},
		{"NodePort on eth0 to a pod on eth1", v.router, p.internet, on(p.node, 30080), p.internet},
		{"NodePort on eth1 to a pod on eth1", v.router, p.internet, on(p.eth1, 30080), p.internet},
		{"NodePort on eth1 to a pod on eth0", v.router, p.internet, on(p.eth1, 30081), p.internet},
	} {
		if seen, err := seenBy(c.ns, c.from, c.to); err != nil || seen != c.seen {
			v.t.Errorf("%s: %s: seen as %q, want %q (%v)", p.name, c.name, seen, c.seen, err)
		}
	}
	for name, from := range map[string]*nstest.NS{"VPC": v.router, "pod": v.pod0, "its own ENI's pod": v.pod1} {
		_, err := seenBy(from, "", on(p.free, 80))
		if !errors.Is(err, unix.EHOSTUNREACH) && !errors.Is(err, unix.ENETUNREACH) {
			v.t.Errorf("%s: %s to an address without a pod: %v, want %v", p.name, name, err, unix.EHOSTUNREACH)
		}
	}
}

// A connection of the host that is older than the rules goes on: the daemon's own to EC2 and the kubelet's to its API
// server are.
func TestOlderConnectionsOfTheHost(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 0)
	var l net.Listener
	if err := v.router.Do(func() (err error) {
		l, err = net.Listen("tcp4", internetAddr+":90")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	var c net.Conn
	if err := v.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", internetAddr+":90", dialTimeout)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	echo := func() error {
		if err := c.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 5))
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	v.applyTwice(v.config())
	if err := echo(); err != nil {
		t.Errorf("after the rules came: %v", err)
	}
}

// With EXTERNALSNAT the outside sees pods' own addresses, and NodePort still works.
func TestPacketsExternalSNAT(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 1)
	v.router.Run("nft", "flush", "chain", "ip", "vpc", "gateway")
	v.applyTwice(with(v.config(), func(c *Config) { c.ExternalSNAT = true }))
	v.Run("sh", "-e", "-c", `nft -f - <<'END'
table ip kube-proxy {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 10.0.1.10 tcp dport 30080 dnat to 10.0.1.31:80
	}
}
END`)
	for ns, want := range map[*nstest.NS]string{v.pod0: pod0Addr, v.pod1: pod1Addr, v.NS: nodeAddr} {
		if seen, err := seenBy(ns, "", internetAddr+":80"); err != nil || seen != want {
			t.Errorf("seen as %q, want %q (%v)", seen, want, err)
		}
	}
	if seen, err := seenBy(v.router, internetAddr, nodeAddr+":30080"); err != nil || seen != internetAddr {
		t.Errorf("NodePort: seen as %q, want %q (%v)", seen, internetAddr, err)
	}
	v.noneDropped()
}

// No connection is lost, and none gets the wrong source address, while the state changes under it.
func TestNoConnectionIsLostDuringUpdates(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 1)
	base := v.configDual()
	v.apply(base)

	updates := *updates
	stop := make(chan struct{})
	var (
		wg       sync.WaitGroup
		made     atomic.Int64
		failures = make(chan string, 1000)
	)
	type flow struct {
		ns       *nstest.NS
		from, to string
		want     string
	}
	var flows []flow
	for _, p := range []plan{plan4, plan6} {
		flows = append(flows,
			flow{v.pod1, "", on(p.internet, 80), p.seen1},
			flow{v.pod1, "", on(p.peer, 80), p.pod1},
			flow{v.pod0, "", on(p.internet, 80), p.seen0},
			flow{v.router, p.peer, on(p.pod1, 80), p.peer})
	}
	for _, flow := range flows {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				seen, err := seenBy(flow.ns, flow.from, flow.to)
				made.Add(1)
				if err != nil || seen != flow.want {
					select {
					case failures <- fmt.Sprintf("to %s: seen as %q, want %q (%v)", flow.to, seen, flow.want, err):
					default:
					}
				}
			}
		})
	}
	for i := range updates {
		cfg := base
		switch i % 5 {
		case 0: // elements of the map and the exempt set
			cfg.ENIs = []ENI{base.ENIs[0], with6(base.ENIs[1], "10.0.1.64/28", "2001:db8:10:1:c::/80")}
			cfg.VPCCIDRs = append(cfg.VPCCIDRs, prefixes("10.77.0.0/16")...)
		case 1: // an ENI comes: three chains more, and elements in every map
			cfg.ENIs = append(cfg.ENIs, with6(secondaryENI(2, "100.64.2.11"), "2001:db8:10:2:c::/80"))
		case 2: // rules of a base chain
			cfg.SNATRandom = SNATRandomNone
		case 3: // everything
			v.refill(base)
		case 4: // ranges that are excluded, also inside of others
			cfg.ExcludeSNATCIDRs = prefixes("198.51.100.0/24", "10.0.0.0/8")
		}
		if _, err := v.host.Apply(context.Background(), cfg); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	wg.Wait()
	close(failures)
	for f := range failures {
		t.Error(f)
	}
	v.noneDropped()
	t.Logf("%d connections during %d updates", made.Load(), updates)
}

// refill empties and rewrites all chains and sets of the node's table.
func (v *vpc) refill(cfg Config) {
	v.t.Helper()
	conn, err := nfttable.Open(context.Background(), v.FD())
	if err != nil {
		v.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	d, err := Render(cfg)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, filter := range d.Filters {
		want := filter.bind(func(id string) string { return map[string]string{"eni-0": "eth0", "eni-1": "eth1"}[id] })
		have, err := conn.Read(want.Family, want.Name)
		if err != nil {
			v.t.Fatal(err)
		}
		if err := conn.Write(nfttable.Refill(have, &want)); err != nil {
			v.t.Fatal(err)
		}
	}
}
