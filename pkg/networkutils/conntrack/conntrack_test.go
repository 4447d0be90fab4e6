package conntrack

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/networkutils/nstest"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// Addresses of the tests: a pod that is gone, one that stays, a third party, a Service's, and what the node calls itself.
var (
	gone    = netip.MustParseAddr("10.0.0.1")
	stays   = netip.MustParseAddr("10.0.0.2")
	third   = netip.MustParseAddr("10.0.0.3")
	service = netip.MustParseAddr("10.96.0.1")
	outside = netip.MustParseAddr("192.0.2.1")
	gone6   = netip.MustParseAddr("2001:db8::1")
	stays6  = netip.MustParseAddr("2001:db8::2")
)

// tracking is a namespace that has all the addresses and tracks what passes between them: with NAT of Services and of
// what goes outside, and connections of the third party in a zone of their own.
func tracking(t testing.TB) *nstest.NS {
	t.Helper()
	ns := nstest.New(t)
	for _, a := range []netip.Addr{gone, stays, third, outside, gone6, stays6} {
		ns.Run("ip", "address", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo", "nodad")
	}
	ns.Run("ip", "route", "add", "local", service.String(), "dev", "lo")
	ns.Run("nft", `table inet test {
chain zones { type filter hook output priority raw; ip saddr 10.0.0.3 ct zone set 7
}
chain track { type filter hook output priority 0; ct state new accept
}
}
table ip nat {
chain out { type nat hook output priority -100; ip daddr 10.96.0.1 dnat to 10.0.0.1
}
chain post { type nat hook postrouting priority 100; ip daddr 192.0.2.1 snat to 10.0.0.2
}
}`)
	return ns
}

// flows opens UDP connections from an address to n ports of another one.
func flows(t testing.TB, ns *nstest.NS, from, to netip.Addr, n int) {
	t.Helper()
	err := ns.Do(func() error {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
		if err != nil {
			return err
		}
		defer conn.Close()
		for port := range n {
			// Nobody listens, and it does not matter who says so.
			_, _ = conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(to, uint16(10000+port)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tracked counts the UDP connections of a namespace.
func tracked(t testing.TB, ns *nstest.NS) (n int) {
	t.Helper()
	const tupleProto, protoNumber = 2, 1
	err := ns.Do(func() error {
		c, err := open(t.Context())
		if err != nil {
			return err
		}
		defer c.close()
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			err := c.dump(t.Context(), family, func(attrs []byte) {
				if proto := find(find(find(attrs, attrOrig), tupleProto), protoNumber); len(proto) == 1 && proto[0] == unix.IPPROTO_UDP {
					n++
				}
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func forget(t testing.TB, ns *nstest.NS, addrs ...netip.Addr) (n int, took time.Duration) {
	t.Helper()
	err := ns.Do(func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		var err error
		n, err = Forget(ctx, addrs)
		took = time.Since(began)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, took
}

func TestForgetsWhatHasTheAddress(t *testing.T) {
	t.Parallel()
	ns := tracking(t)
	flows(t, ns, gone, stays, 30)    // the pod's
	flows(t, ns, stays, gone, 30)    // to the pod
	flows(t, ns, stays, service, 30) // to the pod, by its Service
	flows(t, ns, gone, outside, 30)  // the pod's, behind the node's address
	flows(t, ns, third, gone, 30)    // in another zone
	flows(t, ns, gone6, stays6, 30)  // IPv6
	flows(t, ns, stays, third, 30)   // somebody else's
	flows(t, ns, stays6, stays6, 30) // somebody else's
	flows(t, ns, stays, outside, 30) // somebody else's
	if n := tracked(t, ns); n != 270 {
		t.Fatalf("%d connections, want 270", n)
	}
	if n, took := forget(t, ns, gone, gone6, gone, netip.Addr{}); n < 180 {
		t.Errorf("%d connections forgotten, want 180 or more, in %s", n, took)
	}
	if n := tracked(t, ns); n != 90 {
		t.Errorf("%d connections left, want 90", n)
	}
	if n, _ := forget(t, ns, gone, gone6, gone, netip.Addr{}); n != 0 {
		t.Errorf("%d connections forgotten twice", n)
	}
}

func TestForgetsNothingOfNobody(t *testing.T) {
	t.Parallel()
	ns := tracking(t)
	flows(t, ns, gone, stays, 10)
	if n, _ := forget(t, ns); n != 0 || tracked(t, ns) != 10 {
		t.Errorf("%d forgotten without an address", n)
	}
	if n, _ := forget(t, ns, netip.Addr{}, netip.MustParseAddr("10.0.0.9")); n != 0 || tracked(t, ns) != 10 {
		t.Errorf("%d forgotten of addresses that nobody has", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Forget(ctx, []netip.Addr{gone}); err == nil {
		t.Error("no error after the end of the context")
	}
}

// The figures for a table of 10,000 connections are in the log; `go test -bench` measures them.
func TestForgetsTenThousand(t *testing.T) {
	t.Parallel()
	ns := tracking(t)
	flows(t, ns, gone, stays, 10000)
	n, took := forget(t, ns, gone)
	t.Logf("%d connections of one address forgotten in %s", n, took)
	if n < 10000 || tracked(t, ns) != 0 {
		t.Errorf("%d forgotten, %d left", n, tracked(t, ns))
	}
}

func BenchmarkForget(b *testing.B) {
	for name, of := range map[string]struct{ its, others int }{
		"10000-all-its": {10000, 0}, "10000-100-its": {100, 9900}, "40000-100-its": {100, 39900},
	} {
		b.Run(name, func(b *testing.B) {
			ns := tracking(b)
			flows(b, ns, third, stays, of.others)
			var used time.Duration
			for b.Loop() {
				b.StopTimer()
				flows(b, ns, gone, stays, of.its)
				before := cpu(b)
				b.StartTimer()
				forget(b, ns, gone)
				used += cpu(b) - before
			}
			// What it takes on a machine that does nothing else.
			b.ReportMetric(float64(used.Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpu is what the process has used of the processors.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
