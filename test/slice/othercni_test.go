package slice

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
	"vpccni/pkg/networkutils/names"
	"vpccni/test/upstream"
)

// otherCNI is amazon-vpc-cni-k8s on a node, as far as the node's network sees it.
type otherCNI struct {
	t *testing.T
	l *cluster.Cluster
	n *cluster.Node
	// perENI is how many addresses for pods an ENI takes.
	perENI int
}

func (o *otherCNI) sh(script string) string {
	o.t.Helper()
	out, err := o.n.OS().Command(o.t.Context(), "sh", "-e", "-c", script).CombinedOutput()
	if err != nil {
		o.t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return string(out)
}

func (o *otherCNI) handBack(marks bool) {
	o.t.Helper()
	out := o.sh("ENABLE_IPv4=true aws-k8s-agent handback")
	if !strings.Contains(out, "pods have rules of their own") || strings.Contains(out, "run this again") != marks {
		o.t.Errorf("handback says %q", out)
	}
}

// start lays down what the other one does when it starts: nothing for single pods.
func (o *otherCNI) start(v upstream.Version) {
	o.t.Helper()
	node := upstream.Node{PrimaryLink: "eth0", VPC: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}}
	for _, e := range attachedENIs(o.l, o.n) {
		if e.Attachment.Device == 0 {
			node.PrimaryIP = e.Primary
			continue
		}
		subnet, _ := o.l.Cloud().Subnet(e.SubnetID)
		node.ENIs = append(node.ENIs, upstream.ENI{Link: fmt.Sprintf("eth%d", e.Attachment.Device), IP: e.Primary, Subnet: subnet.CIDR,
			Table: names.RouteTable(0, e.Attachment.Device)})
	}
	o.sh(v.HostScript(node) + v.ENIScript(node.ENIs...))
}

// checkPod has the other one start a pod, on a secondary ENI if one has a free address, and end it: with an address that is free there, or that
// came from another ENI.
func (o *otherCNI) checkPod(v upstream.Version, peer cluster.Pod, moved bool) {
	o.t.Helper()
	// The secondary ones first.
	enis := attachedENIs(o.l, o.n)
	slices.Reverse(enis)
	var from, on ec2.ENI
	for _, e := range enis {
		if len(e.Secondary) < o.perENI && e.Attachment.Device > 0 {
			on = e
		}
	}
	for _, e := range enis {
		if _, ok := o.free(e); ok && from.ID == "" && (!moved || e.ID != on.ID) {
			from = e
		}
	}
	addr, ok := o.free(from)
	if !ok || on.ID == "" {
		o.t.Fatalf("no address is free, or no ENI has room: %+v", enis)
	}
	if moved {
		o.move(addr, from.ID, on.ID)
	} else {
		on = from
	}
	pod := upstream.Pod{IP: addr, Veth: "eni0123456789a", Table: names.RouteTable(0, on.Attachment.Device)}
	const path = "/run/netns/other"
	netns, err := o.n.OS().NewNetNS(path)
	if err != nil {
		o.t.Fatal(err)
	}
	defer func() { _ = netns.Close() }()
	o.sh(fmt.Sprintf(`
ip link add %[2]s type veth peer name eth0 netns other
ip link set %[2]s up; ip -n other link set lo up; ip -n other link set eth0 up
ip -n other route add 169.254.1.1 dev eth0 scope link; ip -n other route add default via 169.254.1.1 dev eth0
ip -n other address add %[1]s/32 dev eth0
ip -n other neigh add 169.254.1.1 lladdr $(cat /sys/class/net/%[2]s/address) dev eth0 nud permanent
`, addr, pod.Veth) + v.PodScript(pod))
	in := func(f func() error) error { return o.n.OS().DoIn(netns, f) }
	ctx := o.t.Context()
	server, err := probe.Serve(ctx, "other", in, probePort)
	if err != nil {
		o.t.Fatal(err)
	}
	ask := func(what string, from probe.Do, to netip.Addr, port uint16, name string) {
		o.t.Helper()
		if a, err := probe.TCP(ctx, from, netip.AddrPortFrom(to, port), 1000); err != nil || a.Server != name {
			o.t.Errorf("%s (%s, moved: %t): %q, %v", what, addr, moved, a.Server, err)
		}
	}
	first := o.l.Pods("n1")[0]
	ask("pod of the other CNI → internet", in, fabric.InternetAddr, flowPort, "internet")
	ask("pod of the other CNI → peer", in, peer.Address, flowPort, "peer")
	ask("pod of the other CNI → pod of the node", in, first.Address, flowPort, first.Name)
	ask("peer → pod of the other CNI", podDo(o.l, peer), addr, probePort, "other")
	ask("pod of the node → pod of the other CNI", podDo(o.l, first), addr, probePort, "other")
	_ = server.Close()
	o.sh(v.DelScript(pod) + "ip link del " + pod.Veth)
	if err := o.n.OS().RemoveNetNS(path); err != nil {
		o.t.Error(err)
	}
	if moved {
		o.move(addr, on.ID, from.ID)
	}
}

// free finds an address of an ENI that no pod has.
func (o *otherCNI) free(e ec2.ENI) (netip.Addr, bool) {
	for _, a := range e.Secondary {
		if !slices.ContainsFunc(o.l.Pods("n1"), func(p cluster.Pod) bool { return p.Address == a }) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// move takes an address from one ENI to another.
func (o *otherCNI) move(a netip.Addr, from, to string) {
	o.t.Helper()
	client := operator(o.l)
	_, err := client.UnassignPrivateIpAddresses(o.t.Context(), &sdk.UnassignPrivateIpAddressesInput{
		NetworkInterfaceId: aws.String(from), PrivateIpAddresses: []string{a.String()}})
	if err == nil {
		_, err = client.AssignPrivateIpAddresses(o.t.Context(), &sdk.AssignPrivateIpAddressesInput{
			NetworkInterfaceId: aws.String(to), PrivateIpAddresses: []string{a.String()}})
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

// checkPaths has every pod of the node open new connections to the internet, the peer and back.
func (o *otherCNI) checkPaths(peer cluster.Pod) {
	o.t.Helper()
	for _, p := range o.l.Pods("n1") {
		for what, path := range map[string]struct {
			from probe.Do
			to   netip.Addr
			sees netip.Addr
		}{
			"→ internet": {podDo(o.l, p), fabric.InternetAddr, netip.Addr{}},
			"→ peer":     {podDo(o.l, p), peer.Address, p.Address},
			"← peer":     {podDo(o.l, peer), p.Address, peer.Address},
		} {
			a, err := probe.TCP(o.t.Context(), path.from, netip.AddrPortFrom(path.to, flowPort), 100)
			if err != nil || path.sees.IsValid() && a.Source != path.sees {
				o.t.Errorf("%s %s: seen as %s, %v", p.Name, what, a.Source, err)
			}
		}
	}
}

// checkSwept wants nothing of the other one on the node.
func (o *otherCNI) checkSwept() {
	o.t.Helper()
	left := func() string {
		return o.sh(`ip rule | grep -E '^(512:.* to|1536:)' || true
			nft list tables | grep aws-cni || true
			iptables-nft-save 2>/dev/null | grep AWS || true
			iptables-legacy-save 2>/dev/null | grep AWS || true`)
	}
	eventually(o.t, time.Minute, "the state of the other CNI is gone", func() bool { return left() == "" })
}
