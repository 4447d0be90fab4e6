package slice

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
	"vpccni/pkg/networkutils/names"
)

// TestEgressV6 is case 24 of upstream's list: pods of an IPv4 cluster, on the primary ENI and on others, reach IPv6
// destinations with the node's address; each other they do not by their egress addresses, and themselves do.
func TestEgressV6(t *testing.T) {
	t.Parallel()
	const count = 7 // t3.medium has 5 addresses for pods on each ENI
	spec := one(100*time.Millisecond, map[string]string{"ENABLE_V6_EGRESS": "true"})
	spec.Subnets = cluster.DefaultSubnets(1)
	spec.Subnets[0].IPv6 = netip.MustParsePrefix("2600:1f14:1:2::/64")
	l := lab(t, spec)
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, count) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	pods := l.Pods("n1")
	enis := map[string]int{}
	for _, e := range l.Cloud().ENIsOf(n.InstanceID) {
		for _, a := range e.Secondary {
			for _, p := range pods {
				if p.Address == a {
					enis[e.ID]++
				}
			}
		}
	}
	if len(enis) < 2 {
		t.Fatalf("pods by ENI: %v", enis)
	}
	outside := func(f func() error) error { return l.Fabric().Do(fabric.HostInternet, f) }
	server, err := probe.Serve(t.Context(), "internet", outside, probePort)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	do := func(p cluster.Pod) probe.Do {
		return func(f func() error) error { return l.PodDo(p.Node, p.Namespace, p.Name, f) }
	}
	checkOutside := func(when string) {
		t.Helper()
		for _, p := range pods {
			for target, want := range map[netip.Addr]netip.Addr{fabric.InternetAddr6: n.Address6, fabric.InternetAddr: n.Address} {
				for what, ask := range map[string]func() (probe.Answer, error){
					"TCP": func() (probe.Answer, error) {
						return probe.TCP(t.Context(), do(p), netip.AddrPortFrom(target, probePort), 100, patient)
					},
					"UDP": func() (probe.Answer, error) {
						return probe.UDP(t.Context(), do(p), netip.AddrPortFrom(target, probePort), 100, patient)
					},
				} {
					if a, err := ask(); err != nil || a.Source != want {
						t.Errorf("%s: %s %s to %s is seen as %s: %v", when, p.Name, what, target, a.Source, err)
					}
				}
			}
		}
	}
	checkOutside("at first")

	own := map[string]netip.Addr{}
	var servers []*probe.Server
	for _, p := range pods {
		addr, err := egressAddress(do(p))
		if err != nil {
			t.Fatalf("%s: %v", p.Name, err)
		}
		own[p.Name] = addr
		server, err := probe.Serve(t.Context(), p.Name, do(p), probePort)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, server)
	}
	// At once: a TCP client hears of an ICMPv6 refusal only when it tries again, after a second.
	var group errgroup.Group
	for i, from := range pods {
		to := pods[(i+1)%len(pods)]
		group.Go(func() error {
			if _, err := probe.TCP(t.Context(), do(from), netip.AddrPortFrom(own[to.Name], probePort), 100, patient); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s reaches %s by its egress address: %v", from.Name, to.Name, err)
			}
			if _, err := probe.TCP(t.Context(), do(from), netip.AddrPortFrom(own[from.Name], probePort), 100, patient); err != nil {
				t.Errorf("%s does not reach itself: %v", from.Name, err)
			}
			return nil
		})
	}
	_ = group.Wait()
	if got := lines(t, n, "nft list table ip6 "+names.NFTable+" | grep -c snat; ip -6 route | grep -c '^fd00::ac:'"); got != fmt.Sprintf("2\n%d\n", count) {
		t.Errorf("rules (with the name of their chain) and routes: %q", got)
	}

	n.KillIPAMD()
	if err := n.StartIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkOutside("after a restart")
	lines(t, n, "nft flush ruleset")
	eventually(t, 30*time.Second, "the rules are back", func() bool {
		return strings.Contains(lines(t, n, "nft list table ip6 "+names.NFTable+" 2>&1 || true"), "snat to "+n.Address6.String()) &&
			strings.Contains(lines(t, n, "nft list table ip "+names.NFTable+" 2>&1 || true"), "snat to "+n.Address.String())
	})
	checkOutside("after nft flush ruleset")

	for _, s := range servers { // they keep the pods' namespaces
		_ = s.Close()
	}
	for i := range count {
		if err := l.PodDel(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Error(err)
		}
	}
	if got := lines(t, n, "ls /run/cni/v4pd/egress-v6-ipam/aws-cni; ip -6 route | grep '^fd00::ac:' || true"); got != "last_reserved_ip.0\nlock\n" {
		t.Errorf("left behind: %s", got)
	}
	eventually(t, 30*time.Second, "the links go with their namespaces", func() bool {
		return lines(t, n, "ip -o link | grep -o 'veth-[0-9a-f]*' || true") == ""
	})
}

// TestEgressV6WithoutAddress: on a node without IPv6 the feature is off, and pods start.
func TestEgressV6WithoutAddress(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, map[string]string{"ENABLE_V6_EGRESS": "true"}))
	if _, err := l.PodAdd(t.Context(), "n1", namespace, "pod01"); err != nil {
		t.Fatal(err)
	}
	if log := l.Nodes()[0].IPAMDLog(); !strings.Contains(log, "ENABLE_V6_EGRESS has no effect") {
		t.Error("ipamd does not say so")
	}
	err := l.PodDo("n1", namespace, "pod01", func() error { _, err := net.InterfaceByName("v6if0"); return err })
	if err == nil {
		t.Error("the pod has a way out that leads nowhere")
	}
}

// egressAddress is a pod's own.
func egressAddress(do probe.Do) (addr netip.Addr, err error) {
	err = do(func() error {
		link, err := netlink.LinkByName("v6if0")
		if err != nil {
			return err
		}
		list, err := netlink.AddrList(link, netlink.FAMILY_V6)
		for _, a := range list {
			if a.Scope == unix.RT_SCOPE_UNIVERSE {
				addr, _ = netip.AddrFromSlice(a.IP)
			}
		}
		if err == nil && !addr.IsValid() {
			err = fmt.Errorf("no address on v6if0: %v", list)
		}
		return err
	})
	return addr, err
}

// lines is what a script prints on a node.
func lines(t *testing.T, n *cluster.Node, script string) string {
	t.Helper()
	out, err := n.OS().Command(t.Context(), "sh", "-e", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}
