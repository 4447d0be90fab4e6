package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/nstest"
)

const (
	spoofPort = 4242
	// hearTimeout is how long a test waits for a message that is to come.
	hearTimeout = time.Minute
)

// hear passes on the messages that come to an address.
func hear(t *testing.T, ns *nstest.NS, addr string) <-chan string {
	t.Helper()
	var conn *net.UDPConn
	if err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), spoofPort)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	messages := make(chan string, 1000)
	go func() {
		defer close(messages)
		buf := make([]byte, 100)
		_ = conn.SetReadDeadline(time.Now().Add(hearTimeout))
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				return
			}
			messages <- string(buf[:n])
		}
	}()
	return messages
}

// tell sends a message from an address, which the namespace is given for as long as it takes.
func tell(t *testing.T, ns *nstest.NS, from, to, message string, borrowed bool) {
	t.Helper()
	a := netip.MustParseAddr(from)
	if borrowed {
		ns.Run("ip", "address", "add", host(a).String(), "dev", "eth0", "nodad")
		defer ns.Run("ip", "address", "del", host(a).String(), "dev", "eth0")
	}
	err := ns.Do(func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), spoofPort)))
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

// A pod speaks with its own address or is not heard: not with a neighbour's, nor with another one of its ENI, the node's,
// or one that it made up. A pod whose link is not in the group may.
func TestPodsCannotPretendToBeSomebodyElse(t *testing.T) {
	for _, c := range []struct {
		name   string
		config func(*vpc) Config
		plans  []plan
	}{
		{"IPv6", (*vpc).config6, []plan{plan6}},
		{"dual stack", (*vpc).configDual, []plan{plan4, plan6}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := newVPC(t, 0)
			v.applyTwice(c.config(v))
			var internet6 <-chan string
			for _, p := range c.plans {
				others := []string{p.pod0, p.free, p.node, p.eth1, p.peer, p.service}
				places := map[string]<-chan string{
					p.peer: hear(t, v.router, p.peer), p.internet: hear(t, v.router, p.internet),
					p.pod0: hear(t, v.pod0, p.pod0), p.node: hear(t, v.NS, p.node),
				}
				internet6 = places[plan6.internet]
				for to, messages := range places {
					for _, from := range others {
						if from != to {
							tell(t, v.pod1, from, to, "spoofed from "+from, true)
						}
					}
					// Packets of one pod stay in order: once this one is here, those before it are lost.
					tell(t, v.pod1, p.pod1, to, "own", false)
					heard := ""
					for message := range messages {
						if heard = message; heard == "own" {
							break
						}
						t.Errorf("%s heard what was %s", to, heard)
					}
					if heard != "own" {
						t.Errorf("%s does not hear the pod", to)
					}
				}
			}
			// Nothing of it came as far as the VPC's own check.
			v.noneDropped()
			if chain := v.Run("nft", "list", "chain", "ip6", "vpc-cni", "source_check"); strings.Contains(chain, "packets 0 ") {
				t.Errorf("nothing was counted:\n%s", chain)
			}
			if again := v.apply(c.config(v)); again.Writes != 0 {
				t.Errorf("%d writes because of what was counted", again.Writes)
			}

			const gateway = "fe80::ff:fe00:101%" // of the host's end of the pod's link
			node := hear(t, v.NS, gateway+"eni0000000000b")
			tell(t, v.pod1, "fe80::ff:fe00:102%eth0", gateway+"eth0", "neighbour", false)
			if got := <-node; got != "neighbour" {
				t.Errorf("the node heard %q from the pod's link-local address", got)
			}

			v.Run("ip", "link", "set", "eni0000000000b", "group", "0")
			tell(t, v.pod1, plan6.free, plan6.internet, "free", true)
			if got := <-internet6; got != "free" {
				t.Errorf("the internet heard %q from a pod that is not checked", got)
			}
		})
	}
}
