package hostnet

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/nstest"
)

// What a router has to say about a packet that is too big reaches the pod that sent it, by whichever ENI the packet left,
// with source NAT and without.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 1)
	v.applyTwice(v.configDual())
	far := nstest.New(t)
	const far4, far6 = "198.51.100.10", "2001:db8:fffe::10"
	v.router.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link add rf mtu 1400 type veth peer name eth0 mtu 1500 netns %s
		ip address add 198.51.100.1/24 dev rf; ip -6 address add 2001:db8:fffe::1/64 dev rf nodad; ip link set rf up`, far.Path()))
	far.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip address add %s/24 dev eth0; ip -6 address add %s/64 dev eth0 nodad; ip link set eth0 up
		ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:fffe::1`, far4, far6))
	const size = 200_000
	for _, addr := range []string{far4, far6} {
		var l net.Listener
		if err := far.Do(func() (err error) {
			l, err = net.Listen("tcp", on(addr, 80))
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
				go func() {
					n, _ := io.Copy(io.Discard, io.LimitReader(c, size))
					_, _ = io.WriteString(c, strconv.FormatInt(n, 10))
					_ = c.Close()
				}()
			}
		}()
	}
	for name, pod := range map[string]*nstest.NS{"pod on eth0": v.pod0, "pod on eth1": v.pod1} {
		for _, addr := range []string{far4, far6} {
			var got []byte
			err := pod.Do(func() error {
				c, err := net.DialTimeout("tcp", on(addr, 80), dialTimeout)
				if err != nil {
					return err
				}
				defer func() { _ = c.Close() }()
				if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
					return err
				}
				if _, err := c.Write(make([]byte, size)); err != nil {
					return err
				}
				got, err = io.ReadAll(c)
				return err
			})
			if err != nil || string(got) != strconv.Itoa(size) {
				t.Errorf("%s to %s: %q bytes arrived, want %d (%v)", name, addr, got, size, err)
			}
		}
		// The pod was told, and did not just happen to send small packets.
		for _, route := range []string{pod.Run("ip", "route", "get", far4), pod.Run("ip", "-6", "route", "get", far6)} {
			if !strings.Contains(route, "mtu 1400") {
				t.Errorf("%s: no path MTU of 1400 in %q", name, route)
			}
		}
	}
	v.noneDropped()
}
