package hostnet

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"
)

func TestWaitLink(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	t.Run("is there", func(t *testing.T) {
		n := newNode(t, 1)
		if err := n.host.WaitLink(ctx, mac(0)); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("context ends", func(t *testing.T) {
		n := newNode(t, 1)
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan error)
		go func() { done <- n.host.WaitLink(ctx, mac(1)) }()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("error %v, want %v", err, context.Canceled)
		}
	})
	t.Run("a link above another one is not it", func(t *testing.T) {
		n := newNode(t, 1)
		n.Run("ip", "link", "add", "br0", "address", mac(1).String(), "type", "bridge")
		done := make(chan error, 1)
		go func() { done <- n.host.WaitLink(ctx, mac(1)) }()
		n.addLink(1)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	t.Run("gets the MAC later", func(t *testing.T) {
		n := newNode(t, 2)
		want := net.HardwareAddr{2, 0, 0, 0, 0, 0x99}
		done := make(chan error, 1)
		go func() { done <- n.host.WaitLink(ctx, want) }()
		n.Run("ip", "link", "set", "eth1", "address", want.String())
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
	// Links come while others are looked for, at every moment of the look.
	t.Run("race", func(t *testing.T) {
		n := newNode(t, 1)
		for round := range 10 {
			n.Run("sh", "-c", "for i in 1 2 3 4; do ip link delete eth$i 2>/dev/null; done; true")
			var waiters sync.WaitGroup
			errs := make(chan error, 4)
			for i := range 4 {
				waiters.Go(func() { errs <- n.host.WaitLink(ctx, mac(i+1)) })
			}
			for i := range 4 {
				n.addLink(1 + (i+round)%4)
			}
			waiters.Wait()
			close(errs)
			for err := range errs {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestWatch(t *testing.T) {
	t.Parallel()
	n := newNode(t, 3)
	clock := clockwork.NewFakeClock()
	host, err := New(Options{NetNS: n.FD(), Clock: clock, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	cfg := config(primaryENI("10.0.1.11"), with6(secondaryENI(1, "10.0.1.31"), "2001:db8:10:1:b::/80"), with6(secondaryENI(2, "100.64.2.11")))
	cfg.IPv4, cfg.IPv6 = true, true
	if _, err := host.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	calls := make(chan string)
	done := make(chan error, 1)
	go func() {
		done <- host.Watch(ctx, func(reason string) {
			if reason != pollReason {
				calls <- reason
			}
		})
	}()

	// awaitFold returns once an event started the folding time; false if none did for a while.
	awaitFold := func(patience time.Duration) bool {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return clock.BlockUntilContext(ctx, 2) == nil // the other one is for polling
	}
	damage := "ip rule delete priority 512; ip rule add priority 512 lookup 5120 proto 89"
	for !awaitFold(20 * time.Millisecond) { // until Watch listens
		n.Run("sh", "-c", damage)
	}
	// settle waits until the events so far have had their calls.
	settle := func() (calledFor []string) {
		for awaitFold(50 * time.Millisecond) {
			clock.Advance(foldTime)
			calledFor = append(calledFor, <-calls)
		}
		return calledFor
	}
	settle()

	for _, c := range []struct{ script, want string }{
		{"ip rule delete priority 512", "rule at priority 512"},
		{"ip route flush table 2", "route in table 2"},
		{"ip route flush table 5121", "route in table 5121"},
		{"ip address flush dev eth2", "address"},
		{"ip link set eth0 mtu 1400", "link eth0"},
		{"echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter", "link setting"},
		{"nft flush chain ip vpc-cni prerouting", "nftables table vpc-cni"},
		{"nft delete table ip vpc-cni", "nftables table vpc-cni"},
		{"ip -6 rule delete priority 512", "rule at priority 512"},
		{"ip -6 route flush table 2", "route in table 2"},
		{"ip -6 route flush table 5121", "route in table 5121"},
		{"ip -6 address flush dev eth2 scope global", "address"},
		{"ip -6 route add default via fe80::77 dev eth1 proto ra metric 100", "route in table main"},
		{"nft delete table ip6 vpc-cni", "nftables table vpc-cni"},
	} {
		// Pods come and go, and other programs work, without a call.
		n.Run("sh", "-e", "-c", `
			ip link add eniaaaaaaaaaaa type veth peer name pod; ip link set eniaaaaaaaaaaa up
			ip route add 10.0.1.11 dev eniaaaaaaaaaaa scope link table 5120
			ip -6 route add 2001:db8:10:1:b::1 dev eniaaaaaaaaaaa table 5120
			ip link delete eniaaaaaaaaaaa
			ip rule add priority 700 lookup 77; ip rule delete priority 700
			nft add table ip other; nft delete table ip other`)
		n.Run("sh", "-c", c.script)
		for heard := false; !heard; { // an event of before may be late: an address of its own that a link has probed
			if !awaitFold(10 * time.Second) {
				t.Fatalf("%s: no event", c.script)
			}
			clock.Advance(foldTime)
			heard = strings.Contains(<-calls, c.want)
		}
		if _, err := host.Apply(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		settle() // our own repair is an event as well
	}

	// However many things change within the folding time, one call is made; a second one if the machine is so busy that
	// some events are not read before the fake time has passed.
	n.Run("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do "+damage+"; done; ip route flush table 2; nft flush ruleset")
	if got := settle(); len(got) != 1 && len(got) != 2 {
		t.Errorf("calls %q, want one", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
