package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"

	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/podnet"

	"github.com/vishvananda/netlink"
)

// The VPC of a node under test: one /20 per ENI, whose pods have the second /24 of it.
var vpcCIDR = netip.MustParsePrefix("10.0.0.0/16")

// peerAddr and peerAddr6 are those of a host of the VPC outside the node.
var (
	peerAddr  = netip.MustParseAddr("10.0.200.1")
	peerAddr6 = netip.MustParseAddr("2001:db8:0:c8::1")
)

// router6 is the VPC's router on every link.
var router6 = netip.MustParseAddr("fe80:ec2::1")

// enis is how many ENIs a node has, the primary one included.
const enis = 4

func subnetOf(eni int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(16 * eni), 0}), 20)
}
func routerOf(eni int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(16 * eni), 1}) }
func ownOf(eni int) netip.Addr    { return netip.AddrFrom4([4]byte{10, 0, byte(16 * eni), 10}) }
func poolOf(eni int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(16*eni + 1), 0}), 24)
}

// In IPv6: a /64 per ENI, whose pods have one /80 of it.
func subnet6Of(eni int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: byte(16 * eni)}), 64)
}
func own6Of(eni int) netip.Addr { return inSubnet6(eni, 0, 0x10) }
func pool6Of(eni int) netip.Prefix {
	return netip.PrefixFrom(inSubnet6(eni, 1, 0), 80)
}

func inSubnet6(eni int, pool, host byte) netip.Addr {
	a := subnet6Of(eni).Addr().As16()
	a[9], a[15] = pool, host
	return netip.AddrFrom16(a)
}

func macOf(eni int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(eni + 1)} }

// packetNode is a node with pods between its VPC and the pod whose packets are measured, which lives on a secondary
// ENI: the longest way through the rules.
type packetNode struct {
	pods    int
	layouts []string

	node, vpc, pod, crowd namespace
	podAddrs              []netip.Addr // by the way they were handed out; the measured pod's is the first
	host                  *hostnet.Host
	flows                 map[flowKey]flow
}

type flowKey struct{ measure, direction string }

func newPacketNode(ctx context.Context, pods int, layouts []string) (*packetNode, error) {
	spaces, err := newNamespaces(4)
	if err != nil {
		return nil, err
	}
	n := &packetNode{pods: pods, layouts: layouts, node: spaces[0], vpc: spaces[1], pod: spaces[2], crowd: spaces[3], flows: map[flowKey]flow{}}
	n.podAddrs = podAddresses(pods, layouts[0] == layoutV6)
	if err := n.connect(); err != nil {
		return nil, err
	}
	if err := n.addPods(ctx); err != nil {
		return nil, err
	}
	if layouts[0] != layoutPlain {
		n.host, err = hostnet.New(hostnet.Options{
			NetNS: int(n.node.file.Fd()),
			Log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		if err != nil {
			return nil, err
		}
	}
	if err := n.use(ctx, layouts[0]); err != nil {
		return nil, err
	}
	return n, n.openFlows()
}

// podAddresses spreads the pods over the ENIs, beginning with the first secondary one.
func podAddresses(pods int, v6 bool) []netip.Addr {
	next := make([]netip.Addr, enis)
	for eni := range next {
		next[eni] = poolOf(eni).Addr()
		if v6 {
			next[eni] = pool6Of(eni).Addr().Next()
		}
	}
	var list []netip.Addr
	for i := range pods {
		eni := (i + 1) % enis
		list = append(list, next[eni])
		next[eni] = next[eni].Next()
	}
	return list
}

// connect makes the ENIs and, at their other ends, the router of the VPC, which is the peer as well.
func (n *packetNode) connect() error {
	for eni := range enis {
		device, port := fmt.Sprintf("eth%d", eni), fmt.Sprintf("port%d", eni)
		err := n.node.do(func() error {
			return netlink.LinkAdd(&netlink.Veth{
				LinkAttrs: netlink.LinkAttrs{Name: device, HardwareAddr: macOf(eni), MTU: 9001, TxQLen: -1},
				PeerName:  port, PeerNamespace: netlink.NsFd(n.vpc.file.Fd()),
			})
		})
		if err != nil {
			return fmt.Errorf("create ENI %d: %w", eni, err)
		}
		if err := n.node.ip("link", "set", device, "up"); err != nil {
			return err
		}
		err = n.vpc.ips(
			[]string{"address", "add", netip.PrefixFrom(routerOf(eni), 20).String(), "dev", port},
			[]string{"link", "set", port, "up"},
			// The VPC never asks an instance for its addresses.
			[]string{"neighbour", "add", ownOf(eni).String(), "lladdr", macOf(eni).String(), "dev", port, "nud", "permanent"},
			[]string{"route", "add", poolOf(eni).String(), "via", ownOf(eni).String(), "dev", port},
			[]string{"address", "add", netip.PrefixFrom(router6, 64).String(), "dev", port, "nodad"},
			[]string{"neighbour", "add", own6Of(eni).String(), "lladdr", macOf(eni).String(), "dev", port, "nud", "permanent"},
			[]string{"route", "add", own6Of(eni).String(), "dev", port},
			[]string{"route", "add", pool6Of(eni).String(), "via", own6Of(eni).String(), "dev", port},
		)
		if err != nil {
			return err
		}
	}
	for _, addr := range []netip.Addr{peerAddr, peerAddr6} {
		if err := n.vpc.ip("address", "add", addr.String(), "dev", "lo", "nodad"); err != nil {
			return err
		}
	}
	if err := n.vpc.sysctl(map[string]string{"ipv6/conf/all/forwarding": "1"}); err != nil {
		return err
	}
	forwarding := map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0"}
	for eni := range enis {
		forwarding[fmt.Sprintf("ipv4/conf/eth%d/rp_filter", eni)] = "0"
	}
	if err := n.node.sysctl(forwarding); err != nil {
		return err
	}
	return n.node.ips(
		[]string{"address", "add", netip.PrefixFrom(ownOf(0), 20).String(), "dev", "eth0"},
		[]string{"route", "add", "default", "via", routerOf(0).String(), "dev", "eth0"},
		[]string{"-6", "route", "add", "default", "via", router6.String(), "dev", "eth0"},
	)
}

// addPods wires all pods, the measured one in a namespace of its own.
func (n *packetNode) addPods(ctx context.Context) error {
	if err := fill(ctx, n.node, n.crowd, n.podAddrs[1:]); err != nil {
		return err
	}
	addr := n.podAddrs[0]
	return n.node.do(func() error {
		ctx, cancel := context.WithTimeout(ctx, setupTimeout)
		defer cancel()
		_, err := podnet.Setup(ctx, podnet.Pod{
			Netns:       n.pod.path(),
			ContainerID: "measured",
			Interfaces: []podnet.Interface{{
				Name: "eth0", HostVeth: names.HostVeth("eni", podNamespace, "measured", 0),
				Address: netip.PrefixFrom(addr, addr.BitLen()), MTU: 9001,
			}},
		})
		return err
	})
}

// use gives the node the state of a layout. The floor has none: routes, and not a single rule or table of nftables.
func (n *packetNode) use(ctx context.Context, layout string) error {
	if layout == layoutPlain {
		return nil
	}
	report, err := n.host.Apply(ctx, n.config(layout))
	if err != nil {
		return err
	}
	for eni, reason := range report.NotReady {
		return fmt.Errorf("%s is not ready: %w", eni, reason)
	}
	return nil
}

func (n *packetNode) config(layout string) hostnet.Config {
	cfg := hostnet.Config{
		IPv4: layout != layoutV6, IPv6: layout == layoutV6,
		VPCCIDRs: []netip.Prefix{vpcCIDR}, NodePort: true, VethPrefix: "eni", MTU: 9001,
		PrimaryMark: names.DefaultPrimaryMark, ENIMask: names.DefaultENIMask,
	}
	if layout == layoutPerPod {
		cfg.RuleLayout = hostnet.LayoutPerPod
	}
	for eni := range enis {
		cfg.ENIs = append(cfg.ENIs, hostnet.ENI{
			ID: fmt.Sprintf("eni-%d", eni), MAC: macOf(eni), Device: eni, Primary: eni == 0,
			Address: ownOf(eni), SubnetCIDR: subnetOf(eni), Address6: own6Of(eni), SubnetCIDR6: subnet6Of(eni),
			Pool: n.pool(eni, layout),
		})
	}
	return cfg
}

// pool is what the ENI holds for its pods: their addresses, or the /28s around them.
func (n *packetNode) pool(eni int, layout string) []netip.Prefix {
	if layout == layoutV6 {
		return []netip.Prefix{pool6Of(eni)}
	}
	var pool []netip.Prefix
	for _, addr := range n.podAddrs {
		if !poolOf(eni).Contains(addr) {
			continue
		}
		prefix := netip.PrefixFrom(addr, 32)
		if layout == layoutPrefixes {
			prefix = netip.PrefixFrom(addr, 28).Masked()
		}
		if len(pool) == 0 || pool[len(pool)-1] != prefix {
			pool = append(pool, prefix)
		}
	}
	return pool
}

// openFlows opens the sockets of every measure, in the pod and at the peer.
func (n *packetNode) openFlows() error {
	pod, peer := n.podAddrs[0], peerAddr
	if pod.Is6() {
		peer = peerAddr6
	}
	for _, measure := range measures {
		from, err := newFlow(measure, n.pod, n.vpc, pod, peer)
		if err != nil {
			return fmt.Errorf("%s %s: %w", measure, fromPod, err)
		}
		n.flows[flowKey{measure, fromPod}] = from
		to, err := newFlow(measure, n.vpc, n.pod, peer, pod)
		if err != nil {
			return fmt.Errorf("%s %s: %w", measure, toPod, err)
		}
		n.flows[flowKey{measure, toPod}] = to
	}
	return nil
}

// close releases sockets; the namespaces go with the sandbox.
func (n *packetNode) close() {
	if n.host != nil {
		n.host.Close()
	}
	for _, f := range n.flows {
		f.close()
	}
}
