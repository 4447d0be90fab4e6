package hostnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vpccni/pkg/networkutils/names"
)

// randomConfig is a Config of any families, settings and ENIs, of these and of addresses and prefixes per ENI at most so
// many.
func randomConfig(r *rand.Rand, enis, pool int) Config {
	maybe := func() bool { return r.IntN(2) == 0 }
	cfg := config()
	cfg.IPv4, cfg.IPv6 = maybe(), maybe()
	four, six := slices.Contains(cfg.families(), ipv4), cfg.IPv6
	cfg.NodePort, cfg.ExternalSNAT, cfg.BranchPods = maybe(), maybe(), BranchMode(r.IntN(3))
	for device := range 1 + r.IntN(enis) {
		e := ENI{
			ID: fmt.Sprintf("eni-%d", device), MAC: mac(device), Device: device, Primary: device == 0, Trunk: maybe() && device > 0,
			Address:    netip.AddrFrom4([4]byte{10, byte(device), 0, 10}),
			SubnetCIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(device), 0, 0}), 16),
		}
		if six && maybe() {
			e = with6(e)
		}
		for i := range r.IntN(pool + 1) {
			if four {
				a := netip.AddrFrom4([4]byte{10, byte(device), byte(1 + i/16), byte(i % 16 * 16)})
				e.Pool = append(e.Pool, netip.PrefixFrom(a, 28+4*r.IntN(2)))
			}
			if six {
				a := netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(device), 1, 0, 0, byte(1 + i/256), byte(i)})
				e.Pool = append(e.Pool, netip.PrefixFrom(a, 80+48*r.IntN(2)))
			}
		}
		cfg.ENIs = append(cfg.ENIs, e)
	}
	return cfg
}

// Whatever the number of pods, a family has at most eight rules, the kernel's own included, and two for each ENI. What
// packets meet in nftables does not grow with addresses either, but for elements of sets.
func TestRulesDoNotGrowWithPods(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for n := range 300 {
		cfg := randomConfig(rand.New(rand.NewPCG(seed, uint64(n))), 15, 64)
		d, err := Render(cfg)
		if err != nil || len(d.Unfit) > 0 {
			t.Fatalf("config %d: %v %v", n, err, d.Unfit)
		}
		for _, f := range cfg.families() {
			rules := 3 // local, main, default
			for _, r := range d.Rules {
				if r.family() == f {
					rules++
				}
			}
			if f.v6 && cfg.BranchPods == BranchStrict {
				rules++ // see diffLocal
			}
			if most := 8 + 2*len(cfg.ENIs); rules > most {
				t.Errorf("config %d: %d rules of %s, want at most %d:\n%s", n, rules, f.name, most, d)
			}
		}
		few := cfg
		few.ENIs = slices.Clone(cfg.ENIs)
		for i, e := range few.ENIs { // one address of each family that it has
			few.ENIs[i].Pool = nil
			for _, f := range families {
				if own := f.of(e.Pool); len(own) > 0 {
					few.ENIs[i].Pool = append(few.ENIs[i].Pool, own[0])
				}
			}
		}
		less, err := Render(few)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(less.Rules, d.Rules) {
			t.Errorf("config %d: rules depend on the number of addresses:\n%v\n%v", n, d.Rules, less.Rules)
		}
		for i := range d.Filters {
			if !reflect.DeepEqual(less.Filters[i].Table.Chains, d.Filters[i].Table.Chains) {
				t.Errorf("config %d: chains depend on the number of addresses", n)
			}
		}
	}
}

// What is wrong with an ENI's part in IPv6 leaves it out as anything else does; what is not there is no fault.
func TestRenderOfIPv6(t *testing.T) {
	base := func(e ENI) Config {
		cfg := config(with6(primaryENI("10.0.1.11"), "2001:db8:10:1:a::/80"), e)
		cfg.IPv4, cfg.IPv6 = true, true
		return cfg
	}
	fine := with6(secondaryENI(2, "100.64.2.11"), "2001:db8:10:2:b::/80")
	for _, c := range []struct {
		name   string
		change func(*ENI)
		want   string // "": nothing is wrong
	}{
		{"as it should be", func(*ENI) {}, ""},
		{"no IPv6", func(e *ENI) { e.Address6, e.SubnetCIDR6, e.Pool = netip.Addr{}, netip.Prefix{}, e.Pool[:1] }, ""},
		{"prefix alone", func(e *ENI) { e.Address6, e.SubnetCIDR6 = netip.Addr{}, netip.Prefix{} }, ""},
		{"IPv4 as IPv6", func(e *ENI) { e.Address6 = netip.MustParseAddr("10.0.0.1") }, "not global IPv6"},
		{"link-local", func(e *ENI) { e.Address6 = netip.MustParseAddr("fe80::1") }, "not global IPv6"},
		{"outside its subnet", func(e *ENI) { e.Address6 = netip.MustParseAddr("2001:db8:99::1") }, "not in subnet"},
		{"own address in pool", func(e *ENI) { e.Pool = prefixes("2001:db8:10:2::/80") }, "contains the ENI's own address"},
		{"another's pool", func(e *ENI) { e.Pool = prefixes("2001:db8:10:1:a::7") }, "overlaps 2001:db8:10:1:a::/80 of eni-0"},
		{"address of another", func(e *ENI) {
			e.Address6, e.SubnetCIDR6 = netip.MustParseAddr("2001:db8:10:1::10"), netip.MustParsePrefix("2001:db8:10:1::/64")
		}, "overlaps 2001:db8:10:1::10/128 of eni-0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := fine
			e.Pool = slices.Clone(fine.Pool)
			c.change(&e)
			d, err := Render(base(e))
			if err != nil {
				t.Fatal(err)
			}
			if got := errorOf(d.Unfit); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("unfit: %q, want %q", got, c.want)
			}
		})
	}
	if _, err := Render(with(base(fine), func(c *Config) { c.VPCCIDRs = nil })); err == nil {
		t.Error("no range of the VPC is known, and pods have IPv4")
	}
	if _, err := Render(with(base(ENI{}), func(c *Config) {
		c.IPv4, c.VPCCIDRs, c.ENIs = false, nil, []ENI{{ID: "eni-0", MAC: mac(0), Primary: true}}
	})); err != nil {
		t.Errorf("IPv6 pods on an ENI without an address: %v", err)
	}
}

func TestRenderRefuses(t *testing.T) {
	good := config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.31"))
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no primary ENI", func(c *Config) { c.ENIs = c.ENIs[1:] }, "no primary ENI"},
		{"two primary ENIs", func(c *Config) {
			second := secondaryENI(1)
			second.Primary = true
			c.ENIs = []ENI{primaryENI(), second}
		}, "two primary ENIs: eni-0 and eni-1"},
		{"no VPC range", func(c *Config) { c.VPCCIDRs = nil }, "no IPv4 range of the VPC"},
		{"marks overlap", func(c *Config) { c.PrimaryMark = 0x40 }, "0x40 and mask of the ENI mark 0x7f share the bits 0x40"},
		{"no primary mark", func(c *Config) { c.PrimaryMark = 0 }, "at least one bit"},
		{"no ENI mask", func(c *Config) { c.ENIMask = 0 }, "at least one bit"},
		{"gap in the mask", func(c *Config) { c.ENIMask = 0x5 }, "0x5 has a gap"},
		{"primary without address", func(c *Config) {
			e := primaryENI()
			e.Address = netip.Addr{}
			c.ENIs = []ENI{e}
		}, "primary ENI eni-0: primary address"},
		{"branch pods without prefix", func(c *Config) { c.BranchPods, c.VethPrefix = BranchStandard, "" }, "veth prefix"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Render(with(good, c.change))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

func TestRenderLeavesOutUnfitENIs(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*ENI)
		want   string
	}{
		{"IPv6 pool", func(e *ENI) { e.Pool = prefixes("2001:db8::/80") }, "not of a family that pods have"},
		{"own address in pool", func(e *ENI) { e.Pool = prefixes("100.64.2.0/28") }, "contains the ENI's own address"},
		{"address outside its subnet", func(e *ENI) { e.Address = netip.MustParseAddr("10.9.9.9") }, "not in subnet"},
		{"no MAC", func(e *ENI) { e.MAC = nil }, "Ethernet"},
		{"another's MAC", func(e *ENI) { e.MAC = mac(1) }, "same MAC 02:00:00:00:00:01 as eni-1"},
		{"another's id", func(e *ENI) { e.ID = "eni-1" }, "listed twice"},
		{"another's device", func(e *ENI) { e.Device = 1 }, "same route table 2 as eni-1"},
		{"the primary ENI's device", func(e *ENI) { e.Device = 0 }, "number 0 does not fit"},
		{"number beyond the mask", func(e *ENI) { e.Device = 128 }, "does not fit the ENI mark's mask 0x7f (1 to 127)"},
		{"another's pool", func(e *ENI) { e.Pool = prefixes("10.0.1.16/28") }, "10.0.1.16/28 overlaps 10.0.1.30/32 of eni-1"},
		{"part of another's pool", func(e *ENI) { e.Pool = prefixes("10.0.1.11") }, "10.0.1.11/32 overlaps 10.0.1.11/32 of eni-0"},
		{"own address in another's pool", func(e *ENI) {
			e.Address, e.SubnetCIDR = netip.MustParseAddr("10.0.1.31"), netip.MustParsePrefix("10.0.1.0/24")
		}, "10.0.1.31/32 overlaps 10.0.1.31/32 of eni-1"},
		{"another's address in pool", func(e *ENI) { e.Pool = prefixes("10.0.1.30") }, "overlaps 10.0.1.30/32 of eni-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := secondaryENI(2, "100.64.2.11")
			c.change(&e)
			d, err := Render(config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.31"), e))
			if err != nil {
				t.Fatal(err)
			}
			if len(d.Unfit) != 1 || !strings.Contains(errorOf(d.Unfit), c.want) {
				t.Fatalf("Unfit = %v, want one with %q", d.Unfit, c.want)
			}
			if len(d.Links) != 2 {
				t.Fatalf("%d links, want those of the other two ENIs", len(d.Links))
			}
		})
	}
}

// Card 1 begins where card 0 would have its 16th device: two ENIs that share a number cannot both be told by it.
func TestRenderRefusesSharedNumbers(t *testing.T) {
	d, err := Render(config(primaryENI(), secondaryENI(17), onCard(1, secondaryENI(1))))
	if err != nil {
		t.Fatal(err)
	}
	if got := errorOf(d.Unfit); len(d.Unfit) != 1 || !strings.Contains(got, "same number 17 in the mark as eni-17") {
		t.Fatalf("Unfit = %v, want one for the number 17", d.Unfit)
	}
}

func errorOf(m map[string]error) string {
	for _, err := range m {
		return err.Error()
	}
	return ""
}

// Equal Configs give equal states, whatever the order in which they list things.
func TestRenderDoesNotDependOnOrder(t *testing.T) {
	for _, s := range scenarios() {
		want, err := Render(s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			cfg := s.cfg
			cfg.ENIs = slices.Clone(cfg.ENIs)
			cfg.VPCCIDRs = slices.Clone(cfg.VPCCIDRs)
			rand.Shuffle(len(cfg.ENIs), func(i, j int) { cfg.ENIs[i], cfg.ENIs[j] = cfg.ENIs[j], cfg.ENIs[i] })
			rand.Shuffle(len(cfg.VPCCIDRs), func(i, j int) {
				cfg.VPCCIDRs[i], cfg.VPCCIDRs[j] = cfg.VPCCIDRs[j], cfg.VPCCIDRs[i]
			})
			got, err := Render(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: another order gives\n%s\nwant\n%s", s.name, got, want)
			}
		}
	}
}

// Render must not write to what it was given: the caller keeps it.
func TestRenderLeavesConfigAlone(t *testing.T) {
	cfg := config(primaryENI("10.0.1.12", "10.0.1.11"), secondaryENI(1, "10.0.1.32", "10.0.1.31"))
	if _, err := Render(cfg); err != nil {
		t.Fatal(err)
	}
	if want := config(primaryENI("10.0.1.12", "10.0.1.11"), secondaryENI(1, "10.0.1.32", "10.0.1.31")); !reflect.DeepEqual(cfg, want) {
		t.Fatalf("Config changed to %v", cfg)
	}
}

func TestDesiredText(t *testing.T) {
	d, err := Render(config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.31", "10.0.1.128/28")))
	if err != nil {
		t.Fatal(err)
	}
	const want = `link eni-0 02:00:00:00:00:00 mtu 9001 rp_filter 2
link eni-1 02:00:00:00:00:01 mtu 9001 rp_filter 2 up
address 10.0.1.30/24 dev eni-1 noprefixroute
rule 512: from all lookup 5120
rule 513: from all lookup 5121
rule 1024: from all fwmark 0x80/0x80 lookup main
rule 1537: from all fwmark 0x1/0x7f lookup 2
rule 32765: from 10.0.1.30/32 lookup 2
route unreachable 10.0.1.11/32 table 5121 metric 4294967295
route 10.0.1.1/32 dev eni-1 table 2
route 0.0.0.0/0 via 10.0.1.1 dev eni-1 table 2
route unreachable 10.0.1.31/32 table 5121 metric 4294967295
route unreachable 10.0.1.128/28 table 5121 metric 4294967295
nft eni_src 10.0.1.31 : jump eni_1
nft eni_src 10.0.1.128-10.0.1.143 : jump eni_1
nft exempt 10.0.0.0-10.0.255.255
nft exempt 100.64.0.0-100.64.255.255
nft reply_by 0x1 : goto set_1
`
	if got := d.String(); got != want {
		t.Fatalf("%s\ngot:\n%s", firstDifference(want, got), got)
	}
}

// The ends of ranges, where arithmetic on addresses goes wrong.
func TestRangeElement(t *testing.T) {
	for p, want := range map[string][2]string{
		"0.0.0.0/0":          {"0.0.0.0", ""},
		"128.0.0.0/1":        {"128.0.0.0", ""},
		"255.255.255.255/32": {"255.255.255.255", ""},
		"10.0.0.255/32":      {"10.0.0.255", "10.0.1.0"},
		"10.0.1.128/25":      {"10.0.1.128", "10.0.2.0"},
		"10.0.0.0/8":         {"10.0.0.0", "11.0.0.0"},
		"10.0.8.0/21":        {"10.0.8.0", "10.0.16.0"},
	} {
		el := rangeElement(netip.MustParsePrefix(p))
		first, _ := netip.AddrFromSlice([]byte(el.Key))
		end, ok := netip.AddrFromSlice([]byte(el.End))
		got := [2]string{first.String(), ""}
		if ok {
			got[1] = end.String()
		}
		if got != want {
			t.Errorf("%s: %v, want %v", p, got, want)
		}
	}
}

func TestMerge(t *testing.T) {
	got := merge(prefixes("10.0.0.0/16", "10.0.3.7/24", "192.0.2.1/32", "10.0.0.0/8", "192.0.2.1/32", "192.0.2.0/32"))
	want := prefixes("10.0.0.0/8", "192.0.2.0/32", "192.0.2.1/32")
	if !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
}

// The number of an ENI depends on nothing but its place.
func TestMarkValues(t *testing.T) {
	m, err := newMarks(0x10, 0x7f00000)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		card, device int
		want         uint32
	}{{0, 1, 0x100000}, {0, 14, 0xe00000}, {1, 1, 0x1100000}, {6, 15, 0x6f00000}} {
		if got, err := m.value(eniIndex(c.card, c.device)); err != nil || got != c.want {
			t.Errorf("card %d device %d: %#x (%v), want %#x", c.card, c.device, got, err, c.want)
		}
	}
	if _, err := m.value(eniIndex(8, 0)); err == nil {
		t.Error("card 8 fits a field of seven bits")
	}
	if _, err := newMarks(names.DefaultPrimaryMark, names.DefaultENIMask); err != nil {
		t.Errorf("defaults: %v", err)
	}
	if _, err := newMarks(0x180, 0x7f); err != nil {
		t.Errorf("a mark of two bits: %v", err)
	}
}
