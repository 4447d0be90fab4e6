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
	for i := range min(60, *updates) {
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

// In strict mode all that a branch ENI's pod sends and gets passes the VPC, the node's packets too. It stays so for as
// long as there is such a pod, whatever the mode is by then.
func TestStrictPodsPacketsPassTheVPC(t *testing.T) {
	for _, c := range branchPods {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := newVPC(t, 0)
			// What the init container does for such pods (DISABLE_TCP_EARLY_DEMUX): their packets to the node are to be
			// forwarded, and the kernel forwards none that it has found a socket for.
			v.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_early_demux")
			v.applyTwice(with(c.config(v), func(cfg *Config) { cfg.BranchPods = BranchStrict }))
			pod := v.branch(c, BranchStrict)
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
			if rules := v.Run("ip", c.flag(), "rule"); strings.Contains(rules, "\n0:\t") || strings.HasPrefix(rules, "0:\tfrom all") || !strings.Contains(rules, "20:\tfrom all lookup local") {
				t.Errorf("the local rule went home while there is a strict pod:\n%s", rules)
			}
			v.Run("sh", "-c", fmt.Sprintf("while ip %s rule delete priority 10 2>/dev/null; do :; done", c.flag()))
			v.applyTwice(c.config(v))
			if rules := v.Run("ip", c.flag(), "rule"); !strings.HasPrefix(rules, "0:\tfrom all lookup local\n512:") {
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
