package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/names"
	"vpccni/rpc"
)

// golden compares what a test saw with testdata/NAME.golden; UPDATE_GOLDEN=1 writes it anew.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := "testdata/" + name + ".golden"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s: want\n%s\ngot\n%s", file, want, got)
	}
}

// inside runs a shell command in the sandbox, its output without what differs from run to run.
func (n *node) inside(s sandbox, command string) string {
	n.Helper()
	var out string
	for line := range strings.Lines(n.host.Run("nsenter", "--net="+s.netns, "sh", "-c", command)) {
		out += strings.TrimRight(line, " \n") + "\n"
	}
	return out
}

// view is how a pod sees the network, with its addresses and its tables, as far as interfaces are ours.
const view = `ip -br -4 addr show scope global | sed 's/@[^ ]*//'; ip -br -6 addr show scope global | sed 's/@[^ ]*//'
for f in -4 -6; do ip $f rule; for t in main 1 2; do ip $f route show table $t 2>/dev/null | grep -v fe80::/64 | sed "s/^/$t: /"; done; done
ip neigh show nud permanent | cut -d' ' -f1-4,6 | sort`

var kinds = []struct {
	name    string
	conf    ipamdtest.Config
	further int // interfaces beside the first
	more    map[string]any
	addrs   []string
}{
	{
		name:  "dual-stack",
		conf:  ipamdtest.Config{First: netip.MustParseAddr("192.168.1.1"), First6: netip.MustParseAddr("2001:db8::1"), Tables: []int{2}},
		addrs: []string{"192.168.1.1", "2001:db8::1"},
	},
	{
		name:    "multi-nic",
		conf:    ipamdtest.Config{First: netip.MustParseAddr("192.168.1.1"), Tables: []int{254}, Cards: []int{10100, 10200}},
		further: 2, more: nicConfig, addrs: []string{"192.168.1.1", "192.168.1.2", "192.168.1.3"},
	},
	{
		name: "multi-nic-dual-stack",
		conf: ipamdtest.Config{
			First: netip.MustParseAddr("192.168.1.1"), First6: netip.MustParseAddr("2001:db8::1"), Tables: []int{254}, Cards: []int{10100},
		},
		further: 1, more: nicConfig, addrs: []string{"192.168.1.1", "192.168.1.2", "2001:db8::1", "2001:db8::2"},
	},
}

var nicConfig = map[string]any{"runtimeConfig": map[string]any{
	"io.kubernetes.cri.pod-annotations": map[string]string{"k8s.amazonaws.com/nicConfig": "multi-nic-attachment"},
}}

// TestPodsWithSeveralAddresses: both families on one interface, an interface on each network card, and the two together.
// The result has the host's end and the container's of each interface in turn, with IPv4 first; whatever takes the pod
// away takes all of it.
func TestPodsWithSeveralAddresses(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			n := newNode(t, kind.conf)
			bare := n.state()
			pod := func(id, name string) sandbox {
				s := n.sandbox(id, name)
				s.more = kind.more
				return s
			}
			s := pod("c1", "sample-pod")
			out := n.mustRun("ADD", s)
			golden(t, kind.name, strings.ReplaceAll(out, s.netns, "NETNS")+"\n"+n.inside(s, view))
			if got := n.ipamd.Adds()[0].GetRequiresMultiNICAttachment(); got != (kind.further > 0) {
				t.Errorf("ipamd was asked for an interface on each card: %t", got)
			}
			if again := n.mustRun("ADD", s); again != out {
				t.Errorf("the repeated ADD prints\n%s", again)
			}
			s.prevResult = out
			n.mustRun("CHECK", s)
			routes := n.routes()
			for _, addr := range kind.addrs {
				if got := strings.Count(routes, addr+" dev eni"); got != 2 {
					t.Errorf("%d routes to %s, want 2:\n%s", got, addr, routes)
				}
			}

			// CHECK looks at every address.
			for _, addr := range kind.addrs {
				family := map[bool]string{true: "-4", false: "-6"}[netip.MustParseAddr(addr).Is4()]
				route := strings.TrimSpace(n.host.Run("ip", family, "route", "show", addr, "table", "main"))
				n.host.Run("sh", "-c", "for t in main 5120; do ip "+family+" route del "+addr+" table $t; done")
				if _, message := n.mustFail("CHECK", s); !strings.Contains(message, addr) && !strings.Contains(message, "network is unreachable") {
					t.Errorf("without a route to %s: %s", addr, message)
				}
				n.host.Run("sh", "-c", "for t in main 5120; do ip "+family+" route add "+route+" table $t; done")
			}
			n.mustRun("CHECK", s)

			// DEL with ipamd's word, and with the result of ADD alone. The veths go with the namespace.
			veths := func(name string) {
				for i := range kind.further + 1 {
					n.host.Run("ip", "link", "del", names.HostVeth("eni", "default", name, i))
				}
			}
			for range 2 {
				n.mustRun("DEL", s)
			}
			for _, addr := range kind.addrs {
				if strings.Contains(n.routes(), addr+" ") {
					t.Errorf("DEL leaves a route to %s", addr)
				}
			}
			veths("sample-pod")
			second := pod("c2", "second")
			second.prevResult = n.mustRun("ADD", second)
			n.ipamd.Configure(func(c *ipamdtest.Config) { c.DelError = "another version's" })
			n.mustRun("DEL", second)
			if got := n.routes(); strings.Contains(got, "eni") {
				t.Errorf("DEL without ipamd leaves\n%s", got)
			}
			veths("second")
			if after := n.state(); after != bare {
				t.Errorf("left behind:\n%s\nwant\n%s", after, bare)
			}
		})
	}
}

// TestSeveralAddressesAreRolledBack: what fails last takes everything before it back.
func TestSeveralAddressesAreRolledBack(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			n := newNode(t, kind.conf)
			bare := n.state()
			s := n.sandbox("c1", "sample-pod")
			s.more = kind.more
			for what, breakIt := range map[string]func(*rpc.IPAllocationMetadata){
				"no address": func(m *rpc.IPAllocationMetadata) { m.IPv4Addr = "224.0.0.1" },
				"no IPv6":    func(m *rpc.IPAllocationMetadata) { m.IPv6Addr = "ff02::1" },
				"IPv4 twice": func(m *rpc.IPAllocationMetadata) { m.IPv6Addr = "192.168.1.77" },
			} {
				n.ipamd.Configure(func(c *ipamdtest.Config) {
					c.Edit = func(r *rpc.AddNetworkReply) { breakIt(r.IPAllocationMetadata[len(r.IPAllocationMetadata)-1]) }
				})
				if _, message := n.mustFail("ADD", s); !strings.Contains(message, "address") {
					t.Errorf("%s: %s", what, message)
				}
			}
			n.ipamd.Configure(func(c *ipamdtest.Config) { c.Edit = nil })
			// The last interface's name is taken inside the pod.
			last := "eth0"
			if kind.further > 0 {
				last = fmt.Sprintf("mNicIf%d", kind.further)
			}
			n.inside(s, "ip link add "+last+" type veth peer name other")
			if _, message := n.mustFail("ADD", s); !strings.Contains(message, last) {
				t.Error(message)
			}
			if after := n.state(); after != bare || n.ipamd.Held() != 0 {
				t.Errorf("left behind: %d addresses and\n%s\nwant\n%s", n.ipamd.Held(), after, bare)
			}
		})
	}
}

func TestGCOfPodsWithSeveralAddresses(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			n := newNode(t, kind.conf)
			for i, pod := range []string{"alive", "gone"} {
				s := n.sandbox(fmt.Sprintf("c%d", i), pod)
				s.more = kind.more
				n.mustRun("ADD", s)
			}
			n.checkpoint(entry("aws-cni", "c0", "alive", time.Hour), entry("aws-cni", "c1", "gone", time.Hour))
			n.mustRun("GC", gc(n, `,"cni.dev/valid-attachments":[{"containerID":"c0","ifname":"eth0"}]`))
			if got, want := n.pods(), kind.further+1; got != want || n.ipamd.Held() != 1 {
				t.Errorf("%d veths and %d pods' addresses are left, want %d and 1", got, n.ipamd.Held(), want)
			}
			if got, want := strings.Count(n.routes(), "dev eni"), 2*len(kind.addrs); got != want {
				t.Errorf("%d routes, want %d:\n%s", got, want, n.routes())
			}
		})
	}
}

// TestPodMTU: the configured MTU is that of both ends of every interface; what is none, or too little for IPv6, is not.
func TestPodMTU(t *testing.T) {
	for _, tt := range []struct {
		mtu, first, first6 string
		want               int
	}{
		{mtu: "1400", first: "10.0.0.1", want: 1400},
		{mtu: "576", first: "10.0.0.1", want: 576},
		{mtu: "575", first: "10.0.0.1", want: 9001},
		{mtu: "9100", first: "10.0.0.1", want: 9001},
		{mtu: "jumbo", first: "10.0.0.1", want: 9001},
		{mtu: "1000", first: "2001:db8::1", want: 1280},
		{mtu: "1000", first: "10.0.0.1", first6: "2001:db8::1", want: 1280},
	} {
		t.Run(tt.mtu+" "+tt.first+tt.first6, func(t *testing.T) {
			conf := ipamdtest.Config{First: netip.MustParseAddr(tt.first), Cards: []int{10100}}
			if tt.first6 != "" {
				conf.First6 = netip.MustParseAddr(tt.first6)
			}
			n := newNode(t, conf)
			s := n.sandbox("c1", "sample-pod")
			s.more = map[string]any{"mtu": tt.mtu, "runtimeConfig": nicConfig["runtimeConfig"]}
			n.mustRun("ADD", s)
			want := fmt.Sprintf(" mtu %d ", tt.want)
			links := n.host.Run("ip", "-o", "link") + n.inside(s, "ip -o link")
			for _, name := range []string{"eth0@if", "mNicIf1@if", names.HostVeth("eni", "default", "sample-pod", 0), names.HostVeth("eni", "default", "sample-pod", 1)} {
				found := false
				for line := range strings.Lines(links) {
					found = found || strings.Contains(line, name) && strings.Contains(line, want) && !strings.Contains(line, "eth0@eth")
				}
				if !found {
					t.Errorf("%s has not%s:\n%s", name, want, links)
				}
			}
		})
	}
}

// TestVethPrefixChange: pods that were added under another prefix are checked, deleted and collected as before, and a pod
// that is added again under the new one does not keep the old one's veth.
func TestVethPrefixChange(t *testing.T) {
	n := newNode(t, ipamdtest.Config{First: netip.MustParseAddr("10.0.0.1")})
	prefixed := func(s sandbox, prefix string) sandbox {
		s.more = map[string]any{"vethPrefix": prefix}
		return s
	}
	var list []sandbox
	for i := range 4 {
		s := prefixed(n.sandbox(fmt.Sprintf("c%d", i), fmt.Sprintf("web-%d", i)), "veth")
		s.prevResult = n.mustRun("ADD", s)
		list = append(list, prefixed(s, "eni"))
	}
	for _, s := range list {
		n.mustRun("CHECK", s)
	}
	routes := func(i int) int { return strings.Count(n.routes(), fmt.Sprintf("10.0.0.%d dev veth", i+1)) }

	n.mustRun("DEL", list[0])
	if routes(0) != 0 {
		t.Errorf("DEL leaves\n%s", n.routes())
	}
	n.ipamd.Configure(func(c *ipamdtest.Config) { c.DelError = "another version's" })
	n.mustRun("DEL", list[1])
	if routes(1) != 0 {
		t.Errorf("DEL without ipamd leaves\n%s", n.routes())
	}
	n.ipamd.Configure(func(c *ipamdtest.Config) { c.DelError = "" })

	// The runtime repeats ADD, for the same sandbox, with the new prefix.
	fresh := list[2]
	fresh.prevResult = ""
	n.inside(fresh, "ip link del eth0")
	fresh.prevResult = n.mustRun("ADD", fresh)
	n.mustRun("CHECK", fresh)
	if got := n.host.Run("ip", "route", "show", "table", "all"); strings.Count(got, "10.0.0.3 dev eni") != 2 || strings.Contains(got, "10.0.0.3 dev veth") {
		t.Errorf("routes after the second ADD:\n%s", got)
	}

	// GC takes the address of one that is gone back; of veths it knows those of the prefix of today only, and whatever a
	// namespace's end leaves of the others goes with it.
	n.checkpoint(entry("aws-cni", "c2", "web-2", time.Hour), entry("aws-cni", "c3", "web-3", time.Hour))
	n.mustRun("GC", gc(n, `,"vethPrefix":"eni","cni.dev/valid-attachments":[{"containerID":"c2","ifname":"eth0"}]`))
	if got := n.host.Run("ip", "route", "show", "table", "all"); strings.Contains(got, "10.0.0.4 ") || !strings.Contains(got, "10.0.0.3 ") {
		t.Errorf("GC leaves\n%s", got)
	}
	n.mustRun("CHECK", fresh)

	// Pods of both prefixes are held to their addresses by the group of their links, not by their names.
	links := n.host.Run("ip", "-o", "link", "show", "group", fmt.Sprint(names.GroupSourceCheck))
	for _, name := range []string{names.HostVeth("veth", "default", "web-0", 0), names.HostVeth("eni", "default", "web-2", 0)} {
		if !strings.Contains(links, " "+name+"@") {
			t.Errorf("%s is not in the group of checked links:\n%s", name, links)
		}
	}
}

// TestSourceCheckSetting: which pods are in the group of links that are held to their addresses.
func TestSourceCheckSetting(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	for i, tt := range []struct {
		setting, annotation any
		want                bool
	}{
		{nil, "off", true}, {"", "off", true}, {"strict", "off", true}, {"pod", nil, true}, {"pod", "on", true}, {"pod", "off", false}, {"off", nil, false},
	} {
		s := n.sandbox(fmt.Sprintf("c%d", i), fmt.Sprintf("web-%d", i))
		s.more = map[string]any{}
		if tt.setting != nil {
			s.more["podSourceCheck"] = tt.setting
		}
		if tt.annotation != nil {
			s.more["runtimeConfig"] = map[string]any{"io.kubernetes.cri.pod-annotations": map[string]any{"vpc.amazonaws.com/source-check": tt.annotation}}
		}
		n.mustRun("ADD", s)
		links := n.host.Run("ip", "-o", "link", "show", "group", fmt.Sprint(names.GroupSourceCheck))
		veth := names.HostVeth("eni", "default", s.pod, 0)
		filter := strings.TrimSpace(n.host.Run("cat", "/proc/sys/net/ipv4/conf/"+veth+"/rp_filter"))
		if got := strings.Contains(links, " "+veth+"@"); got != tt.want || (filter == "1") != tt.want {
			t.Errorf("podSourceCheck %v, annotation %v: in the group %t, rp_filter %s; want %t", tt.setting, tt.annotation, got, filter, tt.want)
		}
	}
	s := n.sandbox("c99", "web-99")
	s.more = map[string]any{"podSourceCheck": "sometimes"}
	if code, message := n.mustFail("ADD", s); code != 7 || !strings.Contains(message, "podSourceCheck") {
		t.Errorf("got %d %s", code, message)
	}
}
