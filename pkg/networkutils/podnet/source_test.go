package podnet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

// antispoof is the rule for what the kernel's own check has no setting for, IPv6: one for all pods, which asks the same
// question. Links that hold a pod to its source are known by their group.
const antispoof = `table inet test { chain antispoof { type filter hook prerouting priority raw;
	iifgroup 0x5643 ip6 saddr != { ::, fe80::/10 } fib saddr . iif oif 0 drop
}
}`

// A pod with the address of another one, of the node, or none of the node's, reaches nobody, whatever the node's own
// settings are; with its own address, and where the check is off, it does.
func TestPodsCannotPretendToBeSomebodyElse(t *testing.T) {
	t.Parallel()
	if names.GroupSourceCheck != 0x5643 {
		t.Fatal("the rule has another group")
	}
	for _, tt := range []struct {
		name, host string
		pods       [2]string
		spoofed    []string
		all        string // conf.all.rp_filter
		unchecked  bool
	}{
		{name: "v4, all=0", host: "10.0.1.10/24", pods: [2]string{"10.0.1.11/32", "10.0.1.12/32"}, spoofed: []string{"10.0.1.12", "10.0.1.99", "203.0.113.9", "10.0.1.10"}, all: "0"},
		{name: "v4, all=1", host: "10.0.1.10/24", pods: [2]string{"10.0.1.11/32", "10.0.1.12/32"}, spoofed: []string{"10.0.1.12", "203.0.113.9"}, all: "1"},
		{name: "v4, all=2", host: "10.0.1.10/24", pods: [2]string{"10.0.1.11/32", "10.0.1.12/32"}, spoofed: []string{"10.0.1.12", "10.0.1.99", "203.0.113.9", "10.0.1.10"}, all: "2"},
		{name: "v4, off", host: "10.0.1.10/24", pods: [2]string{"10.0.1.11/32", "10.0.1.12/32"}, spoofed: []string{"10.0.1.99"}, all: "0", unchecked: true},
		{name: "v6", host: "2001:db8::10/64", pods: [2]string{"2001:db8::11/128", "2001:db8::12/128"}, spoofed: []string{"2001:db8::12", "2001:db8::99", "2001:db8:9::9", "2001:db8::10"}, all: "0"},
		{name: "v6, off", host: "2001:db8::10/64", pods: [2]string{"2001:db8::11/128", "2001:db8::12/128"}, spoofed: []string{"2001:db8::99"}, all: "0", unchecked: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			host := nstest.New(t)
			host.Run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "vpc")
			host.Run("ip", "address", "add", tt.host, "dev", "eth0", "nodad")
			host.Run("ip", "link", "set", "eth0", "up")
			host.Run("ip", "link", "set", "vpc", "up")
			host.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo "+tt.all+" >/proc/sys/net/ipv4/conf/all/rp_filter")
			host.Run("nft", antispoof)
			var netns [2]*nstest.NS
			for i, address := range tt.pods {
				netns[i] = nstest.New(t)
				pod := podOf(netns[i], "c"+address, "web-"+address, address)
				pod.Interfaces[0].SourceCheck = !tt.unchecked
				mustSetup(t, host, pod)
			}
			own := netip.MustParsePrefix(tt.pods[0]).Addr()
			other, node := netip.MustParsePrefix(tt.pods[1]).Addr(), netip.MustParsePrefix(tt.host).Addr()
			heard := map[netip.Addr]<-chan string{other: listen(t, netns[1], other), node: listen(t, host, node)}
			for to, messages := range heard {
				for _, from := range tt.spoofed {
					if from == to.String() {
						continue
					}
					alias := netip.PrefixFrom(netip.MustParseAddr(from), to.BitLen()).String()
					netns[0].Run("ip", "address", "add", alias, "dev", "eth0", "nodad")
					send(t, netns[0], netip.MustParseAddr(from), to, "spoofed")
					netns[0].Run("ip", "address", "del", alias, "dev", "eth0")
				}
				// Packets of one pod stay in order: once this one is here, those before it are lost.
				send(t, netns[0], own, to, "own")
				spoofed, own := 0, false
				for message := range messages {
					if own = message == "own"; own {
						break
					}
					spoofed++
				}
				if !own {
					t.Errorf("%s does not hear the pod", to)
				}
				if tt.unchecked != (spoofed > 0) {
					t.Errorf("%s heard %d packets from addresses that are not the pod's", to, spoofed)
				}
			}
		})
	}
}

const spoofPort = 4242

// listen passes on the UDP messages that come to an address of a namespace; it closes the channel after a while.
func listen(t *testing.T, ns *nstest.NS, addr netip.Addr) <-chan string {
	t.Helper()
	var conn *net.UDPConn
	err := ns.Do(func() error {
		var err error
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, spoofPort)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	messages := make(chan string, 100)
	go func() {
		defer close(messages)
		buf := make([]byte, 100)
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				return
			}
			messages <- strings.Clone(string(buf[:n]))
		}
	}()
	return messages
}

func send(t *testing.T, ns *nstest.NS, from, to netip.Addr, message string) {
	t.Helper()
	err := ns.Do(func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, spoofPort)))
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte(message))
		return errors.Join(err, conn.Close())
	})
	if err != nil {
		t.Errorf("%s to %s: %v", from, to, err)
	}
}
