package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/nstest"
)

const announcerMAC = "02:00:00:00:00:01"

// neighbours are a host with an ENI and somebody in its subnet who has seen two of its addresses elsewhere.
func neighbours(t *testing.T) (host, peer *nstest.NS) {
	t.Helper()
	host, peer = nstest.New(t), nstest.New(t)
	host.Run("ip", "link", "add", "eth1", "address", announcerMAC, "type", "veth", "peer", "name", "eth0", "netns", peer.Path())
	host.Run("ip", "link", "set", "eth1", "up")
	peer.Run("ip", "link", "set", "eth0", "up")
	peer.Run("ip", "address", "add", "10.0.1.10/24", "dev", "eth0")
	peer.Run("ip", "address", "add", "2001:db8::10/64", "dev", "eth0", "nodad")
	for _, a := range []string{"10.0.1.20", "10.0.1.37", "10.0.1.60", "2001:db8::20"} {
		peer.Run("ip", "neigh", "add", a, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale")
	}
	return host, peer
}

func TestAnnounceCorrectsWhatNeighboursKnow(t *testing.T) {
	t.Parallel()
	host, peer := neighbours(t)
	h, err := New(Options{NetNS: host.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	mac, _ := net.ParseMAC(announcerMAC)
	blocks := []netip.Prefix{netip.MustParsePrefix("10.0.1.20/32"), netip.MustParsePrefix("10.0.1.21/32"),
		netip.MustParsePrefix("10.0.1.32/28"), netip.MustParsePrefix("2001:db8::20/128"), netip.MustParsePrefix("2001:db8:1::/80")}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Announce(ctx, mac, blocks); err != nil {
		t.Fatal(err)
	}
	known := func(a string) string {
		fields := strings.Fields(peer.Run("ip", "neigh", "show", a, "dev", "eth0"))
		for i, f := range fields {
			if f == "lladdr" {
				return fields[i+1]
			}
		}
		return ""
	}
	// The frames are in the peer's queue when they are sent, which it may work on a little later.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for known("10.0.1.37") != announcerMAC || known("2001:db8::20") != announcerMAC {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the peer still has\n%s", peer.Run("ip", "neigh"))
		}
	}
	for a, want := range map[string]string{"10.0.1.20": announcerMAC, "10.0.1.60": "02:00:00:00:00:99", "10.0.1.21": "", "10.0.1.33": ""} {
		if got := known(a); got != want {
			t.Errorf("%s: the peer has %q, want %q", a, got, want)
		}
	}

	other, _ := net.ParseMAC("02:00:00:00:00:02")
	if err := h.Announce(ctx, other, blocks); !errors.Is(err, ErrNoLink) {
		t.Errorf("without a link: %v", err)
	}
	host.Run("ip", "link", "set", "eth1", "down")
	if err := h.Announce(ctx, mac, blocks); err == nil {
		t.Error("a link that is down announces")
	}
}

func TestAnnounceWithoutTheRight(t *testing.T) {
	t.Parallel()
	host, peer := neighbours(t)
	before := peer.Run("ip", "neigh")
	mac, _ := net.ParseMAC(announcerMAC)
	err := host.Do(func() error {
		h, err := New(Options{})
		if err != nil {
			return err
		}
		defer h.Close()
		// Of this thread only, which ends with f.
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&head, &caps[0]); err != nil {
			return err
		}
		caps[0].Effective &^= 1 << unix.CAP_NET_RAW
		if err := unix.Capset(&head, &caps[0]); err != nil {
			return err
		}
		return h.Announce(t.Context(), mac, []netip.Prefix{netip.MustParsePrefix("10.0.1.20/32")})
	})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	}
	if after := peer.Run("ip", "neigh"); after != before {
		t.Errorf("the peer has\n%s", after)
	}
}
