package hostnet

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

var (
	update  = flag.Bool("update", false, "write the golden files")
	updates = flag.Int("updates", 30, "changes under load; make chaos does 100, an emulated machine fewer")
)

func TestMain(m *testing.M) { nstest.Main(m) }

// node is a host with links that stand for ENIs.
type node struct {
	*nstest.NS
	t    testing.TB
	host *Host
}

// newNode returns a host whose links eth0, eth1, ... have the MACs that mac returns.
func newNode(t testing.TB, links int) *node {
	t.Helper()
	n := &node{NS: nstest.New(t), t: t}
	var script strings.Builder
	// Link-local addresses are there at once, not after a second.
	script.WriteString("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad;")
	for i := range links {
		script.WriteString(addLinkScript(i))
	}
	// What a node has of its own.
	script.WriteString(`ip address add 10.0.1.10/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.1.1
		ip -6 address add 2001:db8:10:1::10/64 dev eth0 nodad; ip -6 route add default via fe80:ec2::1 dev eth0`)
	n.Run("sh", "-e", "-c", script.String())
	n.host = n.open()
	return n
}

func (n *node) open() *Host {
	n.t.Helper()
	h, err := New(Options{NetNS: n.FD(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(h.Close)
	return h
}

func addLinkScript(i int) string {
	return fmt.Sprintf("ip link add eth%[1]d address %[2]s type veth peer peer%[1]d; ip link set peer%[1]d up;", i, mac(i))
}

func (n *node) addLink(i int) {
	n.t.Helper()
	n.Run("sh", "-e", "-c", addLinkScript(i))
}

func (n *node) apply(cfg Config) Report {
	n.t.Helper()
	report, err := n.host.Apply(context.Background(), cfg)
	if err != nil {
		n.t.Fatalf("Apply: %v", err)
	}
	return report
}

// applyTwice applies the Config and makes sure that nothing is left to do then.
func (n *node) applyTwice(cfg Config) {
	n.t.Helper()
	n.apply(cfg)
	if again := n.apply(cfg); again.Writes != 0 {
		n.t.Fatalf("second Apply made %d writes, want none", again.Writes)
	}
}

// state is what the tools of the trade say about rules, routes and nftables. Rules of one priority and objects of the
// nftables table are sorted: their order is that of their creation and means nothing.
func (n *node) state() string {
	n.t.Helper()
	var b strings.Builder
	section := func(title, text string) {
		if text = strings.TrimRight(text, " \n"); text != "" {
			fmt.Fprintf(&b, "# %s\n%s\n", title, text)
		}
	}
	parts := strings.Split(n.Run("sh", "-c", `
		ip -details rule; echo @; ip -details route show table main; echo @
		for t in 2 3 4 10102 5120 5121; do ip -details route show table $t 2>/dev/null; echo @; done
		nft list table ip vpc-cni 2>/dev/null; true`), "@\n")
	section("ip rule", sortRules(parts[0]))
	section("ip route show table main", parts[1])
	for i, t := range []string{"2", "3", "4", "10102", "5120", "5121"} {
		section("ip route show table "+t, parts[2+i])
	}
	section("nft list table ip vpc-cni", sortBlocks(parts[8]))
	return b.String() + n.state6()
}

// state6 is the same of IPv6: empty if there is nothing but what the kernel and newNode made. Link-local routes are left
// out.
func (n *node) state6() string {
	n.t.Helper()
	const bare = "0:\tfrom all lookup local proto kernel\n32766:\tfrom all lookup main proto kernel"
	parts := strings.Split(n.Run("sh", "-c", `
		ip -6 -details rule; echo @; ip -6 -details route show table main | grep -v ^unicast.fe80::; echo @
		for t in 2 3 4 10102 5120 5121; do ip -6 -details route show table $t 2>/dev/null; echo @; done
		nft list table ip6 vpc-cni 2>/dev/null; true`), "@\n")
	var b strings.Builder
	section := func(title, text string) {
		if text = strings.TrimRight(text, " \n"); text != "" {
			fmt.Fprintf(&b, "# %s\n%s\n", title, text)
		}
	}
	for i, t := range []string{"2", "3", "4", "10102", "5120", "5121"} {
		section("ip -6 route show table "+t, parts[2+i])
	}
	section("nft list table ip6 vpc-cni", sortBlocks(parts[8]))
	rules := sortRules(parts[0])
	if b.Len() == 0 && rules == bare {
		return ""
	}
	return "# ip -6 rule\n" + rules + "\n# ip -6 route show table main\n" + parts[1] + b.String()
}

// linkState is what the tools say about the links themselves.
func (n *node) linkState() string {
	n.t.Helper()
	return "# links\n" + n.Run("sh", "-c", `for l in eth0 eth1 eth2 eth3; do
		echo $l rp_filter $(cat /proc/sys/net/ipv4/conf/$l/rp_filter) \
			$(ip -oneline link show $l | grep -oE 'mtu [0-9]+|state [A-Z]+') \
			$(ip -oneline -4 address show dev $l | awk '{print $4, ($0 ~ /noprefixroute/) ? "noprefixroute" : ""}') \
			$([ $l = eth0 ] || ip -oneline -6 address show dev $l scope global | awk '{
				print $4; for (i = 5; i <= NF; i++) if ($i ~ /nodad|noprefixroute|tentative/) print $i }')
	done`)
}

func sortRules(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.SortStableFunc(lines, func(a, b string) int {
		pa, pb := strings.SplitN(a, ":", 2), strings.SplitN(b, ":", 2)
		na, _ := strconv.Atoi(pa[0])
		nb, _ := strconv.Atoi(pb[0])
		return cmp.Or(cmp.Compare(na, nb), cmp.Compare(a, b))
	})
	return strings.Join(lines, "\n")
}

// sortBlocks sorts the sets and chains of a table as nft prints it.
func sortBlocks(text string) string {
	text = strings.TrimSuffix(strings.TrimSpace(text), "\n}")
	head, body, ok := strings.Cut(text, "\n")
	if !ok {
		return text
	}
	blocks := strings.Split(body, "\n\n")
	slices.Sort(blocks)
	return head + "\n" + strings.Join(blocks, "\n\n") + "\n}"
}

// golden compares text with a file under testdata.
func golden(t testing.TB, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("state differs from %s:\n%s\n-- got --\n%s", path, firstDifference(string(want), got), got)
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var a, b string
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if a != b {
			return fmt.Sprintf("line %d:\nwant %q\ngot  %q", i+1, a, b)
		}
	}
	return "no difference"
}

func mac(i int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(i)} }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			p = host(netip.MustParseAddr(s))
		}
		out = append(out, p)
	}
	return out
}

func primaryENI(pool ...string) ENI {
	return ENI{
		ID: "eni-0", MAC: mac(0), Primary: true, Address: netip.MustParseAddr("10.0.1.10"),
		SubnetCIDR: netip.MustParsePrefix("10.0.1.0/24"), Pool: prefixes(pool...),
	}
}

// secondaryENI is on the same subnet as the primary one if device is 1, else on a second range of the VPC.
func secondaryENI(device int, pool ...string) ENI {
	e := ENI{ID: fmt.Sprintf("eni-%d", device), MAC: mac(device), Device: device, Pool: prefixes(pool...)}
	if device == 1 {
		e.Address, e.SubnetCIDR = netip.MustParseAddr("10.0.1.30"), netip.MustParsePrefix("10.0.1.0/24")
	} else {
		e.Address = netip.AddrFrom4([4]byte{100, 64, byte(device), 10})
		e.SubnetCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, byte(device), 0}), 24)
	}
	return e
}

func config(enis ...ENI) Config {
	return Config{
		ENIs:        enis,
		VPCCIDRs:    prefixes("10.0.0.0/16", "100.64.0.0/16"),
		NodePort:    true,
		PrimaryMark: names.DefaultPrimaryMark,
		ENIMask:     names.DefaultENIMask,
		VethPrefix:  "eni",
		MTU:         9001,
	}
}

func with(cfg Config, change func(*Config)) Config {
	cfg.ENIs = slices.Clone(cfg.ENIs)
	change(&cfg)
	return cfg
}

// scenario is a Config with the golden file that its state is in.
type scenario struct {
	name string
	cfg  Config
}

func scenarios() []scenario {
	three := config(primaryENI("10.0.1.11", "10.0.1.12"), secondaryENI(1, "10.0.1.31", "10.0.1.32"),
		secondaryENI(2, "100.64.2.11", "100.64.2.13"))
	three6 := with(config(with6(primaryENI(), "2001:db8:10:1:a::/80"), with6(secondaryENI(1), "2001:db8:10:1:b::/80"),
		with6(secondaryENI(2), "2001:db8:10:2::11", "2001:db8:10:2::13")), func(c *Config) {
		c.IPv6, c.VPCCIDRs = true, nil
	})
	dual := with(config(with6(primaryENI("10.0.1.11"), "2001:db8:10:1:a::/80"),
		with6(secondaryENI(1, "10.0.1.128/28"), "2001:db8:10:1:b::/80", "2001:db8:10:1::77"), secondaryENI(2, "100.64.2.11")), func(c *Config) {
		c.IPv4, c.IPv6 = true, true
	})
	return []scenario{
		{"primary-only", config(primaryENI("10.0.1.11", "10.0.1.12"))},
		{"three-enis", three},
		{"prefixes", config(primaryENI("10.0.1.48/28"), secondaryENI(1, "10.0.1.128/28", "10.0.1.144/28"),
			secondaryENI(2, "100.64.2.64/28", "100.64.2.13"))},
		{"external-snat", with(three, func(c *Config) { c.ExternalSNAT = true })},
		{"external-snat-no-nodeport", with(three, func(c *Config) { c.ExternalSNAT, c.NodePort = true, false })},
		{"exclusions", with(three, func(c *Config) {
			c.ExcludeSNATCIDRs = prefixes("192.0.2.0/24", "10.0.0.0/8", "10.0.4.0/24", "240.0.0.0/4")
			c.ExternalServiceCIDRs = prefixes("198.51.100.0/24", "203.0.113.9")
			c.SNATRandom = SNATRandomHash
		})},
		{"no-nodeport", with(three, func(c *Config) { c.NodePort, c.SNATRandom = false, SNATRandomNone })},
		{"custom-marks", with(three, func(c *Config) { c.PrimaryMark, c.ENIMask = 0x10, 0x7f00000 })},
		{"several-vpc-cidrs", with(three, func(c *Config) {
			c.VPCCIDRs = prefixes("100.65.0.0/16", "10.0.0.0/16", "10.1.0.0/16", "100.64.0.0/16")
		})},
		{"second-card", config(primaryENI("10.0.1.11"), onCard(1, secondaryENI(2, "100.64.2.11")))},
		{"ipv6", three6},
		{"ipv6-no-nodeport", with(three6, func(c *Config) { c.NodePort = false })},
		{"ipv6-strict", with(three6, func(c *Config) {
			c.BranchPods = BranchStrict
			c.ENIs[2].Trunk = true
		})},
		{"dual-stack", dual},
		{"dual-stack-standard", with(dual, func(c *Config) { c.BranchPods = BranchStandard })},
		{"strict", with(three, func(c *Config) {
			c.BranchPods = BranchStrict
			c.ENIs[2].Trunk = true
		})},
	}
}

// with6 gives the ENI addresses of IPv6 too.
func with6(e ENI, pool ...string) ENI {
	e.SubnetCIDR6 = netip.MustParsePrefix("2001:db8:10:1::/64")
	if e.Device > 1 {
		e.SubnetCIDR6 = netip.MustParsePrefix(fmt.Sprintf("2001:db8:10:%d::/64", e.Device))
	}
	own := e.SubnetCIDR6.Addr().As16()
	own[15] = byte(0x10 + 0x20*e.Device)
	e.Address6 = netip.AddrFrom16(own)
	e.Pool = append(e.Pool, prefixes(pool...)...)
	return e
}

func onCard(card int, e ENI) ENI {
	e.Card = card
	return e
}

func TestGolden(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 4)
			n.applyTwice(s.cfg)
			golden(t, s.name, n.state()+n.linkState())
			if r, err := n.open().Apply(t.Context(), s.cfg); err != nil || r.Writes != 0 {
				t.Fatalf("after a restart: %d writes (%v), want none", r.Writes, err)
			}
		})
	}
}

func TestAbsentLinkBlocksNothingElse(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	cfg := config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.31"), secondaryENI(2, "100.64.2.11"))
	report := n.apply(cfg)
	if len(report.NotReady) != 1 || !errors.Is(report.NotReady["eni-2"], ErrNoLink) {
		t.Fatalf("NotReady = %v, want eni-2 without link", report.NotReady)
	}
	n.addLink(2)
	if report = n.apply(cfg); len(report.NotReady) != 0 || report.Writes == 0 {
		t.Fatalf("after the link came: %+v", report)
	}
	n.applyTwice(cfg)
}

// IPv6's settings are not this package's to write: it says which one is wrong.
func TestIPv6IsOffOnALink(t *testing.T) {
	t.Parallel()
	n := newNode(t, 3)
	n.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/eth1/disable_ipv6")
	cfg := config(with6(primaryENI("10.0.1.11")), with6(secondaryENI(1, "10.0.1.31"), "2001:db8:10:1:b::/80"), with6(secondaryENI(2, "100.64.2.11")))
	cfg.IPv4, cfg.IPv6 = true, true
	report := n.apply(cfg)
	if why := report.NotReady["eni-1"]; len(report.NotReady) != 1 || why == nil || !strings.Contains(why.Error(), "net.ipv6.conf.eth1.disable_ipv6") {
		t.Fatalf("NotReady = %v, want eni-1 because of the setting", report.NotReady)
	}
	n.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth1/disable_ipv6")
	if report := n.apply(cfg); len(report.NotReady) != 0 {
		t.Fatalf("NotReady = %v", report.NotReady)
	}
	n.applyTwice(cfg)
}

// onWrite is a log handler that calls a function at the first write.
type onWrite struct {
	slog.Handler
	once *sync.Once
	call func()
}

func (h onWrite) Enabled(context.Context, slog.Level) bool { return true }

func (h onWrite) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "host network write" {
		h.once.Do(h.call)
	}
	return nil
}

// An ENI that is detached in the middle of an Apply is not ready; the others are.
func TestOneENIsErrorBlocksNothingElse(t *testing.T) {
	t.Parallel()
	n := newNode(t, 3)
	log := slog.New(onWrite{slog.DiscardHandler, &sync.Once{}, func() { n.Run("ip", "link", "delete", "eth1") }})
	host, err := New(Options{NetNS: n.FD(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	cfg := config(primaryENI("10.0.1.11"), secondaryENI(1, "10.0.1.31"), secondaryENI(2, "100.64.2.11"))
	report, err := host.Apply(t.Context(), cfg)
	if err != nil || len(report.NotReady) != 1 || !errors.Is(report.NotReady["eni-1"], unix.ENODEV) {
		t.Fatalf("error %v, NotReady = %v, want only %v for eni-1", err, report.NotReady, unix.ENODEV)
	}
	if rules := n.Run("ip", "rule"); !strings.Contains(rules, "from 100.64.2.10 lookup 3") {
		t.Fatalf("eni-2 was left out:\n%s", rules)
	}
	want := config(primaryENI("10.0.1.11"), secondaryENI(2, "100.64.2.11"))
	report, err = n.host.Apply(t.Context(), want)
	if err != nil || len(report.NotReady) != 0 {
		t.Fatalf("error %v, NotReady = %v, want none", err, report.NotReady)
	}
	fresh := newNode(t, 3)
	fresh.apply(want)
	if got, want := n.state(), fresh.state(); got != want {
		t.Fatalf("what the lost ENI left behind:\n%s", firstDifference(want, got))
	}
}

// During an upgrade two daemons may be at it for a moment.
func TestSeveralDaemonsAtOnce(t *testing.T) {
	t.Parallel()
	s := scenarios()[1]
	n := newNode(t, 4)
	for range 5 {
		var daemons sync.WaitGroup
		errs := make(chan error, 4)
		for range cap(errs) {
			host := n.open()
			daemons.Go(func() {
				report, err := host.Apply(t.Context(), s.cfg)
				for eni, why := range report.NotReady {
					err = errors.Join(err, fmt.Errorf("%s is not ready: %w", eni, why))
				}
				errs <- err
			})
		}
		daemons.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
		if got, want := n.state(), ruleSet(t, s.name); got != want {
			t.Fatalf("%s", firstDifference(want, got))
		}
		if err := n.host.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestApplyEndsWithItsContext(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	report, err := n.host.Apply(ctx, config(primaryENI(), secondaryENI(1, "10.0.1.31")))
	if !errors.Is(err, context.Canceled) || len(report.NotReady) != 2 {
		t.Fatalf("error %v, NotReady = %v, want %v for both ENIs", err, report.NotReady, context.Canceled)
	}
}

func TestInterruptedDumpsAreRepeated(t *testing.T) {
	t.Parallel()
	calls := 0
	list, err := dump(func() ([]int, error) {
		if calls++; calls < maxDumpAttempts {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v after %d calls", list, err, calls)
	}
	calls = 0
	_, err = dump(func() ([]int, error) { calls++; return nil, netlink.ErrDumpInterrupted })
	if !errors.Is(err, netlink.ErrDumpInterrupted) || calls != maxDumpAttempts {
		t.Fatalf("%v after %d calls, want to give up after %d", err, calls, maxDumpAttempts)
	}
}
