//go:build vlan

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

var modes = map[string]hostnet.BranchMode{"strict": hostnet.BranchStrict, "standard": hostnet.BranchStandard}

// Packets of pods on branch ENIs take every path, those of strict pods only by the branch ENI, and what is on the host is
// what the tests of the predecessor look for.
func TestBranchPods(t *testing.T) {
	for _, f := range families {
		for mode, hostMode := range modes {
			t.Run(f.name+", "+mode, func(t *testing.T) {
				n := newTrunk(t, f, hostMode)
				a, podA := n.newPod(t, "a", "a", mode, 7)
				b, podB := n.newPod(t, "b", "b", mode, 8)
				o, podO := n.newPod(t, "o", "o", mode, 0)
				strict := mode == "strict"
				n.oracle(mode)
				outside := n.internetSees(strict) // what the internet sees of a standard pod
				for _, c := range []struct {
					name     string
					ns       *nstest.NS
					from, to string
					seen     string
					byVLAN   bool // the VPC must have had it on a branch ENI
				}{
					{"VPC to a", n.vpc, n.peer, n.pod(7), n.peer, true},
					{"internet to a", n.vpc, n.internet, n.pod(7), n.internet, true},
					{"a to the VPC", podA, "", n.peer, n.pod(7), true},
					{"a to the internet", podA, "", n.internet, outside, strict || n.bits == 128},
					{"a to b", podA, "", n.pod(8), n.pod(7), strict},
					{"b to a", podB, "", n.pod(7), n.pod(8), strict},
					{"a to its node", podA, "", n.nodeIP, n.pod(7), strict},
					{"node to a", n.host, "", n.pod(7), n.nodeIP, strict},
					{"a to an ordinary pod", podA, "", n.ordinary, n.pod(7), strict},
					{"ordinary pod to a", podO, "", n.pod(7), n.ordinary, strict},
					{"ordinary pod to the VPC", podO, "", n.peer, n.ordinary, false},
				} {
					before := n.counter("branch")
					if got, err := seen(c.ns, c.from, c.to, "80"); err != nil || got != c.seen {
						t.Errorf("%s: seen as %q, want %q (%v)", c.name, got, c.seen, err)
					}
					if byVLAN := n.counter("branch") > before; byVLAN != c.byVLAN {
						t.Errorf("%s: by the branch ENI: %v, want %v", c.name, byVLAN, c.byVLAN)
					}
				}
				for name, from := range map[string]*nstest.NS{"VPC": n.vpc, "node": n.host, "b": podB, "ordinary pod": podO} {
					_, err := seen(from, "", n.pod(7), "81")
					if refused := errors.Is(err, syscall.ECONNREFUSED); refused != (strict || name == "VPC") {
						t.Errorf("%s to a port that a's security group forbids: %v", name, err)
					}
				}
				n.checkDrops()
				for _, s := range []sandbox{a, b, o} {
					n.mustRun("CHECK", s)
				}
				n.host.Run("ip", "link", "set", "vlan.eth.7", "down")
				if _, message := n.mustFail("CHECK", a); !strings.Contains(message, "vlan.eth.7") {
					t.Errorf("CHECK of a pod without its branch ENI: %s", message)
				}
				for _, s := range []sandbox{a, b, o} {
					n.mustRun("DEL", s)
					n.mustRun("DEL", s)
				}
				if text := n.everything(); strings.Contains(text, "vlan.eth") {
					t.Errorf("after DEL:\n%s", text)
				}
				n.host.Run("sh", "-c", "for l in $(ip -br link show type veth | grep -e ^eni -e ^vlan | cut -d@ -f1); do ip link del $l; done")
				n.eventuallyBare("DEL")
			})
		}
	}
}

// internetSees is whom the internet sees: with source NAT, where the pod's packets leave by the primary ENI, the node.
func (n *trunk) internetSees(strict bool) string {
	if strict || n.bits == 128 {
		return n.pod(7)
	}
	return n.nodeIP
}

// oracle is what the predecessor's end-to-end tests look for, and the golden state of pod a on VLAN 7.
func (n *trunk) oracle(mode string) {
	n.Helper()
	prefix := "eni"
	if mode == "strict" {
		prefix = "vlan"
	}
	veth := names.HostVeth(prefix, "default", "a", 0)
	rules := n.host.Run("ip", n.flag, "rule")
	table := n.host.Run("ip", n.flag, "route", "show", "table", "107")
	if mode == "strict" {
		for _, link := range []string{veth, "vlan.eth.7"} {
			if !strings.Contains(rules, "iif "+link+" lookup 107") {
				n.Errorf("no rule iif %s:\n%s", link, rules)
			}
		}
		if strings.Count(table, "\n") != 3 || !strings.Contains(table, n.pod(7)+" dev "+veth) {
			n.Errorf("table 107 has not the three routes:\n%s", table)
		}
	}
	links := n.host.Run("ip", "-d", "link", "show", "vlan.eth.7")
	state := fmt.Sprintf("# ip rule\n%s# ip route show table 107\n%s# vlan.eth.7\n%s\n# rp_filter\n%s", ofBranch(rules), table,
		regexp.MustCompile(`mtu \d+|state \S+|link/ether \S+|vlan protocol \S+ id \d+|alias .*`).FindAllString(links, -1),
		n.host.Run("grep", ".", "/proc/sys/net/ipv4/conf/vlan.eth.7/rp_filter", "/proc/sys/net/ipv4/conf/"+veth+"/rp_filter"))
	state = regexp.MustCompile(`alias (.*) \d+\]`).ReplaceAllString(state, "alias $1 TIME]")
	file := fmt.Sprintf("testdata/branch-%s%s.golden", mode, n.flag)
	if os.Getenv("VPCCNI_SHOW") != "" {
		n.Logf("@golden %s\n%s", file, state)
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != state {
		n.Errorf("%s: %v\ngot\n%s\nwant\n%s", file, err, state, want)
	}
}

// ofBranch leaves the rules that are not the same on every host.
func ofBranch(rules string) string {
	var kept strings.Builder
	for line := range strings.Lines(rules) {
		if p, _, _ := strings.Cut(line, ":"); p == "0" || p == "10" || p == "20" || p == "512" || p == "1536" {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// A pod that is deleted by force: its namespace goes first, then a DEL comes without namespace. It comes back under its
// name, with the same branch ENI or another one. Nothing of it may pile up, and each time it has its packets.
func TestBranchForceDelete(t *testing.T) {
	for _, mode := range []string{"strict", "standard"} {
		t.Run(mode, func(t *testing.T) {
			n := newTrunk(t, families[0], modes[mode])
			const rounds = 100
			for i := range rounds {
				var s sandbox
				vlan := vlans[i/3%2]
				ok := t.Run(fmt.Sprint(i), func(t *testing.T) {
					s, _ = n.newPod(t, fmt.Sprintf("c%d", i), "sts-0", mode, vlan)
					if got, err := seen(n.vpc, n.peer, n.pod(vlan), "80"); err != nil || got != n.peer {
						t.Errorf("seen as %q (%v)", got, err)
					}
				}) // the namespace ends with the subtest
				if !ok {
					t.FailNow()
				}
				s.netns = ""
				if i%7 == 6 {
					continue // a DEL that comes never: the next ADD has to cope
				}
				n.mustDo("DEL", s)
				if i%5 == 0 {
					n.mustDo("DEL", s)
				}
			}
			n.eventuallyBare(fmt.Sprintf("%d times", rounds))
		})
	}
}

// The DEL of an older sandbox that comes after the ADD of its successor leaves the successor alone, with and without
// namespace and prevResult.
func TestBranchOldAfterNew(t *testing.T) {
	for _, mode := range []string{"strict", "standard"} {
		t.Run(mode, func(t *testing.T) {
			n := newTrunk(t, families[0], modes[mode])
			older, _ := n.newPod(t, "c1", "sts-0", mode, 7)
			newer, _ := n.newPod(t, "c2", "sts-0", mode, 7)
			state := n.everything()
			for _, netns := range []string{older.netns, ""} {
				for _, conf := range []string{older.conf, n.confOf(mode, "")} {
					s := older
					s.netns, s.conf = netns, conf
					n.mustDo("DEL", s)
				}
			}
			if after := n.everything(); after != state {
				t.Errorf("the older sandbox's DEL changes\n%s\nto\n%s", state, after)
			}
			if got, err := seen(n.vpc, n.peer, n.pod(7), "80"); err != nil || got != n.peer {
				t.Errorf("the newer sandbox: seen as %q (%v)", got, err)
			}
			n.mustDo("CHECK", newer)
			// With another branch ENI for the newer one, the older one's goes.
			third, _ := n.newPod(t, "c3", "sts-0", mode, 8)
			newer.netns = ""
			n.mustDo("DEL", newer)
			if text := n.everything(); strings.Contains(text, "vlan.eth.7") || strings.Contains(text, "lookup 107") {
				t.Errorf("what is left of VLAN 7:\n%s", text)
			}
			if got, err := seen(n.vpc, n.peer, n.pod(8), "80"); err != nil || got != n.peer {
				t.Errorf("the third sandbox: seen as %q (%v)", got, err)
			}
			n.mustDo("DEL", third)
			n.host.Run("ip", "link", "del", names.HostVeth(map[string]string{"strict": "vlan", "standard": "eni"}[mode], "default", "sts-0", 0))
			n.eventuallyBare("DEL")
		})
	}
}

// The node's mode changes and changes back under pods with open connections; pods of both modes live side by side, and
// each goes completely whatever the mode is by then.
func TestBranchModeChange(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			n := newTrunk(t, f, hostnet.BranchStandard)
			a, podA := n.newPod(t, "a", "a", "standard", 7)
			flows := []*flow{n.newFlow(t, n.vpc, podA, n.pod(7)), n.newFlow(t, n.host, podA, n.pod(7))}
			check := func(what string) {
				t.Helper()
				for i, f := range flows {
					if err := f.echo(); err != nil {
						t.Errorf("%s: flow %d: %v", what, i, err)
					}
				}
			}
			n.apply(hostnet.BranchStrict)
			check("standard to strict")
			b, podB := n.newPod(t, "b", "b", "strict", 8)
			flows = append(flows, n.newFlow(t, n.vpc, podB, n.pod(8)), n.newFlow(t, n.host, podB, n.pod(8)))
			n.apply(hostnet.BranchStandard)
			check("strict to standard")
			for _, c := range []struct {
				name     string
				ns       *nstest.NS
				to, seen string
			}{
				{"standard to strict", podA, n.pod(8), n.pod(7)}, {"strict to standard", podB, n.pod(7), n.pod(8)},
				{"node to strict", n.host, n.pod(8), n.nodeIP}, {"strict to node", podB, n.nodeIP, n.pod(8)},
				{"node to standard", n.host, n.pod(7), n.nodeIP}, {"standard to node", podA, n.nodeIP, n.pod(7)},
			} {
				if got, err := seen(c.ns, "", c.to, "80"); err != nil || got != c.seen {
					t.Errorf("%s: seen as %q, want %q (%v)", c.name, got, c.seen, err)
				}
			}
			n.apply(hostnet.BranchStrict)
			check("standard to strict again")
			a.conf, b.conf = n.confOf("strict", a.prevResult), n.confOf("standard", b.prevResult)
			for _, s := range []sandbox{a, b} {
				n.mustDo("CHECK", s)
				n.mustDo("DEL", s)
			}
			n.apply(hostnet.BranchStandard)
			n.host.Run("sh", "-c", "for l in $(ip -br link show type veth | grep -e ^eni -e ^vlan | cut -d@ -f1); do ip link del $l; done")
			n.eventuallyBare("DEL")
		})
	}
}

// flow is an open connection.
type flow struct{ net.Conn }

func (n *trunk) newFlow(t *testing.T, from, to *nstest.NS, addr string) *flow {
	t.Helper()
	var l net.Listener
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	var f flow
	if err := from.Do(func() (err error) {
		f.Conn, err = net.DialTimeout("tcp", l.Addr().String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.echo(); err != nil {
		t.Fatal(err)
	}
	return &f
}

func (f *flow) echo() error {
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := f.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(f, make([]byte, 5))
	return err
}

// What fails on the way leaves nothing, also where the last step fails, or somebody else has the VLAN.
func TestBranchAddThatFails(t *testing.T) {
	for _, mode := range []string{"strict", "standard"} {
		t.Run(mode, func(t *testing.T) {
			n := newTrunk(t, families[0], modes[mode])
			s := sandbox{id: "c1", pod: "a", netns: nstest.New(t).Path(), version: "0.4.0", conf: n.confOf(mode, "")}
			n.on(7)
			n.ipamd.Configure(func(c *ipamdtest.Config) { c.PolicyMode = "strict" }) // and there is no agent
			if _, message := n.mustFail("ADD", s); !strings.Contains(message, "network policy") {
				t.Error(message)
			}
			n.eventuallyBare("ADD that fails at its last step")
			n.ipamd.Configure(func(c *ipamdtest.Config) { c.PolicyMode = "" })
			n.host.Run("ip", "link", "add", "link", "eth1", "name", "foreign", "type", "vlan", "id", "7")
			if _, message := n.mustFail("ADD", s); !strings.Contains(message, "VLAN 7 has another link") {
				t.Error(message)
			}
			n.host.Run("ip", "link", "del", "foreign")
			n.eventuallyBare("ADD that finds its VLAN taken")
			n.host.Run("ip", "link", "set", "eth1", "down")
			if _, message := n.mustFail("ADD", s); !strings.Contains(message, "network is down") {
				t.Error(message)
			}
			n.host.Run("ip", "link", "set", "eth1", "up")
			n.apply(modes[mode])
			n.eventuallyBare("ADD without its trunk")
		})
	}
}

// GC takes the branch ENIs of sandboxes that nobody knows, and spares those of living ones and of other versions.
func TestBranchGC(t *testing.T) {
	n := newTrunk(t, families[0], hostnet.BranchStrict)
	n.newPod(t, "alive", "alive", "strict", 7)
	gone, _ := n.newPod(t, "gone", "gone", "standard", 8)
	n.checkpoint()
	aged := func(vlan int) { // an hour ago
		link := fmt.Sprintf("vlan.eth.%d", vlan)
		m := regexp.MustCompile(`alias (vpc-cni .*) (\d+)`).FindStringSubmatch(n.host.Run("ip", "link", "show", link))
		if m == nil {
			t.Fatalf("%s does not say whom it serves", link)
		}
		n.host.Run("ip", "link", "set", link, "alias", m[1]+" 1700000000")
	}
	valid := gc(n.node, `,"cni.dev/valid-attachments":[{"containerID":"alive","ifname":"eth0"}]`)
	before := n.everything()
	n.mustRun("GC", valid)
	if after := n.everything(); after != before {
		t.Errorf("GC takes what is young: before\n%s\nafter\n%s", before, after)
	}
	aged(7)
	aged(8)
	n.mustRun("GC", valid)
	after := n.everything()
	for _, left := range []string{"vlan.eth.8", "lookup 108", n.pod(8), names.HostVeth("eni", "default", "gone", 0)} {
		if strings.Contains(after, left) {
			t.Errorf("GC leaves %s:\n%s", left, after)
		}
	}
	if got, err := seen(n.vpc, n.peer, n.pod(7), "80"); err != nil || got != n.peer {
		t.Errorf("the living pod: seen as %q (%v)", got, err)
	}
	n.mustDo("DEL", gone)
}

// A pod that makes up its source address: the veth drops it, whatever the mode.
func TestBranchSpoofing(t *testing.T) {
	for _, mode := range []string{"strict", "standard"} {
		t.Run(mode, func(t *testing.T) {
			n := newTrunk(t, families[0], modes[mode])
			_, pod := n.newPod(t, "a", "a", mode, 7)
			for _, from := range []string{n.pod(8), n.ordinary, n.nodeIP, "198.51.100.7"} {
				pod.Run("ip", "address", "add", from+"/32", "dev", "eth0")
				if err := pod.Do(func() error {
					c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(n.peer), Port: 4242})
					if err != nil {
						return err
					}
					_, err = c.Write([]byte("spoofed"))
					return errors.Join(err, c.Close())
				}); err != nil {
					t.Errorf("%s: %v", from, err)
				}
				pod.Run("ip", "address", "del", from+"/32", "dev", "eth0")
			}
			// Packets of one pod stay in order.
			if got, err := seen(pod, n.pod(7), n.peer, "80"); err != nil || got != n.pod(7) {
				t.Errorf("seen as %q (%v)", got, err)
			}
			n.checkDrops()
		})
	}
}

// Packets between a node and its strict pod pass the node's conntrack twice, and so does what a Service sends on with the
// node's address: connections that differ in nothing but how they came to have it still find their way. The connection
// that would be the second with its addresses and ports gets another port, as beside any source NAT.
func TestBranchStrictPodsAndConntrack(t *testing.T) {
	n := newTrunk(t, families[0], hostnet.BranchStrict)
	_, pod := n.newPod(t, "a", "a", "strict", 7)
	n.host.Run("sh", "-e", "-c", `nft -f - <<'END'
table ip kube-proxy {
	chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.0.1.10 tcp dport 30080 mark set mark or 0x4000 dnat to 10.0.7.11:90; }
	chain postrouting { type nat hook postrouting priority srcnat; mark and 0x4000 != 0 masquerade; }
	chain forward { type filter hook forward priority 0; ct state invalid counter drop; }
}
END`)
	echo := n.echoServer(t, pod, n.pod(7)+":90")
	dial := func(from *nstest.NS, local, to string) *flow {
		t.Helper()
		var f flow
		if err := from.Do(func() (err error) {
			d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(local))}
			f.Conn, err = d.Dial("tcp", to)
			return err
		}); err != nil {
			t.Fatalf("%s to %s: %v", local, to, err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return &f
	}
	flows := map[string]*flow{
		"Service, first":            dial(n.vpc, n.peer+":4001", n.nodeIP+":30080"),
		"probe, the second":         dial(n.host, n.nodeIP+":4001", echo),
		"probe, first":              dial(n.host, n.nodeIP+":4002", echo),
		"Service, the second":       dial(n.vpc, n.peer+":4002", n.nodeIP+":30080"),
		"load balancer to the pod":  dial(n.vpc, n.peer+":4003", echo),
		"load balancer by the node": dial(n.vpc, n.internet+":4003", n.nodeIP+":30080"),
	}
	for range 20 {
		for name, f := range flows {
			if err := f.echo(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	// Probes from one port, each as soon as the one before it has ended.
	for i := range 20 {
		f := dial(n.host, n.nodeIP+":4004", echo)
		if err := f.echo(); err != nil {
			t.Fatalf("probe %d: %v", i, err)
		}
		if tcp, ok := f.Conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = f.Close()
	}
	n.checkDrops()
}

// echoServer sends back what it gets, and returns its address.
func (n *trunk) echoServer(t *testing.T, ns *nstest.NS, addr string) string {
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
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}
