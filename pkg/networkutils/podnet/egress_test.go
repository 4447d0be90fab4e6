package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

var egressRanges = map[string]netip.Prefix{
	"-4": netip.MustParsePrefix("169.254.172.0/22"),
	"-6": netip.MustParsePrefix("fd00::ac:0/118"),
}

func egressOf(netns *nstest.NS, container, family, address string) Egress {
	return Egress{Netns: netns.Path(), ContainerID: container, PodInterface: "eth0",
		Address: netip.MustParseAddr(address), Range: egressRanges[family], MTU: 9001}
}

var hostAddr = map[string]netip.Prefix{"-4": netip.MustParsePrefix("10.0.1.10/32"), "-6": netip.MustParsePrefix("2001:db8::10/128")}

// hostOf makes a host with an address in each family.
func hostOf(t *testing.T) *nstest.NS {
	host := nstest.New(t)
	for _, p := range hostAddr {
		host.Run("ip", "address", "add", p.String(), "dev", "lo")
	}
	return host
}

func mustSetupEgress(t *testing.T, host *nstest.NS, e Egress) {
	t.Helper()
	if err := in(t, host, func(ctx context.Context) error { _, err := SetupEgress(ctx, e); return err }); err != nil {
		t.Fatal(err)
	}
}

// TestEgressGolden: beside the pod's ordinary interface of the other family there is one with an address that only the
// node knows.
func TestEgressGolden(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ family, pod, address, golden string }{
		{"-4", "2001:db8::11/128", "169.254.172.2", "egress4"},
		{"-6", "10.0.1.11/32", "fd00::ac:2", "egress6"},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			t.Parallel()
			host, netns := nstest.New(t), nstest.New(t)
			mustSetup(t, host, podOf(netns, "c1", "web-0", tt.pod))
			e := egressOf(netns, "c1", tt.family, tt.address)
			mustSetupEgress(t, host, e)
			golden(t, tt.golden, "== host\n"+dump(host, tt.family)+"== pod\n"+dump(netns, tt.family))
			check := func() error {
				return in(t, host, func(ctx context.Context) error { return CheckEgress(ctx, e, e.HostVeth()) })
			}
			if err := check(); err != nil {
				t.Error(err)
			}
			if tt.family == "-6" {
				for iface, want := range map[string]string{"eth0": "1", "v6if0": "0"} {
					if got := strings.TrimSpace(netns.Run("cat", "/proc/sys/net/ipv6/conf/"+iface+"/disable_ipv6")); got != want {
						t.Errorf("disable_ipv6 of %s: %s", iface, got)
					}
				}
			}
			for range 2 {
				if err := in(t, host, func(ctx context.Context) error {
					return TeardownEgress(ctx, []netip.Addr{e.Address})
				}); err != nil {
					t.Fatal(err)
				}
			}
			if out := host.Run("ip", tt.family, "route", "show", "table", "main"); strings.Contains(out, tt.address) {
				t.Errorf("after the teardown: %s", out)
			}
			if check() == nil {
				t.Error("CheckEgress finds nothing wrong without the host's route")
			}
		})
	}
}

// TestEgressAnswersAtOnce: the address works in both directions as soon as SetupEgress is back, without waiting for DAD or
// a neighbour.
func TestEgressAnswersAtOnce(t *testing.T) {
	t.Parallel()
	for family, address := range map[string]string{"-4": "169.254.172.9", "-6": "fd00::ac:9"} {
		host, netns := hostOf(t), nstest.New(t)
		e := egressOf(netns, "c1", family, address)
		mustSetupEgress(t, host, e)
		exchange(t, host, netns, e.Address)
		exchange(t, netns, host, hostAddr[family].Addr())
	}
}

func TestEgressSendsAFixedNumberOfBatches(t *testing.T) {
	t.Parallel()
	for family, address := range map[string]string{"-4": "169.254.172.9", "-6": "fd00::ac:9"} {
		host, netns := nstest.New(t), nstest.New(t)
		batches, dumps := 0, 0
		dial := dialer{observe: func(messages []message) {
			if !asks(messages) {
				batches++
			}
			for _, m := range messages {
				if m.flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP {
					dumps++
				}
			}
		}}
		err := in(t, host, func(ctx context.Context) error {
			_, err := setupEgress(ctx, ctx, egressOf(netns, "c1", family, address), dial)
			return err
		})
		// A pair whose ends happen to share an index is made a second time.
		if err != nil || batches < 3 || batches > 5 || dumps > 0 {
			t.Errorf("%s: %d batches with %d dumps: %v", family, batches, dumps, err)
		}
	}
}

// TestEgressThatFailsLeavesNothing: whatever step fails, and with a second ADD of the sandbox after it.
func TestEgressThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	for step := 1; ; step++ {
		host, netns := hostOf(t), nstest.New(t)
		e := egressOf(netns, "c1", "-6", "fd00::ac:9")
		batch := 0
		ctx, cancel := context.WithCancel(t.Context())
		dial := dialer{observe: func([]message) {
			if batch++; batch == step {
				cancel()
			}
		}}
		err := host.Do(func() error {
			_, err := setupEgress(ctx, context.WithoutCancel(ctx), e, dial)
			return err
		})
		cancel()
		if err == nil {
			if step < 3 {
				t.Fatalf("only %d steps", step)
			}
			return
		}
		if left := host.Run("ip", "-o", "link") + host.Run("ip", "-6", "route"); strings.Contains(left, names.EgressVethPrefix) || strings.Contains(left, "fd00") {
			t.Errorf("after a failure at step %d:\n%s", step, left)
		}
		mustSetupEgress(t, host, e)
		mustSetupEgress(t, host, e)
		exchange(t, host, netns, e.Address)
	}
}

func TestEgressRefuses(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t)
	good := egressOf(netns, "c1", "-6", "fd00::ac:9")
	for name, change := range map[string]func(*Egress){
		"address of elsewhere":     func(e *Egress) { e.Address = netip.MustParseAddr("fd01::1") },
		"no range":                 func(e *Egress) { e.Range = netip.Prefix{} },
		"interface of that name":   func(e *Egress) { e.PodInterface = names.EgressV6 },
		"interface without a name": func(e *Egress) { e.PodInterface = "" },
		"no namespace":             func(e *Egress) { e.Netns = "/nowhere" },
		"the host's namespace":     func(e *Egress) { e.Netns = "/proc/thread-self/ns/net" },
	} {
		e := good
		change(&e)
		if err := in(t, host, func(ctx context.Context) error { _, err := SetupEgress(ctx, e); return err }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestEgressGone: a route or a veth is a sign of life, a default route is none.
func TestEgressGone(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	host.Run("sh", "-e", "-c", `
ip link add out0 type veth peer out1; ip link set out0 up; ip link set out1 up
ip route add default dev out0; ip -6 route add default dev out0
ip route add 169.254.172.7 dev out0; ip -6 route add fd00::ac:7 dev out0
ip link add `+EgressVeth("alive")+` type veth peer other`)
	var all []EgressSandbox
	for i := 2; i <= 250; i++ {
		id := fmt.Sprint("c", i)
		if i == 9 {
			id = "alive"
		}
		all = append(all, EgressSandbox{id, netip.MustParseAddr(fmt.Sprintf("169.254.172.%d", i))},
			EgressSandbox{id, netip.MustParseAddr(fmt.Sprintf("fd00::ac:%x", i))})
	}
	err := in(t, host, func(ctx context.Context) error {
		gone, err := EgressGone(ctx, all)
		if err != nil {
			return err
		}
		for _, s := range gone {
			if b := s.Address.AsSlice(); b[len(b)-1] == 7 || s.ContainerID == "alive" {
				t.Errorf("%+v is alive", s)
			}
		}
		if len(gone) != len(all)-4 {
			t.Errorf("%d of %d are gone", len(gone), len(all))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestEgressVeth: whatever the prefix of ordinary veths is, none has the name of an egress one.
func TestEgressVeth(t *testing.T) {
	t.Parallel()
	ordinary := regexp.MustCompile(`[0-9a-f]{11}$`)
	seen := map[string]bool{}
	for i := range 1000 {
		name := EgressVeth(fmt.Sprint("c", i))
		if len(name) >= unix.IFNAMSIZ || ordinary.MatchString(name) || seen[name] {
			t.Fatal(name)
		}
		seen[name] = true
	}
}

func TestEgressRule(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	ask := func(addr string) error {
		return in(t, host, func(ctx context.Context) error { return EgressRule(ctx, netip.MustParseAddr(addr)) })
	}
	if err := ask("fd00::ac:1"); !errors.Is(err, ErrNoEgressRule) {
		t.Errorf("without a table: %v", err)
	}
	for family, set := range map[string]string{"ip6": "ipv6_addr; flags interval; elements = { fd00::ac:0/118 }", "ip": "ipv4_addr; flags interval; elements = { 169.254.172.0/22 }"} {
		host.Run("nft", "table "+family+" "+names.NFTable+" {\nset "+names.NFEgressSet+" { type "+set+";}\n}")
	}
	for addr, covered := range map[string]bool{
		"fd00::ac:0": true, "fd00::ac:9": true, "fd00::ac:3ff": true, "fd00::ac:400": false, "fd00::ab:ffff": false,
		"169.254.172.0": true, "169.254.175.255": true, "169.254.176.0": false, "169.254.171.255": false,
	} {
		if err := ask(addr); (err == nil) != covered || err != nil && !errors.Is(err, ErrNoEgressRule) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
