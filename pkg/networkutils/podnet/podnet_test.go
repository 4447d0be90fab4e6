package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func podOf(netns *nstest.NS, container, name, address string) Pod {
	return Pod{
		Netns:       netns.Path(),
		ContainerID: container,
		Interfaces: []Interface{{
			Name:     "eth0",
			HostVeth: names.HostVeth("eni", "default", name, 0),
			Address:  netip.MustParsePrefix(address),
			MTU:      9001,
		}},
	}
}

// in runs f inside a namespace with a deadline, as the plugin would on the host.
func in(t *testing.T, host *nstest.NS, f func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return host.Do(func() error { return f(ctx) })
}

func mustSetup(t *testing.T, host *nstest.NS, pod Pod) {
	t.Helper()
	if err := in(t, host, func(ctx context.Context) error { _, err := Setup(ctx, pod); return err }); err != nil {
		t.Fatal(err)
	}
}

// volatile is what the kernel picks, or changes in its own time once a link has a carrier.
var volatile = regexp.MustCompile(`(?m)^\d+: |@if\d+| <\S+>| state \S+| linkdown\b| +$|^fe80::/64 .*\n`)

// dump renders what a namespace holds.
func dump(ns *nstest.NS, family string) string {
	var b strings.Builder
	for _, args := range []string{
		"-o link show type veth", "addr show scope global", "rule", "route show table main", "route show table 5120", "neigh show nud permanent",
	} {
		out := "none"
		// A table that never had a route is an error to ip.
		_ = ns.Do(func() error {
			if args == "route show table 5120" {
				out = ns.Run("sh", "-c", "ip "+family+" "+args+" 2>/dev/null || true")
			} else {
				out = ns.Run("ip", append([]string{family}, strings.Fields(args)...)...)
			}
			return nil
		})
		fmt.Fprintf(&b, "# %s\n%s", args, volatile.ReplaceAllString(out, ""))
	}
	return b.String()
}

func TestSetupGolden(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		family, address, golden string
		table                   int
	}{
		{"-4", "10.0.1.11/32", "pod4", 0},
		{"-6", "2001:db8::11/128", "pod6", 0},
		{"-4", "10.0.1.11/32", "pod4-rules-primary", names.TableMain},
		{"-4", "10.0.1.11/32", "pod4-rules", 10101},
		{"-6", "2001:db8::11/128", "pod6-rules", 2},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			t.Parallel()
			host, netns := nstest.New(t), nstest.New(t)
			pod := podOf(netns, "c1", "web-0", tt.address)
			pod.Interfaces[0].RuleTable = tt.table
			mustSetup(t, host, pod)
			got := "== host\n" + dump(host, tt.family) + "== pod\n" + dump(netns, tt.family)
			golden(t, tt.golden, got)
			if err := in(t, host, func(ctx context.Context) error { return Check(ctx, pod) }); err != nil {
				t.Error(err)
			}
			remains := Remains{Addresses: []netip.Addr{pod.Interfaces[0].Address.Addr()}}
			for range 2 {
				if err := in(t, host, func(ctx context.Context) error { return Teardown(ctx, remains) }); err != nil {
					t.Fatal(err)
				}
			}
			got = "== host\n" + dump(host, tt.family)
			golden(t, tt.golden+"-after", got)
			if err := in(t, host, func(ctx context.Context) error { return Check(ctx, pod) }); err == nil {
				t.Error("Check finds nothing wrong without the host's routes")
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := "testdata/" + name + ".golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s: want\n%s\ngot\n%s", file, want, got)
	}
}

// An ADD must not become dearer with the number of pods: it asks for nothing but the link it made, and talks to the
// kernel a fixed number of times.
func TestSetupSendsAFixedNumberOfBatches(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t)
	host.Run("ip", "link", "add", "eth0", "type", "veth") // a node has links, so the two ends get different indexes
	var batches, veths int
	dial := dialer{observe: func(messages []message) {
		if !asks(messages) {
			batches++
		}
		for _, m := range messages {
			if m.flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP {
				t.Errorf("%s is a dump", m.what)
			}
			if m.typ == unix.RTM_NEWLINK && m.flags&unix.NLM_F_CREATE != 0 {
				veths++
			}
		}
	}}
	if err := in(t, host, func(ctx context.Context) error {
		_, err := setup(ctx, ctx, podOf(netns, "c1", "web-0", "10.0.1.11/32"), dial)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if batches != 3 || veths != 1 {
		t.Errorf("%d batches and %d new links, want 3 and 1", batches, veths)
	}
}

// asks reports whether a batch changes nothing: how often Setup asks whether a link is ready is for the kernel to say.
func asks(messages []message) bool {
	for _, m := range messages {
		if m.typ != unix.RTM_GETLINK && m.typ != unix.RTM_GETROUTE {
			return false
		}
	}
	return true
}

func TestEndsNeverShareAnIndex(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t) // both hand out 2 next
	mustSetup(t, host, podOf(netns, "c1", "web-0", "10.0.1.11/32"))
	number := regexp.MustCompile(`(?m)^(\d+): (eni|eth0)`)
	outer := number.FindStringSubmatch(host.Run("ip", "-o", "link"))
	inner := number.FindStringSubmatch(netns.Run("ip", "-o", "link"))
	if outer == nil || inner == nil || outer[1] == inner[1] {
		t.Errorf("host end %q, container end %q", outer, inner)
	}
}

func TestSetupReplacesTheVethOfAnOlderSandbox(t *testing.T) {
	t.Parallel()
	host, older, newer := nstest.New(t), nstest.New(t), nstest.New(t)
	mustSetup(t, host, podOf(older, "c1", "web-0", "10.0.1.11/32"))
	mustSetup(t, host, podOf(newer, "c2", "web-0", "10.0.1.12/32"))
	if links := older.Run("ip", "-o", "link"); strings.Contains(links, "eth0") {
		t.Errorf("the older sandbox still has its interface:\n%s", links)
	}
	if routes := host.Run("ip", "route", "show", "table", "all"); strings.Contains(routes, "10.0.1.11 ") {
		t.Errorf("routes to the older sandbox are left:\n%s", routes)
	}
	// The same sandbox again: kubelet and runtimes may repeat an ADD.
	before := host.Run("ip", "-o", "link", "show", "type", "veth")
	mustSetup(t, host, podOf(newer, "c2", "web-0", "10.0.1.12/32"))
	mac := regexp.MustCompile(`link/ether \S+`)
	after := host.Run("ip", "-o", "link", "show", "type", "veth")
	if mac.FindString(before) != mac.FindString(after) {
		t.Errorf("the repeated set-up changed the MAC address:\n%s%s", before, after)
	}
}

// An older sandbox's veth goes with its namespace, which may be while it is being replaced.
func TestSetupFindsTheVethOfAnOlderSandboxGone(t *testing.T) {
	t.Parallel()
	host, older, newer := nstest.New(t), nstest.New(t), nstest.New(t)
	mustSetup(t, host, podOf(older, "c1", "web-0", "10.0.1.11/32"))
	veth := names.HostVeth("eni", "default", "web-0", 0)
	gone := false
	err := in(t, host, func(ctx context.Context) error {
		_, err := setup(ctx, ctx, podOf(newer, "c2", "web-0", "10.0.1.12/32"), dialer{observe: func(messages []message) {
			if strings.HasPrefix(messages[0].what, "delete link "+veth) && !gone {
				gone = true
				host.Run("ip", "link", "delete", veth)
			}
		}})
		return err
	})
	if err != nil || !gone {
		t.Errorf("gone %t: %v", gone, err)
	}
}

func TestSetupThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(t *testing.T, host, netns *nstest.NS, pod *Pod){
		"namespace is no namespace": func(t *testing.T, _, _ *nstest.NS, pod *Pod) {
			pod.Netns = t.TempDir()
		},
		"namespace is gone": func(t *testing.T, _, _ *nstest.NS, pod *Pod) {
			pod.Netns = t.TempDir() + "/gone"
		},
		"namespace is the host's": func(_ *testing.T, host, _ *nstest.NS, pod *Pod) {
			pod.Netns = host.Path()
		},
		"name is taken inside the pod": func(_ *testing.T, _, netns *nstest.NS, _ *Pod) {
			netns.Run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
		},
		"second interface fails": func(_ *testing.T, _, _ *nstest.NS, pod *Pod) {
			second := pod.Interfaces[0]
			second.HostVeth = "eni22222222222"
			pod.Interfaces = append(pod.Interfaces, second)
		},
		"address is no pod's": func(_ *testing.T, _, _ *nstest.NS, pod *Pod) {
			pod.Interfaces[0].Address = netip.MustParsePrefix("0.0.0.0/32")
		},
		"address is a network": func(_ *testing.T, _, _ *nstest.NS, pod *Pod) {
			pod.Interfaces[0].Address = netip.MustParsePrefix("10.0.1.0/28")
		},
		"MTU is refused": func(_ *testing.T, _, _ *nstest.NS, pod *Pod) {
			pod.Interfaces[0].MTU = 1 << 20
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, netns := nstest.New(t), nstest.New(t)
			pod := podOf(netns, "c1", "web-0", "10.0.1.11/32")
			breakIt(t, host, netns, &pod)
			before := dump(host, "-4") + dump(netns, "-4")
			err := in(t, host, func(ctx context.Context) error { _, err := Setup(ctx, pod); return err })
			if err == nil {
				t.Fatal("it worked")
			}
			t.Log(err)
			if after := dump(host, "-4") + dump(netns, "-4"); after != before {
				t.Errorf("left behind: before\n%s\nafter\n%s", before, after)
			}
		})
	}
}

func TestNothingIsWrittenAfterTheDeadline(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t)
	err := host.Do(func() error {
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		_, err := setup(ctx, ctx, podOf(netns, "c1", "web-0", "10.0.1.11/32"), dialer{observe: func(messages []message) {
			t.Errorf("sent: %s", messages[0].what)
		}})
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestDeadlineDuringSetupIsRolledBack(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t)
	before := dump(host, "-4")
	err := in(t, host, func(ctx context.Context) error {
		forward, expire := context.WithCancel(ctx)
		defer expire()
		batches := 0
		_, err := setup(forward, ctx, podOf(netns, "c1", "web-0", "10.0.1.11/32"), dialer{observe: func([]message) {
			if batches++; batches == 2 {
				expire()
			}
		}})
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if after := dump(host, "-4"); after != before {
		t.Errorf("left behind: before\n%s\nafter\n%s", before, after)
	}
}

func TestReserveForTheWayBack(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for left, want := range map[time.Duration]time.Duration{
		90 * time.Second: 88 * time.Second, 8 * time.Second: 6 * time.Second, 4 * time.Second: 3 * time.Second, 0: 0,
	} {
		ctx, cancel := context.WithDeadline(t.Context(), now.Add(left))
		forward, stop := WithReserve(ctx, now)
		if deadline, _ := forward.Deadline(); deadline.Sub(now) != want {
			t.Errorf("with %s left, changes are made for %s, want %s", left, deadline.Sub(now), want)
		}
		stop()
		cancel()
	}
	forward, stop := WithReserve(t.Context(), now)
	defer stop()
	if _, ok := forward.Deadline(); ok {
		t.Error("a deadline from nowhere")
	}
}

// A veth that a predecessor made has an address that says nothing; its other end does.
func TestTeardownOfAPodOfThePredecessor(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t)
	mustSetup(t, host, podOf(netns, "c1", "web-0", "10.0.1.11/32"))
	veth := names.HostVeth("eni", "default", "web-0", 0)
	host.Run("ip", "link", "set", veth, "address", "02:00:00:00:00:01")
	remains := Remains{Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.11")}, Via: veth, ContainerID: "c1", IfName: "eth0", Netns: netns.Path()}
	if err := in(t, host, func(ctx context.Context) error { return Teardown(ctx, remains) }); err != nil {
		t.Fatal(err)
	}
	if routes := host.Run("ip", "route", "show", "table", "all"); strings.Contains(routes, "10.0.1.11 dev eni") {
		t.Errorf("routes are left:\n%s", routes)
	}
}

func TestTeardownKeepsWhatIsNotThePods(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t)
	mustSetup(t, host, podOf(netns, "c1", "web-0", "10.0.1.11/32"))
	addr := netip.MustParseAddr("10.0.1.11")
	teardown := func(remains Remains) {
		t.Helper()
		if err := in(t, host, func(ctx context.Context) error { return Teardown(ctx, remains) }); err != nil {
			t.Fatal(err)
		}
	}
	routes := func() int {
		return strings.Count(host.Run("ip", "route", "show", "table", "all"), "10.0.1.11 dev eni")
	}
	// Another pod's late teardown: its veth is gone, or is another one.
	teardown(Remains{Addresses: []netip.Addr{addr}, Via: "eni00000000000"})
	other := nstest.New(t)
	mustSetup(t, host, podOf(other, "c2", "web-1", "10.0.1.12/32"))
	teardown(Remains{Addresses: []netip.Addr{addr}, Via: names.HostVeth("eni", "default", "web-1", 0)})
	if n := routes(); n != 2 {
		t.Fatalf("%d routes to the pod are left, want 2", n)
	}
	// An older sandbox of the same pod, which had the same address: the veth has the same name.
	veth := names.HostVeth("eni", "default", "web-0", 0)
	teardown(Remains{Addresses: []netip.Addr{addr}, Via: veth, ContainerID: "c0", IfName: "eth0"})
	teardown(Remains{Addresses: []netip.Addr{addr}, Via: veth, ContainerID: "c0", IfName: "eth0", Netns: nstest.New(t).Path(), Held: true})
	if n := routes(); n != 2 {
		t.Fatalf("%d routes to the pod are left, want 2", n)
	}
	// Its own one; what the host keeps behind unassigned addresses stays.
	host.Run("ip", "route", "add", "unreachable", "10.0.1.11", "metric", "4294967295", "table", "5120")
	host.Run("ip", "-6", "route", "add", "unreachable", "2001:db8::11", "metric", "4294967295", "table", "5120")
	for range 2 {
		teardown(Remains{
			Addresses: []netip.Addr{addr, netip.MustParseAddr("2001:db8::11")},
			Via:       names.HostVeth("eni", "default", "web-0", 0),
		})
	}
	if n := routes(); n != 0 {
		t.Errorf("%d routes to the pod are left, want 0", n)
	}
	if all := host.Run("ip", "route", "show", "table", "5120") + host.Run("ip", "-6", "route", "show", "table", "5120"); strings.Count(all, "unreachable") != 2 {
		t.Errorf("unreachable routes are gone:\n%s", all)
	}
}

// Packets pass at once in both families: no duplicate address detection on either end, no address resolution for the
// gateway.
func TestPodAnswersAtOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ address, host string }{
		{"10.0.1.11/32", "10.0.1.10/24"},
		{"2001:db8::11/128", "2001:db8::10/64"},
	} {
		t.Run(tt.address, func(t *testing.T) {
			t.Parallel()
			host, netns := nstest.New(t), nstest.New(t)
			host.Run("ip", "address", "add", tt.host, "dev", "lo")
			// As some runtimes do to new sandboxes.
			netns.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
			pod := podOf(netns, "c1", "web-0", tt.address)
			mustSetup(t, host, pod)
			start := time.Now()
			exchange(t, netns, host, netip.MustParsePrefix(tt.host).Addr())
			exchange(t, host, netns, pod.Interfaces[0].Address.Addr())
			t.Logf("both ways after %s", time.Since(start))
		})
	}
}

// exchange opens a TCP connection between two namespaces.
func exchange(t *testing.T, from, to *nstest.NS, addr netip.Addr) {
	t.Helper()
	var listener net.Listener
	err := to.Do(func() error {
		var err error
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	err = from.Do(func() error {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSecondInterfaceHasItsOwnTable(t *testing.T) {
	t.Parallel()
	host, netns := nstest.New(t), nstest.New(t)
	pod := podOf(netns, "c1", "web-0", "10.0.1.11/32")
	pod.Interfaces = append(pod.Interfaces, Interface{
		Name: "mNicIf1", HostVeth: names.HostVeth("eni", "default", "web-0", 1), Address: netip.MustParsePrefix("10.0.2.11/32"), MTU: 9001,
	})
	mustSetup(t, host, pod)
	if err := in(t, host, func(ctx context.Context) error { return Check(ctx, pod) }); err != nil {
		t.Error(err)
	}
	got := netns.Run("ip", "rule") + netns.Run("ip", "route") + netns.Run("ip", "route", "show", "table", "1")
	golden(t, "multinic", got)
}
