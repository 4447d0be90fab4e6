package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"vpccni/pkg/networkutils/nstest"
)

// patience bounds what must happen, on any machine.
const patience = time.Minute

// whoami serves TCP on an address in a namespace and answers with the address it was asked from.
func whoami(t *testing.T, ns *nstest.NS, addr netip.Addr) netip.AddrPort {
	t.Helper()
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
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
			from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			_, _ = io.WriteString(c, from.String())
			_ = c.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// ask connects from a namespace and returns the answer.
func ask(t *testing.T, ns *nstest.NS, to netip.AddrPort) (string, error) {
	var answer []byte
	err := ns.Do(func() error {
		d := net.Dialer{Timeout: patience}
		c, err := d.DialContext(t.Context(), "tcp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		answer, err = io.ReadAll(c)
		return err
	})
	return string(answer), err
}

// TestPackets is cases 24 and 25 of upstream's list: what a pod sends has the node's address outside; pods do not reach
// each other by their egress addresses, and themselves do.
func TestPackets(t *testing.T) {
	t.Parallel()
	for _, d := range []direction{v6, v4} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, d)
			n.rules(true)
			a, second := n.pod("a"), "10.0.1.12/32"
			if d == v4 {
				second = "2001:db8:1::12/128"
			}
			b := n.sandbox("b", second)
			n.mustRun("ADD", a)
			n.mustRun("ADD", b)
			addrA := netip.MustParseAddr(d.first)
			outside := whoami(t, n.out, d.outside)
			for _, s := range []sandbox{a, b} {
				if got, err := ask(t, s.ns, outside); err != nil || got != d.nodeIP.String() {
					t.Errorf("pod %s is seen as %q outside: %v", s.id, got, err)
				}
			}
			inA := whoami(t, a.ns, addrA)
			if _, err := ask(t, b.ns, inA); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("pod b reaches pod a's egress address: %v", err)
			}
			if got, err := ask(t, a.ns, inA); err != nil || got != d.first {
				t.Errorf("pod a reaches itself as %q: %v", got, err)
			}
			if got, err := ask(t, n.host, inA); err != nil {
				t.Errorf("the node reaches pod a as %q: %v", got, err)
			}
			// From outside nobody knows the address; who guesses it is refused.
			n.out.Run("ip", d.flag, "route", "add", d.first, "via", d.nodeIP.String())
			if _, err := ask(t, n.out, inA); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("from outside: %v", err)
			}
			ping := func(ns *nstest.NS, to string, tries int) error {
				return ns.Do(func() error { return pings(to, tries) })
			}
			if err := ping(a.ns, d.first, 60); err != nil {
				t.Errorf("pod a does not ping its own egress address: %v", err)
			}
			if err := ping(b.ns, d.first, 1); err == nil {
				t.Error("pod b pings pod a's egress address")
			}
			if err := ping(b.ns, d.outside.String(), 60); err != nil {
				t.Errorf("pod b does not ping the outside: %v", err)
			}
			// Another pod's address, or one of nobody, gets nowhere.
			bare := "/32"
			if d == v6 {
				bare = "/128"
			}
			b.ns.Run("ip", "address", "add", d.first+bare, "dev", "lo")
			err := b.ns.Do(func() error {
				dialer := net.Dialer{Timeout: 300 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: addrA.AsSlice()}}
				c, err := dialer.Dial("tcp", outside.String())
				if err == nil {
					_ = c.Close()
				}
				return err
			})
			if err == nil {
				t.Error("pod b sends with pod a's address")
			}
		})
	}
}

// TestEstablishedFlowsStay: rules that are laid down again, or the feature switched off, end no connection.
func TestEstablishedFlowsStay(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	a := n.pod("a")
	n.mustRun("ADD", a)
	var l net.Listener
	if err := n.out.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(n.outside, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var c net.Conn
	if err := a.ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", l.Addr().String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	echo := func(when string) {
		t.Helper()
		for _, side := range [][2]net.Conn{{c, peer}, {peer, c}} {
			_ = side[1].SetDeadline(time.Now().Add(patience))
			buf := make([]byte, 4)
			if _, err := side[0].Write([]byte("ping")); err != nil {
				t.Fatal(when, err)
			}
			if _, err := io.ReadFull(side[1], buf); err != nil {
				t.Fatal(when, err)
			}
		}
	}
	echo("at first")
	n.host.Run("nft", "delete", "table", "ip6", "vpc-cni")
	n.rules(true)
	echo("with rules again")
	n.rules(false)
	echo("when switched off")
	if got, err := ask(t, a.ns, whoami(t, n.out, n.outside)); err != nil || got != n.nodeIP.String() {
		t.Errorf("when switched off, the pod is seen as %q: %v", got, err)
	}
	n.enabled = "false"
	n.mustRun("DEL", a)
	n.rules(false)
	if got := n.host.Run("nft", "list", "tables", "ip6"); got != "" {
		t.Errorf("without pods: %s", got)
	}
}

// pings sends echo requests from the calling thread's namespace, each half a second after the one before, until there is
// an answer.
func pings(to string, tries int) error {
	addr := netip.MustParseAddr(to)
	domain, proto, request, reply := syscall.AF_INET, syscall.IPPROTO_ICMP, byte(8), byte(0)
	var sa syscall.Sockaddr = &syscall.SockaddrInet4{Addr: [4]byte(addr.AsSlice()[:4])}
	if addr.Is6() {
		domain, proto, request, reply = syscall.AF_INET6, syscall.IPPROTO_ICMPV6, 128, 129
		sa = &syscall.SockaddrInet6{Addr: addr.As16()}
	}
	fd, err := syscall.Socket(domain, syscall.SOCK_RAW, proto)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.Connect(fd, sa); err != nil {
		return err
	}
	timeout := syscall.NsecToTimeval((500 * time.Millisecond).Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout); err != nil {
		return err
	}
	message := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1}
	if addr.Is4() {
		message[2], message[3] = ^byte(8+0x12), ^byte(0x34+1)
	}
	for range tries {
		if _, err := syscall.Write(fd, message); err != nil {
			return err
		}
		buf := make([]byte, 256)
		size, err := syscall.Read(fd, buf)
		if errors.Is(err, syscall.EAGAIN) {
			continue
		}
		if err != nil {
			return err
		}
		answer := buf[:size]
		if addr.Is4() && len(answer) > 20 {
			answer = answer[20:]
		}
		if len(answer) > 0 && answer[0] == reply {
			return nil
		}
	}
	return fmt.Errorf("no answer from %s", to)
}
