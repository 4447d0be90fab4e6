package cluster

import (
	"net/netip"
	"testing"

	"vpccni/lab/fabric"
	"vpccni/lab/probe"
)

// TestIPv6Nodes: nodes of a subnet with an IPv6 range have an address of it from the start, and reach each other and
// the internet by it.
func TestIPv6Nodes(t *testing.T) {
	t.Parallel()
	range6 := netip.MustParsePrefix("2001:db8:10:1::/64")
	c, err := New(t.Context(), Spec{
		Name:    "ipv6",
		Subnets: []Subnet{{Name: "a", CIDR: netip.MustParsePrefix("10.0.1.0/24"), IPv6: range6, Zone: "us-west-2a"}},
		Nodes:   make([]NodeSpec, 2), NoIPAMD: true,
	}, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	const port = 7777
	n1, n2 := c.Nodes()[0], c.Nodes()[1]
	if !range6.Contains(n1.Address6) || n1.Address6 == n2.Address6 {
		t.Fatalf("addresses %s and %s", n1.Address6, n2.Address6)
	}
	internet := func(f func() error) error { return c.Fabric().Do(fabric.HostInternet, f) }
	for _, s := range []struct {
		name string
		do   probe.Do
		addr netip.Addr
	}{{"n2", n2.OS().Do, n2.Address6}, {"internet", internet, fabric.InternetAddr6}} {
		if _, err := probe.Serve(t.Context(), s.name, s.do, port); err != nil {
			t.Fatal(err)
		}
		a, err := probe.TCP(t.Context(), n1.OS().Do, netip.AddrPortFrom(s.addr, port), 100)
		if err != nil || a.Server != s.name || a.Source != n1.Address6 {
			t.Errorf("%s answers %+v, %v; want to be seen as %s", s.name, a, err, n1.Address6)
		}
	}
}
