package hostnet

import (
	"net/netip"
	"strings"
	"testing"
)

func v6Egress(c *Config) {
	c.Egress = []Egress{{Range: netip.MustParsePrefix("fd00::ac:0/118"), To: netip.MustParseAddr("2001:db8:1::10")}}
}

// v4Egress is that of a cluster whose pods have IPv6 addresses.
func v4Egress(c *Config) {
	c.IPv6 = true
	for i := range c.ENIs {
		c.ENIs[i].Pool = nil
	}
	c.Egress = []Egress{{Range: netip.MustParsePrefix("169.254.172.0/22"), To: c.ENIs[0].Address}}
}

// egressTable is what nft says about the table that is there for the ranges alone.
func (n *node) egressTable(cfg Config) string {
	family := "ip6"
	if cfg.IPv6 {
		family = "ip"
	}
	return sortBlocks(n.Run("nft", "list", "table", family, "vpc-cni")) + "\n"
}

func TestEgressGolden(t *testing.T) {
	t.Parallel()
	base := config(primaryENI("10.0.1.11"))
	for _, s := range []scenario{
		{"egress-v6", with(base, v6Egress)},
		{"egress-v6-hashrandom", with(with(base, v6Egress), func(c *Config) { c.SNATRandom = SNATRandomHash })},
		{"egress-v6-none", with(with(base, v6Egress), func(c *Config) { c.SNATRandom = SNATRandomNone })},
		{"egress-v4", with(config(primaryENI()), v4Egress)},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1)
			n.applyTwice(s.cfg)
			golden(t, s.name, n.egressTable(s.cfg))
			if r, err := n.open().Apply(t.Context(), s.cfg); err != nil || r.Writes != 0 {
				t.Fatalf("after a restart: %d writes (%v), want none", r.Writes, err)
			}
		})
	}
}

// TestEgressComesAndGoes: the family's table is there for the ranges alone, is mended as a whole, and goes with the last of
// them; the other family's is not touched.
func TestEgressComesAndGoes(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1)
	base := config(primaryENI("10.0.1.11"))
	on := with(base, v6Egress)
	n.applyTwice(base)
	before := n.state()
	n.applyTwice(on)
	want := n.egressTable(on)
	for _, damage := range []string{
		"delete table ip6 vpc-cni", "flush table ip6 vpc-cni", "flush set ip6 vpc-cni egress", "flush chain ip6 vpc-cni egress_snat",
		"flush ruleset", "add rule ip6 vpc-cni egress_isolation accept",
	} {
		n.Run("nft", damage)
		n.applyTwice(on)
		if got := n.egressTable(on); got != want {
			t.Errorf("after %q:\n%s", damage, got)
		}
	}
	moved := with(on, func(c *Config) { c.Egress[0].To = netip.MustParseAddr("2001:db8:1::11") })
	n.applyTwice(moved)
	if got := n.egressTable(on); !strings.Contains(got, "snat to 2001:db8:1::11") || strings.Contains(got, "::10") {
		t.Errorf("after the node's address changed:\n%s", got)
	}
	n.Run("ip", "-6", "route", "add", "fd00::ac:7", "dev", "eth0")
	n.applyTwice(base)
	if got := n.egressTable(on); !strings.Contains(got, "snat to 2001:db8:1::11") || !strings.Contains(got, "elements = { fd00::ac:0/118 }") {
		t.Errorf("after it was switched off, with a pod:\n%s", got)
	}
	n.Run("ip", "-6", "route", "delete", "fd00::ac:7")
	n.applyTwice(base)
	if got := n.state(); got != before {
		t.Errorf("after it was switched off:\n%s", got)
	}
	if got := n.Run("nft", "list", "tables"); strings.Contains(got, "ip6") {
		t.Errorf("after it was switched off: %s", got)
	}
}

// TestEgressIsKeptAtHandBack: pods that are there have nobody else to do their source NAT; whoever cleans up takes all.
func TestEgressIsKeptAtHandBack(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{with(config(primaryENI("10.0.1.11")), v6Egress), with(config(primaryENI()), v4Egress)} {
		n := newNode(t, 1)
		n.applyTwice(cfg)
		for _, marks := range []bool{true, false, false} {
			if _, err := n.host.HandBack(t.Context(), marks); err != nil {
				t.Fatal(err)
			}
		}
		got := n.Run("nft", "list", "ruleset")
		if !strings.Contains(got, "chain egress_snat") || !strings.Contains(got, "chain egress_isolation") || !strings.Contains(got, "set egress") {
			t.Errorf("after the hand-back:\n%s", got)
		}
		if strings.Contains(got, "eni_src") || strings.Contains(got, "source_check") {
			t.Errorf("after the hand-back there is more than egress:\n%s", got)
		}
		if err := n.host.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := n.Run("nft", "list", "ruleset"); strings.TrimSpace(got) != "" {
			t.Errorf("after the clean-up:\n%s", got)
		}
	}
}

func TestEgressRefused(t *testing.T) {
	t.Parallel()
	for _, e := range []Egress{
		{}, {Range: netip.MustParsePrefix("fd00::/118")},
		{Range: netip.MustParsePrefix("fd00::/118"), To: netip.MustParseAddr("10.0.1.10")},
		{Range: netip.MustParsePrefix("10.0.1.0/24"), To: netip.MustParseAddr("10.0.1.10")},
	} {
		if _, err := Render(with(config(primaryENI()), func(c *Config) { c.Egress = []Egress{e} })); err == nil {
			t.Errorf("%+v: no error", e)
		}
	}
}
