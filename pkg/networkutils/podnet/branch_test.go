package podnet

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"

	"golang.org/x/sys/unix"
)

func branchPod(netns *nstest.NS, container, address, gateway string, mode BranchMode) Pod {
	pod := podOf(netns, container, "sgp-0", address)
	prefix := "eni"
	if mode == BranchStrict {
		prefix = names.StrictVethPrefix
	}
	pod.Interfaces[0].HostVeth = names.HostVeth(prefix, "default", "sgp-0", 0)
	pod.Interfaces[0].SourceCheck = true
	pod.Interfaces[0].Branch = &Branch{
		VLAN: 7, MAC: net.HardwareAddr{2, 0, 0, 0, 7, 7}, Gateway: netip.MustParseAddr(gateway), Parent: 2, Mode: mode,
	}
	return pod
}

// What is sent to the kernel, byte by byte: the machine that runs this need not have VLANs. make vm has the kernel's
// opinion.
func TestBranchMessages(t *testing.T) {
	t.Parallel()
	if unix.AF_INET6 != 10 || order.Uint16([]byte{1, 0}) != 1 {
		t.Fatal("the golden files are of a little-endian machine")
	}
	for _, tt := range []struct {
		golden, address, gateway string
		mode                     BranchMode
	}{
		{"branch-strict4", "10.0.7.11/32", "10.0.7.1", BranchStrict},
		{"branch-strict6", "2001:db8::11/128", "fe80:ec2::1", BranchStrict},
		{"branch-standard4", "10.0.7.11/32", "10.0.7.1", BranchStandard},
		{"branch-standard6", "2001:db8::11/128", "fe80:ec2::1", BranchStandard},
	} {
		t.Run(tt.golden, func(t *testing.T) {
			t.Parallel()
			pod := branchPod(nstest.New(t), "c1", tt.address, tt.gateway, tt.mode)
			iface := pod.Interfaces[0]
			owner := Owner{ContainerID: "c1", IfName: "eth0", HostVeth: iface.HostVeth, Address: iface.Address.Addr(), Since: time.Unix(1700000000, 0)}
			var b strings.Builder
			for _, part := range []struct {
				name     string
				messages []message
			}{
				{"link", []message{newVLAN(iface.Branch), setAlias(names.VLANLink(7), owner.String())}},
				{"stale", staleBranchRules(iface)},
				{"state", branchState(iface, 11, 12)},
				{"undo", undoBranchRules(iface)},
			} {
				fmt.Fprintf(&b, "# %s\n", part.name)
				for _, m := range part.messages {
					fmt.Fprintf(&b, "%s\n\t%d %#x %s\n", m.what, m.typ, m.flags, hex.EncodeToString(m.data))
				}
			}
			golden(t, tt.golden, b.String())
		})
	}
}

// Setup on whatever kernel this is: one without VLANs says so, and nothing is left of the pod.
func TestBranchOnThisKernel(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		breakIt func(*Pod)
		want    string // of a kernel with VLANs; "" is success
	}{
		"strict":           {func(*Pod) {}, ""},
		"standard":         {func(p *Pod) { p.Interfaces[0].Branch.Mode = BranchStandard }, ""},
		"no trunk":         {func(p *Pod) { p.Interfaces[0].Branch.Parent = 4711 }, "no such device"},
		"multicast MAC":    {func(p *Pod) { p.Interfaces[0].Branch.MAC[0] = 1 }, "cannot assign requested address"},
		"unknown gateway":  {func(p *Pod) { p.Interfaces[0].Branch.Gateway = netip.Addr{} }, "no gateway"},
		"gateway is IPv6":  {func(p *Pod) { p.Interfaces[0].Branch.Gateway = netip.MustParseAddr("fe80:ec2::1") }, "no gateway"},
		"gateway is no ip": {func(p *Pod) { p.Interfaces[0].Branch.Gateway = netip.IPv4Unspecified() }, "no gateway"},
		"VLAN 0":           {func(p *Pod) { p.Interfaces[0].Branch.VLAN = 0 }, "no number of a VLAN"},
		"VLAN 4095":        {func(p *Pod) { p.Interfaces[0].Branch.VLAN = 4095 }, "no number of a VLAN"},
		"no MAC":           {func(p *Pod) { p.Interfaces[0].Branch.MAC = nil }, "no Ethernet address"},
		"unknown mode":     {func(p *Pod) { p.Interfaces[0].Branch.Mode = 0 }, "unknown enforcing mode"},
		"two interfaces":   {func(p *Pod) { p.Interfaces = append(p.Interfaces, p.Interfaces[0]) }, "one interface"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, netns := nstest.New(t), nstest.New(t)
			host.Run("sh", "-e", "-c", "ip link add eth1 type veth peer name eth1p; ip link set eth1 up; ip link set eth1p up")
			vlans := hasVLANs(t)
			pod := branchPod(netns, "c1", "10.0.7.11/32", "10.0.7.1", BranchStrict)
			tt.breakIt(&pod)
			before := branchDump(host)
			err := in(t, host, func(ctx context.Context) error { _, err := Setup(ctx, pod); return err })
			switch {
			case vlans && tt.want == "":
				if err != nil {
					t.Fatal(err)
				}
				return
			case err == nil:
				t.Fatal("it worked")
			case !strings.Contains(err.Error(), tt.want) && (vlans || !errors.Is(err, unix.EOPNOTSUPP)):
				t.Errorf("got %v", err)
			case !vlans && errors.Is(err, unix.EOPNOTSUPP) && !strings.Contains(err.Error(), "8021q"):
				t.Errorf("the error does not name the module: %v", err)
			}
			if after := branchDump(host); after != before {
				t.Errorf("left behind: before\n%s\nafter\n%s", before, after)
			}
		})
	}
}

// hasVLANs asks this kernel for a VLAN link.
func hasVLANs(t *testing.T) bool {
	t.Helper()
	ns := nstest.New(t)
	ns.Run("ip", "link", "add", "trunk", "type", "veth")
	return !strings.Contains(ns.Run("sh", "-c", "ip link add link trunk name vlan7 type vlan id 7 2>&1 || true"), "Unknown device type")
}

// branchDump is everything that a branch ENI's pod can leave on a host.
func branchDump(host *nstest.NS) string {
	return volatile.ReplaceAllString(host.Run("sh", "-c",
		"ip -br link | cut -d@ -f1 | cut -d' ' -f1 | sort; for f in -4 -6; do ip $f rule; ip $f route show table all | grep -v -e local -e fe80 -e multicast || true; done"), "")
}

// The rules of a branch ENI's pod are deleted by the number of its table, whoever wrote them and for whichever mode; the
// sandbox that the VLAN link names is the only one whose teardown takes it away. A veth stands in for the VLAN link.
func TestBranchTeardown(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr("10.0.7.11")
	ours := Remains{VLAN: 7, Addresses: []netip.Addr{addr}, Via: "enicc21c2d7785", ContainerID: "c1", IfName: "eth0"}
	late := ours
	late.Late = true
	byReply := ours
	byReply.Via = ""
	owner := func(container, ifName string) string {
		return Owner{ContainerID: container, IfName: ifName, HostVeth: "enicc21c2d7785", Address: addr, Since: time.Unix(1, 0)}.String()
	}
	for name, tt := range map[string]struct {
		alias   string
		remains Remains
		newer   bool
	}{
		"its own":                     {owner("c1", "eth0"), ours, false},
		"its own, by ipamd's word":    {owner("c1", "eth0"), byReply, false},
		"its own, late":               {owner("c1", "eth0"), late, false},
		"another sandbox's":           {owner("c2", "eth0"), ours, true},
		"another sandbox's, late":     {owner("c2", "eth0"), late, true},
		"another interface's":         {owner("c1", "net1"), ours, true},
		"of the predecessor":          {"", ours, false},
		"of the predecessor, late":    {"", late, true},
		"somebody's alias":            {"uplink to rack 7", ours, false},
		"somebody's alias, late":      {"uplink to rack 7", late, true},
		"none, and rules are left":    {"gone", ours, false},
		"none, rules are left, late":  {"gone", late, false},
		"none, rules are left, reply": {"gone", byReply, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host := nstest.New(t)
			host.Run("sh", "-e", "-c", `ip link add enicc21c2d7785 type veth peer name p0; ip link set enicc21c2d7785 up
				ip link add enibbbbbbbbbbb type veth peer name p1; ip link set enibbbbbbbbbbb up
				ip rule add from 10.0.7.99 lookup 108 prio 1536; ip rule add to 10.0.7.99 lookup main prio 512
				ip rule add iif vlan.eth.8 lookup 108 prio 10; ip rule add from 10.0.7.11 lookup 9 prio 1000`)
			bare := branchDump(host)
			host.Run("sh", "-e", "-c", `
				for p in "" "proto 89"; do for i in vlan.eth.7 vlancc21c2d7785; do ip rule add iif $i lookup 107 prio 10 $p; done; done
				ip rule add from 10.0.7.11 lookup 107 prio 1536; ip rule add from 10.0.7.11 to 198.18.0.0/15 lookup 107 prio 1536
				ip rule add to 10.0.7.11 lookup main prio 512`)
			if !tt.remains.Late {
				host.Run("sh", "-e", "-c", `ip route add 10.0.7.11 dev enicc21c2d7785 table 107
					ip route add 10.0.7.11 dev enicc21c2d7785 table 5120; ip route add 10.0.7.11 dev enicc21c2d7785`)
			}
			if tt.alias != "gone" {
				host.Run("ip", "link", "add", "vlan.eth.7", "type", "veth", "peer", "name", "trunk")
				host.Run("sh", "-e", "-c", "ip link set vlan.eth.7 up; ip route add default dev vlan.eth.7 table 107")
				if tt.alias != "" {
					host.Run("ip", "link", "set", "vlan.eth.7", "alias", tt.alias)
				}
			}
			want, verdict := bare, error(nil)
			if tt.newer {
				want, verdict = branchDump(host), ErrNewerSandbox
			}
			for range 2 {
				if err := in(t, host, func(ctx context.Context) error { return Teardown(ctx, tt.remains) }); !errors.Is(err, verdict) {
					t.Fatalf("got %v, want %v", err, verdict)
				}
				if got := branchDump(host); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			}
		})
	}
}

// By the time of a teardown the address can be another pod's, ordinary or not: that one keeps what leads to it.
func TestBranchTeardownKeepsTheNextOwnersAddress(t *testing.T) {
	t.Parallel()
	host := nstest.New(t)
	host.Run("sh", "-e", "-c", `ip link add enibbbbbbbbbbb type veth peer name p1; ip link set enibbbbbbbbbbb up
		ip route add 10.0.7.11 dev enibbbbbbbbbbb table 5120; ip route add 10.0.7.11 dev enibbbbbbbbbbb
		ip rule add to 10.0.7.11 lookup main prio 512; ip rule add from 10.0.7.11 lookup 2 prio 1536`)
	before := branchDump(host)
	for _, remains := range []Remains{
		{VLAN: 7, Addresses: []netip.Addr{netip.MustParseAddr("10.0.7.11")}, Via: "enicc21c2d7785", ContainerID: "c1", IfName: "eth0"},
		{VLAN: 7, Addresses: []netip.Addr{netip.MustParseAddr("10.0.7.11")}, ContainerID: "c1", IfName: "eth0", Late: true},
	} {
		if err := in(t, host, func(ctx context.Context) error { return Teardown(ctx, remains) }); err != nil {
			t.Fatal(err)
		}
		if after := branchDump(host); after != before {
			t.Errorf("%+v: before\n%s\nafter\n%s", remains, before, after)
		}
	}
}

func TestOwnerOfAVLAN(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr("2001:db8::11")
	for _, id := range []string{"c1", strings.Repeat("f", 64), strings.Repeat("x", 300), "", "with space"} {
		text := Owner{ContainerID: id, IfName: "eth0", HostVeth: "vlancc21c2d7785", Address: addr, Since: time.Unix(1700000000, 0)}.String()
		if len(text) > 255 {
			t.Errorf("%d bytes are too many for an alias", len(text))
		}
		owner, ok := parseOwner(text)
		if !ok || !owner.Is(id, "eth0") || owner.Is(id, "eth1") || owner.Is("c2", "eth0") || owner.HostVeth != "vlancc21c2d7785" ||
			owner.Address != addr || owner.Since.Unix() != 1700000000 {
			t.Errorf("%q reads as %+v, %v", text, owner, ok)
		}
	}
	for _, text := range []string{"", "x", "vpc-cni a b c d e", "vpc-cni  eth0 v 10.0.0.1 1", "vpc-cni a b c 10.0.0.1 x", "vpc-cni a b c 10.0.0.1 1 2"} {
		if owner, ok := parseOwner(text); ok {
			t.Errorf("%q reads as %+v", text, owner)
		}
	}
}
