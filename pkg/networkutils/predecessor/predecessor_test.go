package predecessor

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
	"vpccni/test/upstream"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const (
	pod1 = "10.0.1.11" // on the primary ENI
	pod2 = "10.0.1.31" // on the other
	gone = "10.0.1.32" // a pod's rules, and no pod
)

// host is a node with two ENIs and two pods.
type host struct {
	*nstest.NS
	t    *testing.T
	opts Options

	layout hostnet.RuleLayout
}

func newHost(t *testing.T) *host {
	h := &host{NS: nstest.New(t), t: t}
	h.opts = Options{NetNS: h.FD(), Lock: filepath.Join(t.TempDir(), "lock")}
	h.sh(`
ip link add eth0 address 02:00:00:00:00:00 type veth peer peer0; ip link set peer0 up
ip link add eth1 address 02:00:00:00:00:01 type veth peer peer1; ip link set peer1 up
ip address add 10.0.1.10/24 dev eth0; ip link set eth0 up; ip route add default via 10.0.1.1
ip link add eniaaaaaaaaaaa type veth peer pod1; ip link set eniaaaaaaaaaaa up; ip link set pod1 up
ip link add enibbbbbbbbbbb type veth peer pod2; ip link set enibbbbbbbbbbb up; ip link set pod2 up`)
	return h
}

func (h *host) sh(script string) string {
	h.t.Helper()
	return h.Run("sh", "-e", "-c", "export XTABLES_LOCKFILE="+h.opts.Lock+"\n"+script)
}

func (h *host) node() upstream.Node {
	return upstream.Node{
		PrimaryLink: "eth0", PrimaryIP: netip.MustParseAddr("10.0.1.10"),
		VPC:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("100.64.0.0/16")},
		ENIs: []upstream.ENI{{Link: "eth1", IP: netip.MustParseAddr("10.0.1.30"), Subnet: netip.MustParsePrefix("10.0.1.0/24"), Table: 2}},
		Pods: []upstream.Pod{
			{IP: netip.MustParseAddr(pod1), Veth: "eniaaaaaaaaaaa", Table: 254},
			{IP: netip.MustParseAddr(pod2), Veth: "enibbbbbbbbbbb", Table: 2},
		},
	}
}

// apply lays our own state down.
func (h *host) apply() {
	h.t.Helper()
	host, err := hostnet.New(hostnet.Options{NetNS: h.FD(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		h.t.Fatal(err)
	}
	defer host.Close()
	single := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s+"/32"))
		}
		return out
	}
	subnet := netip.MustParsePrefix("10.0.1.0/24")
	report, err := host.Apply(h.t.Context(), hostnet.Config{
		VPCCIDRs: h.node().VPC, NodePort: true, PrimaryMark: names.DefaultPrimaryMark, ENIMask: names.DefaultENIMask, VethPrefix: "eni", MTU: 9001, RuleLayout: h.layout,
		ENIs: []hostnet.ENI{
			{ID: "eni-0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0}, Primary: true, Address: netip.MustParseAddr("10.0.1.10"), SubnetCIDR: subnet, Pool: single(pod1, "10.0.1.12")},
			{ID: "eni-1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Device: 1, Address: netip.MustParseAddr("10.0.1.30"), SubnetCIDR: subnet, Pool: single(pod2, gone)},
		},
	})
	if err != nil || len(report.NotReady) > 0 {
		h.t.Fatal(err, report.NotReady)
	}
}

func ours(a netip.Addr) bool {
	return slices.Contains([]string{pod1, "10.0.1.12", pod2, gone}, a.String())
}

func (h *host) adopt() Report {
	h.t.Helper()
	r, err := Adopt(h.t.Context(), h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *host) sweep() Report {
	h.t.Helper()
	r, err := Sweep(h.t.Context(), h.opts, ours)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// state is what the tools print, without counts, and without the built-in chains that iptables makes when it is asked.
func (h *host) state() string {
	h.t.Helper()
	text := h.sh(`ip rule; for t in main 2 5120 5121; do ip route show table $t 2>/dev/null || true; done; nft list table ip vpc-cni 2>/dev/null || true; nft list table ip aws-cni 2>/dev/null || true
		iptables-nft-save; iptables-legacy-save`)
	text = regexp.MustCompile(`(?m)^(#|:[A-Z]+ ACCEPT).*\n`).ReplaceAllString(text, "")
	text = regexp.MustCompile(`(?m)^(\*\w+\n)?COMMIT\n`).ReplaceAllString(text, "")
	// Rules of one priority have the order of their creation; those that say what ours say stay as they were written.
	text = regexp.MustCompile(`(?m)(from 10.0.1.30 lookup 2|fwmark 0x80/0x80 lookup main) proto 89`).ReplaceAllString(text, "$1")
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// A node that any version left is, after the three steps, like one that never had another CNI.
func TestTakeOver(t *testing.T) {
	for _, v := range upstream.Versions {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.sh(v.Script(h.node()) + v.PodScript(upstream.Pod{IP: netip.MustParseAddr(gone), Veth: "eniaaaaaaaaaaa", Table: 2}) +
				"ip route del " + gone)
			// What is somebody else's, and looks alike.
			foreign := `
ip rule add to 192.0.2.7 lookup main priority 511
ip rule add to 10.0.1.11 lookup main priority 512 proto 99
ip rule add from 10.0.9.9 lookup 150 priority 1536
ip rule add from 10.0.1.0/24 lookup 2 priority 1536
iptables-nft -t nat -A POSTROUTING -m comment --comment "AWS, but not that AWS" -s 192.0.2.0/24 -j MASQUERADE
iptables-legacy -t nat -A POSTROUTING -m comment --comment "AWS, but not that AWS" -s 192.0.2.0/24 -j MASQUERADE
iptables-legacy -t filter -A FORWARD -d 169.254.172.0/22 -m conntrack --ctstate NEW -m comment --comment "Block Node Local Pod access via IPv4" -j REJECT
`
			h.sh(foreign)
			if r := h.adopt(); r.Pods != 2 {
				t.Errorf("adopted: %+v", r)
			}
			if again := h.adopt(); again.Any() {
				t.Errorf("adopted again: %+v", again)
			}
			h.apply()
			r := h.sweep()
			if r.Rules != 5 || r.NFT+r.Legacy < 6 || (v == upstream.V122) != (r.NFT == 0) {
				t.Errorf("swept: %+v", r)
			}
			if again := h.sweep(); again.Any() {
				t.Errorf("swept again: %+v", again)
			}
			fresh := newHost(t)
			fresh.sh(foreign + `
ip route add 10.0.1.11 dev eniaaaaaaaaaaa scope link; ip route add 10.0.1.31 dev enibbbbbbbbbbb scope link
ip route add 10.0.1.11 dev eniaaaaaaaaaaa scope link proto 89 table 5120; ip route add 10.0.1.31 dev enibbbbbbbbbbb scope link proto 89 table 5120`)
			fresh.apply()
			if got, want := h.state(), fresh.state(); got != want {
				t.Errorf("differs (- left, + wanted):\n%s", difference(got, want))
			}
		})
	}
}

// difference lists the lines that only one of two texts has.
func difference(got, want string) string {
	var b strings.Builder
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for _, line := range g {
		if !slices.Contains(w, line) {
			fmt.Fprintf(&b, "- %s\n", line)
		}
	}
	for _, line := range w {
		if !slices.Contains(g, line) {
			fmt.Fprintf(&b, "+ %s\n", line)
		}
	}
	return b.String()
}

// With rules per pod those of the pods that live stay, and only those.
func TestTakeOverWithRulesPerPod(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opts.PerPod = true
	h.sh(upstream.V122.Script(h.node()) + upstream.V122.PodScript(upstream.Pod{IP: netip.MustParseAddr(gone), Veth: "eniaaaaaaaaaaa", Table: 2}) +
		"ip route del " + gone)
	before := h.sh("ip rule | grep -E '^(512|1536):' | grep -v " + gone)
	h.adopt()
	h.layout = hostnet.LayoutPerPod
	h.apply()
	h.sweep()
	if got := h.sh("ip rule | grep -E '^(512|1536):'"); got != before {
		t.Errorf("rules of pods were\n%sand are\n%s", before, got)
	}
	if left := h.sh("iptables-legacy-save | grep AWS || true"); left != "" {
		t.Errorf("left of the predecessor:\n%s", left)
	}
}

// A pod whose address is on none of the ENIs any more keeps the rule by which its packets leave, while it lives.
func TestPodOfALostENI(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sh(upstream.V123.Script(h.node()))
	h.adopt()
	h.apply()
	if _, err := Sweep(t.Context(), h.opts, func(a netip.Addr) bool { return a.String() == pod1 }); err != nil {
		t.Fatal(err)
	}
	if rules := h.sh("ip rule"); !strings.Contains(rules, "from "+pod2+" lookup 2") || strings.Contains(rules, "to "+pod2) {
		t.Errorf("%s", rules)
	}
	h.sh("ip link del enibbbbbbbbbbb")
	if _, err := Sweep(t.Context(), h.opts, func(netip.Addr) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if rules := h.sh("ip rule"); strings.Contains(rules, pod2) {
		t.Errorf("%s", rules)
	}
}

// A node without a predecessor is not written to.
func TestNothingToDo(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.apply()
	before := h.sh("ip rule; ip -4 route show table all; nft list ruleset; cat /proc/self/net/ip_tables_names")
	if r := h.adopt(); r.Any() {
		t.Errorf("%+v", r)
	}
	if r := h.sweep(); r.Any() {
		t.Errorf("%+v", r)
	}
	if after := h.sh("ip rule; ip -4 route show table all; nft list ruleset; cat /proc/self/net/ip_tables_names"); after != before {
		t.Errorf("%s", after)
	}
}

func TestEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sh(upstream.V122.Script(h.node()))
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if _, err := Adopt(ctx, h.opts); err == nil {
		t.Error("adopted")
	}
	if r, err := Sweep(ctx, h.opts, ours); err == nil || r.Rules > 0 {
		t.Errorf("%+v, %v", r, fmt.Sprint(err))
	}
}

// What is handed back is what the predecessor would have written, and it goes on from there.
func TestHandBack(t *testing.T) {
	for _, v := range upstream.Versions {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.sh(`ip route add 10.0.1.11 dev eniaaaaaaaaaaa scope link; ip route add 10.0.1.31 dev enibbbbbbbbbbb scope link
				ip route add 10.0.1.11 dev eniaaaaaaaaaaa scope link proto 89 table 5120; ip route add 10.0.1.31 dev enibbbbbbbbbbb scope link proto 89 table 5120`)
			h.apply()
			if there, err := Present(t.Context(), h.opts); there || err != nil {
				t.Fatal(there, err)
			}
			if done := h.handBack(true); done.Pods != 2 || !done.Marks {
				t.Errorf("%+v", done)
			}
			h.sh(v.HostScript(h.node()) + v.ENIScript(h.node().ENIs...))
			if there, err := Present(t.Context(), h.opts); !there || err != nil {
				t.Fatal(there, err)
			}
			if done := h.handBack(false); done.Marks {
				t.Errorf("%+v", done)
			}
			fresh := newHost(t)
			fresh.sh(v.Script(fresh.node()))
			got, want := strings.ReplaceAll(h.state(), " proto 89", ""), fresh.state()
			if got != want {
				t.Errorf("differs (- handed back, + the predecessor's own):\n%s", difference(got, want))
			}
		})
	}
}

func (h *host) handBack(marks bool) hostnet.HandedBack {
	h.t.Helper()
	host, err := hostnet.New(hostnet.Options{NetNS: h.FD(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		h.t.Fatal(err)
	}
	defer host.Close()
	done, err := host.HandBack(h.t.Context(), marks)
	if err != nil {
		h.t.Fatal(err)
	}
	return done
}
