package fabric

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vpccni/lab/ec2"
	"vpccni/lab/probe"
)

// silent is how long a datagram is waited for that must not come: long beside a round trip, and no assertion hangs
// on how long the one takes that must come.
const silent = 200 * time.Millisecond

// loopback gives a node an address that no interface carries, as a pod's would be.
func (b *bed) loopback(instance string, addrs ...string) {
	b.t.Helper()
	for _, a := range addrs {
		b.nodes[instance].Run("ip", "addr", "add", a, "dev", "lo", "nodad")
		if p := prefix(a); p.Addr().Is6() {
			b.owns(b.nodes[instance].Do, "lo", p.Addr().String())
		}
	}
}

func TestInstancesTalkByAllTheirENIs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n1, n2 := b.node("i-1"), b.node("i-2")
	b.eni("i-1", 0, "10.0.1.10", func(e *ec2.ENI) { e.Secondary = []netip.Addr{addr("10.0.1.11")} })
	e1 := b.eni("i-1", 1, "10.0.1.30", func(e *ec2.ENI) {
		e.Secondary = []netip.Addr{addr("10.0.1.31")}
		e.Prefixes = []netip.Prefix{prefix("10.0.1.128/28")}
	})
	b.eni("i-2", 0, "10.0.1.20")
	e2 := b.eni("i-2", 1, "10.0.2.20", func(e *ec2.ENI) { e.Prefixes = []netip.Prefix{prefix("10.0.2.64/28")} })
	b.configure("i-1", "eth1", e1)
	b.configure("i-2", "eth1", e2)
	b.loopback("i-1", "10.0.1.11/32", "10.0.1.31/32", "10.0.1.129/32", "10.0.1.143/32")
	b.loopback("i-2", "10.0.2.64/32")

	for _, from := range []string{"10.0.1.10", "10.0.1.11", "10.0.1.30", "10.0.1.31", "10.0.1.129", "10.0.1.143"} {
		for _, to := range []string{"10.0.1.20", "10.0.2.20", "10.0.2.64"} {
			b.ask(n1.Do, to, "i-2", from, probe.From(addr(from)))
			b.ask(n2.Do, from, "i-1", to, probe.From(addr(to)))
		}
	}
	b.drops()
}

func TestAttachedLaterIsLeftAlone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node("i-1")
	n.Run("ip", "link", "add", "eth2", "type", "veth", "peer", "name", "eth2peer")
	b.eni("i-1", 0, "10.0.1.10")
	b.eni("i-1", 1, "10.0.1.30")
	b.eni("i-1", 2, "10.0.2.30")
	b.eni("i-1", 1, "10.0.2.31", func(e *ec2.ENI) { e.Attachment.Card = 1 })
	links := n.Run("ip", "-o", "link")
	for link, want := range map[string][]string{
		"eth0":   {"02:00:00:00:00:01", "mtu 9001", ",UP"},
		"eth1":   {"02:00:00:00:00:02", "mtu 9001", "state DOWN"},
		"eth3":   {"02:00:00:00:00:03", "mtu 9001", "state DOWN"}, // eth2 was taken
		"eth101": {"02:00:00:00:00:04", "mtu 9001", "state DOWN"},
	} {
		line := n.Run("ip", "-o", "link", "show", link)
		for _, w := range want {
			if !strings.Contains(line, w) {
				t.Errorf("%s lacks %q: %s\nall:\n%s", link, w, line, links)
			}
		}
	}
	want := "10.0.1.10/24"
	if got := strings.Fields(n.Run("ip", "-o", "-4", "addr", "show", "scope", "global")); len(got) < 4 || got[3] != want || strings.Count(strings.Join(got, " "), "inet") != 1 {
		t.Errorf("want %s alone, got %s", want, got)
	}
	compareText(t, "boot routes", n.Run("ip", "route"), `
default via 10.0.1.1 dev eth0 proto dhcp 
10.0.0.2 via 10.0.1.1 dev eth0 proto dhcp 
10.0.1.0/24 dev eth0 proto kernel scope link src 10.0.1.10 
169.254.169.253 dev eth0 proto dhcp scope link 
169.254.169.254 dev eth0 proto dhcp scope link 
`)
}

func TestServicesOfTheVPC(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.serve("vpc", b.at(HostVPC))
	n := b.node("i-1")
	b.eni("i-1", 0, "10.0.1.10", func(e *ec2.ENI) { e.Secondary = []netip.Addr{addr("10.0.1.11")} })
	e := b.eni("i-1", 1, "10.0.2.10", func(e *ec2.ENI) { e.Prefixes = []netip.Prefix{prefix("10.0.2.64/28")} })
	b.configure("i-1", "eth1", e)
	b.loopback("i-1", "10.0.1.11/32", "10.0.2.65/32")
	for _, from := range []string{"10.0.1.10", "10.0.1.11", "10.0.2.10", "10.0.2.65"} {
		for _, to := range []string{IMDSAddr.String(), ResolverAddr.String(), EC2Addr.String(), "10.0.0.2", "10.0.1.1", "10.0.2.1"} {
			b.ask(n.Do, to, "vpc", from, probe.From(addr(from)))
		}
	}
	b.drops()
}

func TestSourceCheck(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.serve("vpc", b.at(HostVPC))
	n, _ := b.node("i-1"), b.node("i-2")
	e := b.eni("i-1", 0, "10.0.1.10")
	b.eni("i-2", 0, "10.0.1.20")
	b.loopback("i-1", "10.0.1.99/32", "10.0.1.20/32", "192.0.2.77/32", "10.0.1.1/32")
	n.Run("ip", "route", "add", "10.0.1.20", "dev", "eth0", "table", "7")
	for _, c := range []struct{ from, to string }{
		{"10.0.1.99", "10.0.2.1"}, {"10.0.1.99", IMDSAddr.String()}, {"10.0.1.99", OnPremAddr.String()},
		{"10.0.1.20", OnPremAddr.String()}, {"192.0.2.77", InternetAddr.String()}, {"192.0.2.77", OnPremAddr.String()},
	} {
		b.silence(n.Do, c.to, probe.From(addr(c.from)))
	}
	b.drops(
		"source-not-assigned eni-1 i-1 10.0.1.20 192.0.2.10 1",
		"source-not-assigned eni-1 i-1 10.0.1.99 10.0.2.1 1",
		"source-not-assigned eni-1 i-1 10.0.1.99 169.254.169.254 1",
		"source-not-assigned eni-1 i-1 10.0.1.99 192.0.2.10 1",
		"source-not-assigned eni-1 i-1 192.0.2.77 192.0.2.10 1",
		"source-not-assigned eni-1 i-1 192.0.2.77 203.0.113.10 1",
	)
	if err := b.ResetDrops(); err != nil {
		t.Fatal(err)
	}
	b.drops()

	// Assigned, it passes; taken away, it does not.
	e.Secondary = []netip.Addr{addr("10.0.1.99")}
	b.sync(e)
	b.askDatagram(n.Do, OnPremAddr.String(), "onprem", "10.0.1.99", probe.From(addr("10.0.1.99")))
	e.Secondary = nil
	b.sync(e)
	b.silence(n.Do, OnPremAddr.String(), probe.From(addr("10.0.1.99")))
	b.drops("source-not-assigned eni-1 i-1 10.0.1.99 192.0.2.10 1")

	// With the check off, whatever it sends is forwarded, and it is the answer that leads nowhere.
	if err := b.ResetDrops(); err != nil {
		t.Fatal(err)
	}
	e.SourceDestCheck = false
	b.sync(e)
	b.silence(n.Do, OnPremAddr.String(), probe.From(addr("10.0.1.99")))
	b.drops("destination-not-assigned   192.0.2.10 10.0.1.99 1")
}

func TestDestinationMustBeAssigned(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node("i-1")
	b.eni("i-1", 0, "10.0.1.10")
	b.silence(n.Do, "10.0.2.77")
	b.silence(n.Do, "10.0.77.1")
	b.silence(b.at(HostOnPrem), "10.0.2.77")
	// In its own subnet nobody answers ARP for it, so no packet is sent.
	b.silence(n.Do, "10.0.1.77")
	b.drops(
		"destination-not-assigned   192.0.2.10 10.0.2.77 1",
		"destination-not-assigned eni-1 i-1 10.0.1.10 10.0.2.77 1",
		"destination-not-assigned eni-1 i-1 10.0.1.10 10.0.77.1 1",
	)
}

func TestInternetAndOnPrem(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	pub, prv := b.node("i-pub"), b.node("i-prv")
	b.eni("i-pub", 0, "10.0.1.10", func(e *ec2.ENI) { e.Secondary = []netip.Addr{addr("10.0.1.11")} })
	b.eni("i-prv", 0, "10.0.2.10", func(e *ec2.ENI) { e.Secondary = []netip.Addr{addr("10.0.2.11")} })
	b.loopback("i-pub", "10.0.1.11/32")
	b.loopback("i-prv", "10.0.2.11/32")

	b.ask(pub.Do, InternetAddr.String(), "internet", "10.0.1.10")
	b.ask(b.at(HostInternet), "10.0.1.10", "i-pub", InternetAddr.String())
	b.ask(prv.Do, InternetAddr.String(), "internet", NATAddr.String())
	b.ask(prv.Do, InternetAddr.String(), "internet", NATAddr.String(), probe.From(addr("10.0.2.11")))
	for _, from := range []string{"10.0.1.10", "10.0.1.11"} {
		b.ask(pub.Do, OnPremAddr.String(), "onprem", from, probe.From(addr(from)))
		b.ask(b.at(HostOnPrem), from, "i-pub", OnPremAddr.String())
	}
	b.ask(prv.Do, OnPremAddr.String(), "onprem", "10.0.2.11", probe.From(addr("10.0.2.11")))
	b.ask(b.at(HostOnPrem), "10.0.2.11", "i-prv", OnPremAddr.String())
	b.drops()

	b.silence(pub.Do, InternetAddr.String(), probe.From(addr("10.0.1.11")))
	b.silence(b.at(HostInternet), "10.0.1.11")
	b.silence(b.at(HostInternet), "10.0.2.10")
	b.drops(
		"no-public-mapping   203.0.113.10 10.0.1.11 1",
		"no-public-mapping   203.0.113.10 10.0.2.10 1",
		"no-public-mapping eni-1 i-pub 10.0.1.11 203.0.113.10 1",
	)
}

func TestServicesAreForENIsOnly(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.serve("vpc", b.at(HostVPC))
	b.silence(b.at(HostOnPrem), IMDSAddr.String())
	b.silence(b.at(HostInternet), IMDSAddr6.String())
	b.drops(
		"destination-not-assigned   192.0.2.10 169.254.169.254 1",
		"destination-not-assigned   "+InternetAddr6.String()+" fd00:ec2::254 1",
	)
	b.ask(b.at(HostInternet), EC2Addr.String(), "vpc", InternetAddr.String())
}

func TestSubnetBecomesPublic(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node("i-1")
	b.eni("i-1", 0, "10.0.2.10", func(e *ec2.ENI) { e.PublicIP = addr("203.0.113.99") })
	b.ask(n.Do, InternetAddr.String(), "internet", NATAddr.String())
	b.subnets[1].Public = true
	b.syncVPC()
	b.ask(n.Do, InternetAddr.String(), "internet", "10.0.2.10")
	b.drops()
}

func TestMoreHosts(t *testing.T) {
	t.Parallel()
	const branch Host = "branch"
	b := newBedWith(t, Options{MoreHosts: []PeeredHost{{Name: branch, Addr: prefix("192.0.3.7/24")}}})
	b.serve("branch", b.at(branch))
	n := b.node("i-1")
	b.eni("i-1", 0, "10.0.2.10")
	b.ask(n.Do, "192.0.3.7", "branch", "10.0.2.10")
	b.ask(b.at(branch), "10.0.2.10", "i-1", "192.0.3.7")
	b.ask(b.at(branch), OnPremAddr.String(), "onprem", "192.0.3.7")
	b.drops()
}

func TestRangeAddedWhileRunning(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n, _ := b.node("i-1"), b.node("i-2")
	b.eni("i-1", 0, "10.0.1.10")
	e2 := b.eni("i-2", 0, "10.0.2.20")
	b.vpc.CIDRs = append(b.vpc.CIDRs, prefix("100.64.0.0/16"))
	b.subnets = append(b.subnets, ec2.Subnet{ID: "subnet-100", VPCID: b.vpc.ID, CIDR: prefix("100.64.1.0/24")})
	b.syncVPC()
	b.silence(n.Do, "100.64.1.20")
	b.drops("destination-not-assigned eni-1 i-1 10.0.1.10 100.64.1.20 1")
	e := b.eni("i-2", 1, "100.64.1.20")
	b.configure("i-2", "eth1", e)
	b.ask(n.Do, "100.64.1.20", "i-2", "10.0.1.10")
	b.ask(b.nodes["i-2"].Do, InternetAddr.String(), "internet", NATAddr.String(), probe.From(e.Primary))
	b.ask(n.Do, e2.Primary.String(), "i-2", "10.0.1.10")

	other := ec2.VPC{ID: "vpc-2", CIDRs: []netip.Prefix{prefix("100.64.128.0/17")}}
	if err := b.SyncVPC(other, nil); err == nil {
		t.Error("a VPC that overlaps another was accepted")
	}
}

func TestVPCsAreApart(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n1, n2 := b.node("i-1"), b.node("i-2")
	b.eni("i-1", 0, "10.0.1.10")
	other := ec2.VPC{ID: "vpc-2", CIDRs: []netip.Prefix{prefix("10.1.0.0/16")}}
	subnet := ec2.Subnet{ID: "subnet-2", VPCID: "vpc-2", CIDR: prefix("10.1.1.0/24")}
	if err := b.SyncVPC(other, []ec2.Subnet{subnet}); err != nil {
		t.Fatal(err)
	}
	b.eni("i-2", 0, "10.1.1.10", func(e *ec2.ENI) { e.VPCID, e.SubnetID = "vpc-2", "subnet-2" })
	b.silence(n1.Do, "10.1.1.10")
	b.ask(n2.Do, OnPremAddr.String(), "onprem", "10.1.1.10")
	b.drops("other-vpc eni-1 i-1 10.0.1.10 10.1.1.10 1")
}

func TestJumboFrames(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n1, n2 := b.node("i-1"), b.node("i-2")
	b.eni("i-1", 0, "10.0.1.10")
	b.eni("i-2", 0, "10.0.2.20")
	to := func(a string) netip.AddrPort { return netip.AddrPortFrom(addr(a), testPort) }
	const largest = DefaultMTU - 20 - 8
	for _, size := range []int{4096, largest} {
		for _, target := range []string{"10.0.2.20", InternetAddr.String(), OnPremAddr.String()} {
			if _, err := probe.UDP(t.Context(), n1.Do, to(target), size, probe.DontFragment()); err != nil {
				t.Errorf("%d bytes to %s: %v", size, target, err)
			}
		}
	}
	if _, err := probe.UDP(t.Context(), n1.Do, to("10.0.2.20"), largest+1, probe.DontFragment()); err == nil {
		t.Error("a packet larger than the MTU came through")
	}
	for _, target := range []string{"10.0.1.10", InternetAddr.String()} {
		if _, err := probe.TCP(t.Context(), n2.Do, to(target), 20<<20); err != nil {
			t.Errorf("20 MB to %s: %v", target, err)
		}
	}
	b.drops()
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	if !b.v6 {
		t.Fatal("this kernel has no IPv6")
	}
	b.serve("vpc", b.at(HostVPC))
	n1, n2 := b.node("i-1"), b.node("i-2")
	b.eni("i-1", 0, "10.0.1.10", func(e *ec2.ENI) {
		e.IPv6 = []netip.Addr{addr("2001:db8:1:1::10")}
		e.IPv6Prefixes = []netip.Prefix{prefix("2001:db8:1:1:a::/80")}
	})
	b.eni("i-2", 0, "10.0.2.20", func(e *ec2.ENI) { e.IPv6 = []netip.Addr{addr("2001:db8:1:2::20")} })
	b.loopback("i-1", "2001:db8:1:1:a::5/128", "2001:db8:1:1:b::5/128")
	for _, from := range []string{"2001:db8:1:1::10", "2001:db8:1:1:a::5"} {
		b.ask(n1.Do, "2001:db8:1:2::20", "i-2", from, probe.From(addr(from)))
		b.ask(n2.Do, from, "i-1", "2001:db8:1:2::20")
		b.ask(n1.Do, InternetAddr6.String(), "internet", from, probe.From(addr(from)))
		b.ask(n1.Do, OnPremAddr6.String(), "onprem", from, probe.From(addr(from)))
		b.ask(b.at(HostOnPrem), from, "i-1", OnPremAddr6.String())
		b.ask(n1.Do, IMDSAddr6.String(), "vpc", from, probe.From(addr(from)))
	}
	b.drops()
	b.silence(n1.Do, "2001:db8:1:2::20", probe.From(addr("2001:db8:1:1:b::5")))
	b.silence(n1.Do, "2001:db8:1:2::99")
	b.drops(
		"source-not-assigned eni-1 i-1 2001:db8:1:1:b::5 2001:db8:1:2::20 1",
		"destination-not-assigned eni-1 i-1 2001:db8:1:1::10 2001:db8:1:2::99 1",
	)
}
