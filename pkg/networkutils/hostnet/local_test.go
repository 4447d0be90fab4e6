package hostnet

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"vpccni/pkg/networkutils/nstest"
)

// The rule for the host's own addresses goes behind those of branch ENIs' pods and back, and nobody notices.
func TestNoConnectionIsLostWhenTheLocalRuleMoves(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 1)
	v.apply(v.configDual())
	var (
		wg       sync.WaitGroup
		stop     = make(chan struct{})
		failures = make(chan string, 1000)
	)
	for _, p := range []plan{plan4, plan6} {
		for _, flow := range []struct {
			ns       *nstest.NS
			from, to string
		}{
			{v.pod1, p.pod1, on(p.node, 80)},
			{v.NS, p.node, on(p.pod1, 80)},
			{v.NS, p.node, on(p.node, 80)},
			{v.NS, p.node, on(p.internet, 80)},
			{v.router, p.peer, on(p.node, 80)},
		} {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if seen, err := seenBy(flow.ns, flow.from, flow.to); err != nil || seen != flow.from {
						select {
						case failures <- fmt.Sprintf("%s to %s: seen as %q (%v)", flow.from, flow.to, seen, err):
						default:
						}
					}
				}
			})
		}
	}
	for i := range 60 {
		cfg := v.configDual()
		cfg.BranchPods = []BranchMode{BranchStrict, BranchStandard, BranchStrict, BranchOff}[i%4]
		if report, err := v.host.Apply(context.Background(), cfg); err != nil || report.Writes == 0 {
			t.Errorf("%d writes (%v), want the rules to move", report.Writes, err)
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
}

// branch is a pod with a branch ENI as the plugin wires it in strict mode, on a link that stands for the trunk's VLAN.
func (v *vpc) branch(p plan, addr, gateway string) *nstest.NS {
	v.t.Helper()
	pod, v6 := nstest.New(v.t), ""
	if p.name == "ip6" {
		v6 = "-6"
	}
	v.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link add vlan.eth.5 address 02:00:00:00:00:55 type veth peer name rv netns %[1]s
		ip link add vlan0000000000c address 02:00:00:00:01:01 type veth peer name eth0 address 02:00:00:00:01:02 netns %[2]s
		ip link set vlan.eth.5 up; ip link set vlan0000000000c up
		ip neigh add %[3]s lladdr 02:00:00:00:01:02 dev vlan0000000000c
		ip %[5]s route add %[4]s dev vlan.eth.5 table 105
		ip %[5]s route add default via %[4]s dev vlan.eth.5 table 105
		ip %[5]s route add %[3]s dev vlan0000000000c table 105
		ip %[5]s rule add priority 10 iif vlan.eth.5 lookup 105
		ip %[5]s rule add priority 10 iif vlan0000000000c lookup 105`, v.router.Path(), pod.Path(), addr, gateway, v6))
	v.router.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link set rv up; ip address add %[1]s dev rv; ip %[3]s route add %[2]s dev rv; ip neigh add %[2]s lladdr 02:00:00:00:00:55 dev rv
		nft 'add counter ip vpc branch; add rule ip vpc source_check iifname rv counter name branch'
		nft 'add counter ip6 vpc branch; insert rule ip6 vpc source_check iifname rv ip6 saddr != fe80::/10 counter name branch'`,
		map[string]string{"ip": gateway + "/32", "ip6": gateway + "/64 nodad"}[p.name], addr, v6))
	inPod := map[string]string{"ip": "169.254.1.1", "ip6": "fe80::1"}[p.name]
	pod.Run("sh", "-e", "-c", fmt.Sprintf(`
		echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
		ip link set eth0 up; ip address add %[1]s dev eth0
		ip %[3]s route add %[2]s dev eth0; ip %[3]s route add default via %[2]s dev eth0
		ip neigh add %[2]s lladdr 02:00:00:00:01:01 dev eth0`, addr, inPod, v6))
	serve(v.t, pod, on(addr, 80))
	return pod
}

// In strict mode all that a branch ENI's pod sends and gets passes the VPC, the node's packets too. It stays so for as
// long as there is such a pod, whatever the mode is by then.
func TestStrictPodsPacketsPassTheVPC(t *testing.T) {
	for _, c := range []struct {
		plan
		addr, gateway string
		config        func(*vpc) Config
	}{
		{plan4, "10.0.3.200", "10.0.3.1", (*vpc).config},
		{plan6, "2001:db8:10:3::200", "fe80:ec2::1", (*vpc).config6},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := newVPC(t, 0)
			// What the init container does for such pods (DISABLE_TCP_EARLY_DEMUX): their packets to the node are to be
			// forwarded, and the kernel forwards none that it has found a socket for.
			v.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_early_demux")
			family := map[string]string{"ip": "-4", "ip6": "-6"}[c.name]
			v.applyTwice(with(c.config(v), func(cfg *Config) { cfg.BranchPods = BranchStrict }))
			pod := v.branch(c.plan, c.addr, c.gateway)
			passed := "0"
			passes := func(what string, ns *nstest.NS, from, to string) {
				t.Helper()
				if seen, err := seenBy(ns, from, on(to, 80)); err != nil || seen != from {
					t.Errorf("%s: seen as %q, want %q (%v)", what, seen, from, err)
				}
				before := passed
				if passed = v.counter(c.name, "branch"); passed == before {
					t.Errorf("%s: nothing of it passed the VPC", what)
				}
			}
			for _, mode := range []BranchMode{BranchStrict, BranchStandard, BranchOff, BranchStrict} {
				v.applyTwice(with(c.config(v), func(cfg *Config) { cfg.BranchPods = mode }))
				passes("pod to the VPC", pod, c.addr, c.peer)
				passes("pod to its node", pod, c.addr, c.node)
				passes("node to the pod", v.NS, c.node, c.addr)
				passes("pod to a pod on eth1", pod, c.addr, c.pod1)
			}
			v.applyTwice(c.config(v))
			if rules := v.Run("ip", family, "rule"); strings.Contains(rules, "\n0:\t") || strings.HasPrefix(rules, "0:\tfrom all") || !strings.Contains(rules, "20:\tfrom all lookup local") {
				t.Errorf("the local rule went home while there is a strict pod:\n%s", rules)
			}
			v.Run("sh", "-c", fmt.Sprintf("while ip %s rule delete priority 10 2>/dev/null; do :; done", family))
			v.applyTwice(c.config(v))
			if rules := v.Run("ip", family, "rule"); !strings.HasPrefix(rules, "0:\tfrom all lookup local\n512:") {
				t.Errorf("the local rule did not go home after the last strict pod:\n%s", rules)
			}
			v.noneDropped()
		})
	}
}

// When the last pod that was wired in strict mode goes, and the mode is another one by then, somebody must look.
func TestTheEndOfStrictPodsIsSeen(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	host, err := New(Options{NetNS: n.FD(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	cfg := config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.31"))
	n.Run("ip", "rule", "add", "priority", "10", "iif", "eth1", "lookup", "105")
	for _, mode := range []BranchMode{BranchStrict, BranchStandard} {
		if _, err := host.Apply(t.Context(), with(cfg, func(c *Config) { c.BranchPods = mode })); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reasons := make(chan string, 100)
	done := make(chan error)
	go func() { done <- host.Watch(ctx, func(reason string) { reasons <- reason }) }()
	t.Cleanup(func() { cancel(); <-done })
	for deadline := time.After(time.Minute); ; {
		n.Run("sh", "-c", "ip rule delete priority 10 iif eth1; ip rule add priority 10 iif eth1 lookup 105")
		select {
		case reason := <-reasons:
			if reason == "rule at priority 10" {
				return
			}
		case <-time.After(10 * time.Millisecond): // Watch may not be listening yet
		case <-deadline:
			t.Fatal("nobody was told")
		}
	}
}
