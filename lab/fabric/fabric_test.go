package fabric

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vpccni/lab/ec2"
	"vpccni/lab/probe"
	"vpccni/pkg/networkutils/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const testPort = 8080

// bed is a fabric with a VPC of a public subnet (10.0.1.0/24) and a private one (10.0.2.0/24).
type bed struct {
	*Fabric
	t       *testing.T
	vpc     ec2.VPC
	subnets []ec2.Subnet
	nodes   map[string]*nstest.NS
	enis    int
}

func newBed(t *testing.T) *bed {
	t.Helper()
	return newBedWith(t, Options{})
}

func newBedWith(t *testing.T, o Options) *bed {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{Fabric: f, t: t, nodes: map[string]*nstest.NS{},
		vpc: ec2.VPC{ID: "vpc-1", CIDRs: []netip.Prefix{prefix("10.0.0.0/16")}},
		subnets: []ec2.Subnet{
			{ID: "subnet-pub", VPCID: "vpc-1", CIDR: prefix("10.0.1.0/24"), IPv6: prefix("2001:db8:1:1::/64"), Public: true},
			{ID: "subnet-prv", VPCID: "vpc-1", CIDR: prefix("10.0.2.0/24"), IPv6: prefix("2001:db8:1:2::/64")},
		}}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close fabric: %v", err)
		}
	})
	b.syncVPC()
	for _, host := range []Host{HostInternet, HostOnPrem} {
		b.carries(b.at(HostVPC), string(host))
		b.serve(string(host), b.at(host))
	}
	return b
}

func (b *bed) syncVPC() {
	b.t.Helper()
	if err := b.SyncVPC(b.vpc, b.subnets); err != nil {
		b.t.Fatal(err)
	}
}

// at is the Do of one of the fabric's hosts.
func (b *bed) at(host Host) probe.Do { return func(fn func() error) error { return b.Do(host, fn) } }

func (b *bed) serve(name string, do probe.Do) {
	b.t.Helper()
	s, err := probe.Serve(b.t.Context(), name, do, testPort)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = s.Close() })
}

// node adds an instance with a probe server.
func (b *bed) node(name string) *nstest.NS {
	b.t.Helper()
	ns := nstest.New(b.t)
	b.nodes[name] = ns
	file, err := os.Open(ns.Path())
	if err != nil {
		b.t.Fatal(err)
	}
	defer file.Close()
	if err := b.AddNode(name, file); err != nil {
		b.t.Fatal(err)
	}
	b.serve(name, ns.Do)
	return ns
}

// eni attaches an ENI. The subnet is that of the primary address.
func (b *bed) eni(instance string, device int, primary string, change ...func(*ec2.ENI)) ec2.ENI {
	b.t.Helper()
	b.enis++
	e := ec2.ENI{
		ID:              fmt.Sprintf("eni-%d", b.enis),
		MAC:             net.HardwareAddr{2, 0, 0, 0, 0, byte(b.enis)},
		VPCID:           b.vpc.ID,
		SourceDestCheck: true,
		Primary:         netip.MustParseAddr(primary),
		Attachment:      &ec2.Attachment{InstanceID: instance, Device: device, State: "attached"},
	}
	for _, s := range b.subnets {
		if s.CIDR.Contains(e.Primary) {
			e.SubnetID = s.ID
			if s.Public && device == 0 {
				e.PublicIP = netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + b.enis)})
			}
		}
	}
	for _, f := range change {
		f(&e)
	}
	b.sync(e)
	if ns := b.nodes[instance]; ns != nil && device == 0 && e.Attachment.Card == 0 {
		b.plugged(ns, "eth0", e)
		for _, a := range e.IPv6 {
			b.owns(ns.Do, "eth0", a.String())
		}
	}
	return e
}

// plugged waits until the pair of an interface that is up carries packets.
func (b *bed) plugged(ns *nstest.NS, link string, e ec2.ENI) {
	b.t.Helper()
	port := b.ports[e.ID].name
	b.carries(ns.Do, link)
	b.carries(b.at(HostVPC), port)
	if len(e.IPv6) > 0 {
		b.owns(b.at(HostVPC), port, RouterAddr6.String())
	}
}

// The kernel has workers that a busy machine keeps waiting. One lets packets through a link that is up only after it has
// seen the other end come up; another one takes packets to an IPv6 address only after it has finished the address.

// carries waits for the first.
func (b *bed) carries(do probe.Do, link string) {
	b.t.Helper()
	b.shows(do, "state UP", "ip", "-o", "link", "show", link)
}

// owns waits for the second.
func (b *bed) owns(do probe.Do, link, a string) {
	b.t.Helper()
	b.shows(do, "local "+a+" dev "+link+" ", "ip", "-6", "-o", "route", "show", "table", "local")
}

// shows waits until a program prints something.
func (b *bed) shows(do probe.Do, want, name string, args ...string) {
	b.t.Helper()
	var out []byte
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := do(func() (err error) {
			out, err = exec.CommandContext(b.t.Context(), name, args...).CombinedOutput()
			return err
		})
		switch {
		case err != nil:
			b.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		case strings.Contains(string(out), want):
			return
		case time.Now().After(deadline):
			b.t.Fatalf("%s %q never shows %q:\n%s", name, args, want, out)
		}
	}
}

func (b *bed) sync(e ec2.ENI) {
	b.t.Helper()
	if err := b.Sync(e); err != nil {
		b.t.Fatal(err)
	}
}

// ask sends a datagram and a stream and wants both answered by the server given, from the source given. The stream's
// connection may take its time to end: who takes the address away next and counts what is dropped asks by datagram.
func (b *bed) ask(do probe.Do, target, server, source string, opts ...probe.Option) {
	b.t.Helper()
	b.askDatagram(do, target, server, source, opts...)
	got, err := probe.TCP(b.t.Context(), do, testTarget(target), 3000, opts...)
	b.answered("tcp", target, got, err, server, source)
}

// askDatagram is ask with the datagram alone: one packet each way, and none after its answer.
func (b *bed) askDatagram(do probe.Do, target, server, source string, opts ...probe.Option) {
	b.t.Helper()
	got, err := probe.UDP(b.t.Context(), do, testTarget(target), 64, opts...)
	b.answered("udp", target, got, err, server, source)
}

func (b *bed) answered(network, target string, got probe.Answer, err error, server, source string) {
	b.t.Helper()
	if err != nil {
		b.t.Errorf("%s %s: %v", network, target, err)
		return
	}
	if got.Server != server || got.Source.String() != source {
		b.t.Errorf("%s %s: %s answered and saw %s, want %s and %s", network, target, got.Server, got.Source, server, source)
	}
}

func testTarget(a string) netip.AddrPort { return netip.AddrPortFrom(addr(a), testPort) }

// silence wants no answer to a datagram.
func (b *bed) silence(do probe.Do, target string, opts ...probe.Option) {
	b.t.Helper()
	if got, err := probe.UDP(b.t.Context(), do, testTarget(target), 64, append(opts, probe.Timeout(silent))...); err == nil {
		b.t.Errorf("udp %s: %s answered and saw %s, want silence", target, got.Server, got.Source)
	}
}

// drops wants exactly these drops, each as "cause eni instance source destination packets". A packet may still be on
// its way on a busy machine, so they are waited for.
func (b *bed) drops(want ...string) {
	b.t.Helper()
	wanted := strings.Join(want, "\n")
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		drops, err := b.Drops()
		if err != nil {
			b.t.Fatal(err)
		}
		var got []string
		var packets uint64
		for _, d := range drops {
			got = append(got, fmt.Sprintf("%s %s %s %s %s %d", d.Cause, d.ENI, d.Instance, d.Source, d.Destination, d.Packets))
			packets += d.Packets
		}
		seen := strings.Join(got, "\n")
		if seen == wanted {
			return
		}
		// More of them than wanted never become fewer.
		if packets > uint64(len(want)) || time.Now().After(deadline) {
			b.t.Errorf("drops:\n%s\nwant:\n%s", seen, wanted)
			return
		}
	}
}

// configure brings a hot-plugged interface up as a CNI would: own address, own table, source routing.
func (b *bed) configure(instance, link string, e ec2.ENI) {
	b.t.Helper()
	ns := b.nodes[instance]
	var subnet netip.Prefix
	for _, s := range b.subnets {
		if s.ID == e.SubnetID {
			subnet = s.CIDR
		}
	}
	table := fmt.Sprint(e.Attachment.Device + 1)
	ns.Run("ip", "addr", "add", netip.PrefixFrom(e.Primary, subnet.Bits()).String(), "dev", link, "noprefixroute")
	ns.Run("ip", "link", "set", link, "up")
	b.plugged(ns, link, e)
	ns.Run("ip", "route", "add", GatewayAddr(subnet).String(), "dev", link, "scope", "link", "table", table)
	ns.Run("ip", "route", "add", "default", "via", GatewayAddr(subnet).String(), "dev", link, "table", table)
	for _, p := range addressesOf(e) {
		if p.Addr().Is4() {
			ns.Run("ip", "rule", "add", "from", p.String(), "lookup", table)
		}
	}
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
