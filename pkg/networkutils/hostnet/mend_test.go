package hostnet

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/networkutils/conntrack"
	"vpccni/pkg/networkutils/nstest"
)

// A connection that a pod begins while its source NAT is missing works once that is back: the kernel decides at the
// first packet, and would go on without NAT for as long as the client tries.
func TestConnectionsOfTheGapAreMended(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 0)
	cfg := v.config()
	v.applyTwice(cfg)
	// Somebody else who keeps the connection tracking at work, as kube-proxy does.
	v.Run("sh", "-c", `nft -f - <<'END'
table ip tracker {
	chain forward { type filter hook forward priority 0; ct state new counter; }
	chain nat { type nat hook postrouting priority 50; }
}
END`)
	for name, damage := range map[string]string{
		"table deleted": "nft delete table ip vpc-cni",
		"chain flushed": "nft flush chain ip vpc-cni postrouting",
		"rule deleted":  "ip rule delete priority 1024",
	} {
		for pod, from := range map[string]*nstest.NS{pod0Addr: v.pod0, pod1Addr: v.pod1} {
			v.Run("sh", "-c", damage)
			type answer struct {
				seen string
				err  error
			}
			answers := make(chan answer, 1)
			go func() {
				seen, err := patiently(from, internetAddr+":80")
				answers <- answer{seen, err}
			}()
			if name != "rule deleted" || pod == pod1Addr {
				eventually(t, "the SYN has been sent without NAT", func() bool { return v.without(t, pod) })
			}
			if r := v.apply(cfg); r.Writes == 0 {
				t.Fatalf("%s: nothing to repair", name)
			}
			if a := <-answers; a.err != nil || a.seen != nodeAddr {
				t.Errorf("%s, pod %s: seen as %q, want %q (%v)", name, pod, a.seen, nodeAddr, a.err)
			}
		}
	}
}

// without reports whether the node tracks a connection of a pod that has no source NAT and no answer.
func (v *vpc) without(t *testing.T, pod string) (found bool) {
	t.Helper()
	err := inNetNS(v.FD(), func() error {
		_, err := conntrack.ForgetFlows(t.Context(), 1, func(f conntrack.Flow) bool {
			found = found || f.Source.String() == pod && f.SeenAs == f.Source && f.Peer.String() == internetAddr && !f.Answered
			return false
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// patiently is seenBy with the time for TCP to repeat itself.
func patiently(ns *nstest.NS, to string) (string, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", to, time.Minute)
		return err
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return "", err
	}
	seen, err := io.ReadAll(c)
	return string(seen), err
}

func TestOnlyUnansweredConnectionsWithoutNATAreStale(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	cfg := config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.128/28"))
	cfg.ExcludeSNATCIDRs = prefixes("192.0.2.0/24")
	stale := withoutNAT(cfg, map[netip.Addr]bool{addr("169.254.20.10"): true})
	gap := conntrack.Flow{Source: addr("10.0.1.130"), Destination: addr("203.0.113.10"), Peer: addr("203.0.113.10"), SeenAs: addr("10.0.1.130")}
	service := gap
	service.Destination = addr("172.20.0.1")
	for name, c := range map[string]struct {
		change func(*conntrack.Flow)
		want   bool
	}{
		"began in the gap":            {func(*conntrack.Flow) {}, true},
		"to a Service outside":        {func(f *conntrack.Flow) { *f = service }, true},
		"to a Service in the VPC":     {func(f *conntrack.Flow) { *f = service; f.Peer = addr("10.0.9.9") }, false},
		"answered":                    {func(f *conntrack.Flow) { f.Answered = true }, false},
		"with source NAT":             {func(f *conntrack.Flow) { f.SeenAs = addr("10.0.1.10") }, false},
		"inside the VPC":              {func(f *conntrack.Flow) { f.Peer = addr("100.64.9.9") }, false},
		"excluded":                    {func(f *conntrack.Flow) { f.Peer = addr("192.0.2.9") }, false},
		"to the host's own address":   {func(f *conntrack.Flow) { f.Peer = addr("169.254.20.10") }, false},
		"not of a pod":                {func(f *conntrack.Flow) { f.Source, f.SeenAs = addr("10.0.1.10"), addr("10.0.1.10") }, false},
		"of another node's pod":       {func(f *conntrack.Flow) { f.Source, f.SeenAs = addr("10.0.1.200"), addr("10.0.1.200") }, false},
		"to nobody in particular":     {func(f *conntrack.Flow) { f.Peer = addr("224.0.0.251") }, false},
		"of a pod on the primary ENI": {func(f *conntrack.Flow) { f.Source, f.SeenAs = addr("10.0.1.11"), addr("10.0.1.11") }, true},
	} {
		f := gap
		c.change(&f)
		if got := stale(f); got != c.want {
			t.Errorf("%s: stale is %v, want %v", name, got, c.want)
		}
	}
}
