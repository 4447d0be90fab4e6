package fabric

import (
	"errors"
	"flag"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"vpccni/lab/ec2"
)

var update = flag.Bool("update", false, "write the golden files anew")

func compareText(t *testing.T, what, got, want string) {
	t.Helper()
	trim := func(s string) string {
		lines := strings.Split(strings.TrimSpace(s), "\n")
		for i := range lines {
			lines[i] = strings.TrimRight(lines[i], " ")
		}
		return strings.Join(lines, "\n")
	}
	if g, w := trim(got), trim(want); g != w {
		t.Errorf("%s:\n%s\nwant:\n%s", what, g, w)
	}
}

// router runs a program in the router's namespace.
func (b *bed) router(name string, args ...string) string {
	b.t.Helper()
	var out []byte
	err := b.Do(HostVPC, func() error {
		var err error
		out, err = exec.CommandContext(b.t.Context(), name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		b.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestGolden(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.node("i-1")
	b.node("i-2")
	b.eni("i-1", 0, "10.0.1.10", func(e *ec2.ENI) { e.Secondary = []netip.Addr{addr("10.0.1.11")} })
	b.eni("i-1", 1, "10.0.1.30", func(e *ec2.ENI) { e.Prefixes = []netip.Prefix{prefix("10.0.1.128/28")} })
	b.eni("i-2", 0, "10.0.2.20", func(e *ec2.ENI) {
		e.SourceDestCheck = false
		e.IPv6 = []netip.Addr{addr("2001:db8:1:2::20")}
		e.IPv6Prefixes = []netip.Prefix{prefix("2001:db8:1:2:a::/80")}
	})
	for file, got := range map[string]string{
		"nft.txt":    b.router("nft", "-s", "list", "table", "inet", tableName),
		"routes.txt": b.router("ip", "route"),
		"routes6.txt": lines(b.router("ip", "-6", "route"), func(l string) bool {
			return !strings.HasPrefix(l, "fe80") && !strings.HasPrefix(l, "multicast")
		}),
		"neigh.txt": lines(b.router("ip", "neigh", "show", "nud", "permanent"), func(string) bool { return true }),
	} {
		path := filepath.Join("testdata", file)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		compareText(t, file, got, string(want))
	}
}

func lines(s string, keep func(string) bool) string {
	all := slices.DeleteFunc(strings.Split(strings.TrimSpace(s), "\n"), func(l string) bool { return !keep(l) })
	slices.Sort(all)
	return strings.Join(all, "\n") + "\n"
}

func TestDetachAndAttachAgain(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n1, n2 := b.node("i-1"), b.node("i-2")
	b.eni("i-1", 0, "10.0.1.10")
	b.eni("i-2", 0, "10.0.1.20")
	e := b.eni("i-1", 1, "10.0.2.30")
	b.configure("i-1", "eth1", e)
	b.askDatagram(n2.Do, "10.0.2.30", "i-1", "10.0.1.20")

	attachment := *e.Attachment
	e.Attachment.State = "detaching"
	b.sync(e)
	if links := n1.Run("ip", "-o", "link"); strings.Contains(links, "eth1") {
		t.Errorf("a detached interface is still there:\n%s", links)
	}
	b.silence(n2.Do, "10.0.2.30")
	b.drops("destination-not-assigned eni-2 i-2 10.0.1.20 10.0.2.30 1")
	e.Attachment = nil
	b.sync(e)

	attachment.InstanceID, attachment.Device = "i-2", 3
	e.Attachment = &attachment
	b.sync(e)
	b.configure("i-2", "eth3", e)
	b.ask(n1.Do, "10.0.2.30", "i-2", "10.0.1.10")
	for range 2 {
		if err := b.Remove(e.ID); err != nil {
			t.Fatal(err)
		}
	}
	if links := n2.Run("ip", "-o", "link"); strings.Contains(links, "eth3") {
		t.Errorf("the interface of a deleted ENI is still there:\n%s", links)
	}
}

func TestMACAndAddressChange(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n1, n2 := b.node("i-1"), b.node("i-2")
	b.eni("i-2", 0, "10.0.1.20")
	e := b.eni("i-1", 0, "10.0.1.10")
	b.ask(n2.Do, "10.0.1.10", "i-1", "10.0.1.20")
	e.MAC, e.Primary = net.HardwareAddr{2, 0, 0, 0, 1, 1}, addr("10.0.1.12")
	b.sync(e)
	if got := n1.Run("ip", "-o", "link", "show", "eth0"); !strings.Contains(got, e.MAC.String()) {
		t.Errorf("old MAC: %s", got)
	}
	b.ask(n2.Do, "10.0.1.12", "i-1", "10.0.1.20")
	b.ask(n1.Do, InternetAddr.String(), "internet", "10.0.1.12")
}

func TestAddressMovesBetweenENIs(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"taken away first", "given first"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			n1, n2, n3 := b.node("i-1"), b.node("i-2"), b.node("i-3")
			moving := []netip.Addr{addr("10.0.1.99")}
			from := b.eni("i-1", 0, "10.0.1.10", func(e *ec2.ENI) { e.Secondary = moving })
			to := b.eni("i-2", 0, "10.0.1.20")
			b.eni("i-3", 0, "10.0.2.30")
			b.loopback("i-1", "10.0.1.99/32")
			b.ask(n3.Do, "10.0.1.99", "i-1", "10.0.2.30")
			from.Secondary, to.Secondary = nil, moving
			if first == "given first" {
				b.sync(to)
				b.sync(from)
			} else {
				b.sync(from)
				b.sync(to)
			}
			b.loopback("i-2", "10.0.1.99/32")
			b.ask(n3.Do, "10.0.1.99", "i-2", "10.0.2.30")
			n1.Run("ip", "addr", "del", "10.0.1.99/32", "dev", "lo")
			// In the same subnet, where the node that lost it asks by ARP.
			b.ask(n1.Do, "10.0.1.99", "i-2", "10.0.1.10")
			b.ask(n2.Do, "10.0.1.10", "i-1", "10.0.1.20")
		})
	}
}

func TestNodesComeAndGo(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	// EC2 attaches the primary ENI before the instance has a network.
	b.eni("i-1", 0, "10.0.1.10")
	b.eni("i-1", 1, "10.0.2.10")
	n := b.node("i-1")
	b.ask(n.Do, InternetAddr.String(), "internet", "10.0.1.10")
	if err := b.AddNode("i-1", nil); err == nil {
		t.Error("an instance was added twice")
	}

	// Its interfaces go behind the fabric's back, and come again.
	n.Run("ip", "link", "del", "eth0")
	b.sync(b.Fabric.enis["eni-1"])
	b.ask(n.Do, InternetAddr.String(), "internet", "10.0.1.10")

	b.RemoveNode("i-1")
	b.RemoveNode("i-1")
	if links := n.Run("ip", "-o", "link"); strings.Contains(links, "eth") {
		t.Errorf("a removed node has interfaces left:\n%s", links)
	}
	if ports := b.router("ip", "-o", "link"); strings.Contains(ports, "port") {
		t.Errorf("the router has ports left:\n%s", ports)
	}
	if err := b.Remove("eni-2"); err != nil {
		t.Error(err)
	}
	n = b.node("i-1")
	b.ask(n.Do, InternetAddr.String(), "internet", "10.0.1.10")
}

func TestManyAddresses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.vpc.CIDRs = append(b.vpc.CIDRs, prefix("100.64.0.0/16"))
	b.subnets = append(b.subnets, ec2.Subnet{ID: "subnet-big", VPCID: b.vpc.ID, CIDR: prefix("100.64.0.0/18")})
	b.syncVPC()
	b.node("i-1")
	b.node("i-2")
	b.eni("i-2", 0, "10.0.1.20")
	e := b.eni("i-1", 0, "100.64.0.10")
	a := addr("100.64.8.0")
	for range 1000 {
		e.Secondary = append(e.Secondary, a)
		a = a.Next()
	}
	b.sync(e)
	last := e.Secondary[999]
	b.loopback("i-1", last.String()+"/32")
	b.ask(b.nodes["i-2"].Do, last.String(), "i-1", "10.0.1.20")
	if got := strings.Count(b.router("ip", "route"), "via 100.64.0.10"); got != 1000 {
		t.Errorf("%d routes, want 1000", got)
	}
	e.Secondary = nil
	b.sync(e)
	if got := strings.Count(b.router("ip", "route"), "via 100.64.0.10"); got != 0 {
		t.Errorf("%d routes, want none", got)
	}
}

func TestDropsBeyondTheDetails(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node("i-1")
	b.eni("i-1", 0, "10.0.1.10")
	const sent = detailSize + 100
	err := n.Do(func() error {
		conn, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			return err
		}
		defer conn.Close()
		to := addr("10.0.100.0")
		for range sent {
			if _, err := conn.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9))); err != nil {
				return err
			}
			to = to.Next()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	drops, err := b.Drops()
	if err != nil {
		t.Fatal(err)
	}
	var packets, unnamed, size uint64
	for _, d := range drops {
		packets += d.Packets
		size += d.Bytes
		if !d.Source.IsValid() {
			unnamed += d.Packets
		}
		if d.Cause != DestinationNotAssigned {
			t.Errorf("unexpected %+v", d)
		}
	}
	if packets != sent || unnamed == 0 || size != sent*(20+8+1) {
		t.Errorf("%d packets of %d bytes in all, %d unnamed; want %d of %d, and some unnamed", packets, size, unnamed, sent, sent*29)
	}
	if err := b.ResetDrops(); err != nil {
		t.Fatal(err)
	}
	b.drops()
}

// TestTheProcessStaysWhereItIs: /proc shows the main thread's namespace as the process's, so no work may leave that
// thread elsewhere, whichever goroutine runs on it.
func TestTheProcessStaysWhereItIs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var calls sync.WaitGroup
	for range 200 {
		calls.Go(func() {
			if err := b.Do(HostOnPrem, func() error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != home {
		t.Errorf("the process is in %s (%v), want %s", now, err, home)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	n := b.node("i-1")
	b.eni("i-1", 0, "10.0.1.10")
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if links := n.Run("ip", "-o", "link"); strings.Contains(links, "eth") {
		t.Errorf("interfaces outlive the fabric:\n%s", links)
	}
	b.RemoveNode("i-1")
	_, err := b.Drops()
	for _, err := range []error{err, b.ResetDrops(), b.AddNode("i-2", nil), b.SyncVPC(b.vpc, b.subnets)} {
		if !errors.Is(err, errClosed) {
			t.Errorf("got %v, want %v", err, errClosed)
		}
	}
}

func TestSyncRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.node("i-1")
	e := b.eni("i-1", 0, "10.0.1.10")
	for what, change := range map[string]func(*ec2.ENI){
		"vpc":     func(e *ec2.ENI) { e.VPCID = "vpc-9" },
		"subnet":  func(e *ec2.ENI) { e.SubnetID = "subnet-9" },
		"address": func(e *ec2.ENI) { e.Primary = addr("10.0.9.9") },
	} {
		bad := e
		bad.ID = "eni-bad"
		change(&bad)
		if err := b.Sync(bad); err == nil || !strings.Contains(err.Error(), "eni-bad") {
			t.Errorf("unknown %s: want an error that names the ENI, got %v", what, err)
		}
	}
	if err := b.Do("moon", func() error { return nil }); err == nil {
		t.Error("a host that does not exist ran something")
	}
}
