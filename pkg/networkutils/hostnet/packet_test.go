package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
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

// vpc is a node with two ENIs in one subnet, a pod on each, and a router that stands for everything else. The router
// takes from an ENI only what the VPC would: packets with an address of that ENI.
type vpc struct {
	*node
	router, pod0, pod1 *nstest.NS
}

func newVPC(t *testing.T, rpFilterAll int) *vpc {
	t.Helper()
	v := &vpc{node: &node{NS: nstest.New(t), t: t}, router: nstest.New(t), pod0: nstest.New(t), pod1: nstest.New(t)}
	v.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link add eth0 address %s type veth peer name r0 netns %s
		ip link add eth1 address %s type veth peer name r1 netns %s
		echo 1 > /proc/sys/net/ipv4/ip_forward
		echo %d > /proc/sys/net/ipv4/conf/all/rp_filter
		ip address add %s/24 dev eth0; ip link set eth0 up
		ip route add default via 10.0.1.1 dev eth0`, mac(0), v.router.Path(), mac(1), v.router.Path(), rpFilterAll, nodeAddr))
	// The real thing maps addresses to ENIs without ARP.
	v.router.Run("sh", "-e", "-c", fmt.Sprintf(`
		echo 1 > /proc/sys/net/ipv4/ip_forward
		for a in %s %s; do ip address add $a/32 dev lo; done
		for r in r0 r1; do ip link set $r up; ip address add 10.0.1.1/32 dev $r; done
		enter() { ip route add $1 dev $2 scope link; ip neigh add $1 lladdr $3 dev $2; }
		for a in %s %s; do enter $a r0 %s; done
		for a in %s %s %s; do enter $a r1 %s; done`,
		peerAddr, internetAddr, nodeAddr, pod0Addr, mac(0), eth1Addr, pod1Addr, freeAddr, mac(1)))
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
END`, freeAddr, nodeAddr, pod0Addr, eth1Addr, pod1Addr, freeAddr, internetAddr, nodeAddr))
	v.wirePod(v.pod0, pod0Addr, "eni0000000000a")
	v.wirePod(v.pod1, pod1Addr, "eni0000000000b")
	v.host = v.open()
	for _, s := range []struct {
		ns    *nstest.NS
		addrs []string
	}{
		{v.router, []string{peerAddr, internetAddr}}, {v.pod0, []string{pod0Addr}}, {v.pod1, []string{pod1Addr}},
		{v.NS, []string{nodeAddr}},
	} {
		for _, a := range s.addrs {
			serve(t, s.ns, a+":80")
		}
	}
	return v
}

// wirePod does what the plugin does.
func (v *vpc) wirePod(pod *nstest.NS, addr, veth string) {
	v.t.Helper()
	v.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link add %[1]s address 02:00:00:00:01:01 type veth peer name eth0 address 02:00:00:00:01:02 netns %[2]s
		ip link set %[1]s up
		ip neigh add %[3]s lladdr 02:00:00:00:01:02 dev %[1]s
		ip route add %[3]s dev %[1]s scope link table 5120
		ip route add %[3]s dev %[1]s scope link`, veth, pod.Path(), addr))
	pod.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link set eth0 up; ip address add %s/32 dev eth0
		ip route add 169.254.1.1 dev eth0 scope link; ip route add default via 169.254.1.1 dev eth0
		ip neigh add 169.254.1.1 lladdr 02:00:00:00:01:01 dev eth0`, addr))
}

func (v *vpc) config() Config {
	cfg := config(primaryENI(pod0Addr), secondaryENI(1, pod1Addr, freeAddr))
	cfg.MTU = 1500
	return cfg
}

// counter reads a counter of the router.
func (v *vpc) counter(name string) string {
	v.t.Helper()
	for _, f := range strings.Split(v.router.Run("nft", "list", "counter", "ip", "vpc", name), "\n") {
		if f = strings.TrimSpace(f); strings.HasPrefix(f, "packets") {
			return strings.Fields(f)[1]
		}
	}
	v.t.Fatalf("no counter %s", name)
	return ""
}

// serve answers every connection with the address that it came from.
func serve(t testing.TB, ns *nstest.NS, addr string) {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp4", addr)
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
		c, err := d.Dial("tcp4", to)
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
	for all := range 3 {
		t.Run(fmt.Sprintf("all.rp_filter=%d", all), func(t *testing.T) {
			t.Parallel()
			v := newVPC(t, all)
			v.applyTwice(v.config())
			// What kube-proxy does for a NodePort with externalTrafficPolicy Local.
			v.Run("sh", "-e", "-c", `nft -f - <<'END'
table ip kube-proxy {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr { 10.0.1.10, 10.0.1.30 } tcp dport 30080 dnat to 10.0.1.31:80
		ip daddr { 10.0.1.10, 10.0.1.30 } tcp dport 30081 dnat to 10.0.1.11:80
		ip daddr 10.9.0.1 tcp dport 80 dnat to 203.0.113.10
	}
}
END`)
			for _, c := range []struct {
				name     string
				ns       *nstest.NS
				from, to string
				seen     string
			}{
				{"pod on eth0 to the VPC", v.pod0, "", peerAddr + ":80", pod0Addr},
				{"pod on eth1 to the VPC", v.pod1, "", peerAddr + ":80", pod1Addr},
				{"pod on eth0 to the internet", v.pod0, "", internetAddr + ":80", nodeAddr},
				{"pod on eth1 to the internet", v.pod1, "", internetAddr + ":80", nodeAddr},
				{"pod on eth1 to a Service outside", v.pod1, "", "10.9.0.1:80", nodeAddr},
				{"pod to pod, by two ENIs", v.pod0, "", pod1Addr + ":80", pod0Addr},
				{"pod on eth1 to its node", v.pod1, "", nodeAddr + ":80", pod1Addr},
				{"node to the internet", v.NS, "", internetAddr + ":80", nodeAddr},
				{"node to a pod on eth1", v.NS, "", pod1Addr + ":80", nodeAddr},
				{"node from eth1's address", v.NS, eth1Addr, peerAddr + ":80", eth1Addr},
				{"VPC to a pod on eth0", v.router, peerAddr, pod0Addr + ":80", peerAddr},
				{"VPC to a pod on eth1", v.router, peerAddr, pod1Addr + ":80", peerAddr},
				{"load balancer outside to a pod on eth1", v.router, internetAddr, pod1Addr + ":80", internetAddr},
				{"NodePort on eth0 to a pod on eth1", v.router, internetAddr, nodeAddr + ":30080", internetAddr},
				{"NodePort on eth1 to a pod on eth1", v.router, internetAddr, eth1Addr + ":30080", internetAddr},
				{"NodePort on eth1 to a pod on eth0", v.router, internetAddr, eth1Addr + ":30081", internetAddr},
			} {
				if seen, err := seenBy(c.ns, c.from, c.to); err != nil || seen != c.seen {
					t.Errorf("%s: seen as %q, want %q (%v)", c.name, seen, c.seen, err)
				}
			}
			for name, from := range map[string]*nstest.NS{"VPC": v.router, "pod": v.pod0, "its own ENI's pod": v.pod1} {
				_, err := seenBy(from, "", freeAddr+":80")
				if !errors.Is(err, unix.EHOSTUNREACH) {
					t.Errorf("%s to an address without a pod: %v, want %v", name, err, unix.EHOSTUNREACH)
				}
			}
			for _, c := range []string{"dropped", "looped"} {
				if n := v.counter(c); n != "0" {
					t.Errorf("the VPC saw %s packets that were %s", n, c)
				}
			}
		})
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
	if n := v.counter("dropped"); n != "0" {
		t.Errorf("the VPC dropped %s packets", n)
	}
}

// No connection is lost, and none gets the wrong source address, while the state changes under it.
func TestNoConnectionIsLostDuringUpdates(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 1)
	base := v.config()
	v.apply(base)

	const updates = 100
	stop := make(chan struct{})
	var (
		wg       sync.WaitGroup
		made     atomic.Int64
		failures = make(chan string, 1000)
	)
	for _, flow := range []struct {
		ns       *nstest.NS
		from, to string
		want     string
	}{
		{v.pod1, "", internetAddr + ":80", nodeAddr},
		{v.pod1, "", peerAddr + ":80", pod1Addr},
		{v.pod0, "", internetAddr + ":80", nodeAddr},
		{v.router, peerAddr, pod1Addr + ":80", peerAddr},
	} {
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
		switch i % 4 {
		case 0: // elements of the map and the exempt set
			cfg.ENIs = []ENI{primaryENI(pod0Addr), secondaryENI(1, pod1Addr, freeAddr, "10.0.1.64/28")}
			cfg.VPCCIDRs = append(cfg.VPCCIDRs, prefixes("10.77.0.0/16")...)
		case 1: // an ENI comes: three chains more, and elements in every map
			cfg.ENIs = append(cfg.ENIs, secondaryENI(2, "100.64.2.11"))
		case 2: // rules of a base chain
			cfg.SNATRandom = SNATRandomNone
		case 3: // everything
			v.refill(base)
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
	if n := v.counter("dropped"); n != "0" {
		t.Errorf("the VPC dropped %s packets", n)
	}
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
	want := d.Filters[0].bind(func(id string) string { return map[string]string{"eni-0": "eth0", "eni-1": "eth1"}[id] })
	have, err := conn.Read(want.Family, want.Name)
	if err != nil {
		v.t.Fatal(err)
	}
	if err := conn.Write(nfttable.Refill(have, &want)); err != nil {
		v.t.Fatal(err)
	}
}
