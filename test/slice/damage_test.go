package slice

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/pkg/networkutils/names"
)

// What other programs keep on the node. The table also keeps connection tracking at work, as kube-proxy's do.
const (
	foreignRules = `
		ip rule add priority 700 from 198.51.100.0/24 lookup 77 protocol 99
		ip rule add priority 1537 fwmark 0x4000/0x4000 lookup 77 protocol 99
`
	foreignTable = `nft -f - <<'END'
table ip foreign {
	set addresses { type ipv4_addr; elements = { 198.51.100.7, 198.51.100.9 } }
	chain forward { type filter hook forward priority 0; ct state new accept; }
	chain nat { type nat hook postrouting priority 50; ip saddr @addresses masquerade; }
}
END
`
	foreignRoutes = `
		ip route add 198.51.100.0/24 dev eth0 table 77 proto static
		ip route add 198.51.100.128/25 dev eth0 proto static
`
)

// readForeign prints it.
const readForeign = `ip -details rule | grep -E '^(700:|1537:.*0x4000)'; ip -details route show table 77; ip -details route show proto static; nft list table ip foreign`

// mainRules are those that the kernel makes at boot, and ip rule flush deletes.
const mainRules = "ip rule add priority 32766 lookup main protocol kernel; ip rule add priority 32767 lookup default protocol kernel\n"

// victim is who is hurt: a secondary ENI with its own address, and a pod of it.
type victim struct {
	eni, address, prefix, table string
	pod                         cluster.Pod
	veth                        string
}

// damage is something that another program does to the node's network.
type damage struct {
	kind   string
	script func(victim) string
}

func damages() []damage {
	plain := func(script string) func(victim) string {
		return func(v victim) string {
			return strings.NewReplacer("ETH", v.eni, "OWN", v.prefix, "SRC", v.address, "TABLE", v.table, "POD", v.pod.Address.String(), "VETH", v.veth).Replace(script)
		}
	}
	return []damage{
		{"nft flush ruleset", plain("nft flush ruleset\n" + foreignTable)},
		{"nft delete table", plain("nft delete table ip vpc-cni")},
		{"nft flush chain", plain("nft flush chain ip vpc-cni postrouting")},
		{"nft flush map", plain("nft flush map ip vpc-cni eni_src")},
		{"nft rule inserted", plain("nft insert rule ip vpc-cni pod_out drop")},
		{"ip rule flush", plain("ip rule flush\n" + mainRules + foreignRules)},
		{"ip rule del", plain("ip rule del priority 512; ip rule del priority 1024")},
		{"flush of an ENI's table", plain("ip route flush table TABLE")},
		{"flush of unassigned", plain("ip route flush table 5121")},
		{"flush of pods' routes", plain("ip route flush table 5120")},
		{"pod's route in main", plain("ip route del POD dev VETH")},
		{"pod's route replaced", plain("ip route replace blackhole POD table 5120")},
		{"address flush", plain("ip address flush dev ETH")},
		{"rp_filter=1", plain("for l in eth0 ETH; do echo 1 > /proc/sys/net/ipv4/conf/$l/rp_filter; done")},
		{"ENI's MTU", plain("ip link set ETH mtu 1400")},
		{"ENI's MAC", plain("ip link set ETH address 02:00:00:00:77:77")},
		{"ENI down", plain("ip link set ETH down")},
		{"pod's link down", plain("ip link set VETH down")},
		{"pod's link MAC", plain("ip link set VETH address 02:00:00:00:77:78")},
		{"systemd-networkd", plain(`ip -4 route flush table all proto 89
			for p in 512 513 1024 32765; do while ip rule del priority $p protocol 89; do :; done; done 2>/dev/null
			while ip rule del priority 1537 protocol 89; do :; done 2>/dev/null
			ip address flush dev ETH; ip address add OWN brd + dev ETH
			for l in eth0 ETH; do echo 1 > /proc/sys/net/ipv4/conf/$l/rp_filter; done`)},
		{"NetworkManager", plain(`ip link set ETH down; ip address flush dev ETH; ip link set ETH up
			ip address add OWN brd + dev ETH; ip rule add priority 30400 from SRC lookup 30400; ip rule del priority 30400`)},
	}
}

// patch is a node that damage is done to.
type patch struct {
	t *testing.T
	l *cluster.Cluster
	n *cluster.Node
}

func (p patch) sh(script string) string {
	p.t.Helper()
	out, err := p.n.OS().Command(p.t.Context(), "sh", "-c", "set -e\n"+script).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

var (
	linkLine  = regexp.MustCompile(`(?m)^\d+: ([^:@]+)[^<]*<([^>]*)> mtu (\d+).*link/ether (\S+)`)
	ownPrefix = regexp.MustCompile(`inet (\S+)`)
	// Who adds an ENI's address makes a route of it, or not; that route is looked at by itself.
	unsteady = strings.NewReplacer(" linkdown", "", " dead", "", " noprefixroute", "")
)

// state is all of the node's IPv4 network but for counters, in an order of its own: nft and ip list what was made again
// behind what was not.
func (p patch) state() string {
	p.t.Helper()
	text := p.sh(`ip rule; ip -4 route show table all; ip -oneline -4 address; nft list ruleset 2>&1; grep . /proc/sys/net/ipv4/conf/e*/rp_filter
		echo @; ip -oneline link`)
	rest, links, _ := strings.Cut(text, "@\n")
	var lines []string
	for _, line := range strings.Split(unsteady.Replace(rest), "\n") {
		if !strings.Contains(line, "forever") || strings.Contains(line, " eth") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	for _, m := range linkLine.FindAllStringSubmatch(links, -1) {
		up := slices.Contains(strings.Split(m[2], ","), "UP")
		lines = append(lines, fmt.Sprintf("link %s up=%v mtu=%s mac=%s", m[1], up, m[3], m[4]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// atRest returns the state once it does not change any more.
func (p patch) atRest() string {
	p.t.Helper()
	last := p.state()
	same := 0
	eventually(p.t, time.Minute, "the state is at rest", func() bool {
		now := p.state()
		if now == last {
			same++
		} else {
			last, same = now, 0
		}
		return same >= 25
	})
	return last
}

// comesBack waits for a state.
func (p patch) comesBack(kind, want string) {
	p.t.Helper()
	got := ""
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for got != want {
		if time.Now().After(deadline) {
			p.t.Fatalf("%s is not repaired:\n%s\nipamd:\n%s", kind, difference(want, got), tail(p.n.IPAMDLog(), 10))
		}
		<-tick.C
		got = p.state()
	}
}

// difference lists the lines that are in one text only.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	var b strings.Builder
	for _, line := range w {
		if !slices.Contains(g, line) {
			fmt.Fprintln(&b, "-", line)
		}
	}
	for _, line := range g {
		if !slices.Contains(w, line) {
			fmt.Fprintln(&b, "+", line)
		}
	}
	return b.String()
}

// victims are the secondary ENIs that have a pod.
func (p patch) victims() []victim {
	p.t.Helper()
	var list []victim
	for _, e := range attachedENIs(p.l, p.n) {
		if e.Attachment == nil || e.Attachment.Device == 0 {
			continue
		}
		for _, pod := range p.l.Pods(p.n.Name) {
			if !slices.Contains(e.Secondary, pod.Address) {
				continue
			}
			prefix := ownPrefix.FindStringSubmatch(p.sh(fmt.Sprintf("ip -4 address show dev eth%d", e.Attachment.Device)))
			if prefix == nil {
				p.t.Fatalf("eth%d has no address", e.Attachment.Device)
			}
			list = append(list, victim{
				prefix: prefix[1], eni: fmt.Sprintf("eth%d", e.Attachment.Device), address: e.Primary.String(),
				table: fmt.Sprint(names.RouteTable(0, e.Attachment.Device)), pod: pod,
				veth: names.HostVeth("eni", pod.Namespace, pod.Name, 0),
			})
			break
		}
	}
	if len(list) == 0 {
		p.t.Fatal("no pod is on a secondary ENI")
	}
	return list
}

// internet serves connections on the internet's host, and returns where.
func (p patch) internet() netip.AddrPort {
	p.t.Helper()
	at := netip.AddrPortFrom(fabric.InternetAddr, 7779)
	l, err := p.l.ListenOn(p.t.Context(), fabric.HostInternet, "tcp4", at.String())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("x"))
			_ = c.Close()
		}
	}()
	return at
}

// connect opens a connection from a pod and waits for the server's word.
func (p patch) connect(pod cluster.Pod, to netip.AddrPort, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	var conn net.Conn
	err := p.l.PodDo(pod.Node, pod.Namespace, pod.Name, func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", to.String())
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}
