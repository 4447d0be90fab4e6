package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/podnet"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The VPC of a node under test: one /20 per ENI, whose pods have the second /24 of it.
var vpcCIDR = netip.MustParsePrefix("10.0.0.0/16")

// peerAddr is a host of the VPC outside the node.
var peerAddr = netip.MustParseAddr("10.0.200.1")

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

func macOf(eni int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(eni + 1)} }

// packetNode is a node with pods between its VPC and the pod whose packets are measured, which lives on a secondary
// ENI: the longest way through the rules.
type packetNode struct {
	pods  int
	modes []string

	node, vpc, pod, crowd namespace
	podAddrs              []netip.Addr // by the way they were handed out; the measured pod's is the first
	host                  *hostnet.Host
	flows                 map[string]flow
}

func newPacketNode(ctx context.Context, pods int, modes []string) (*packetNode, error) {
	spaces, err := newNamespaces(4)
	if err != nil {
		return nil, err
	}
	n := &packetNode{pods: pods, modes: modes, node: spaces[0], vpc: spaces[1], pod: spaces[2], crowd: spaces[3]}
	n.podAddrs = podAddresses(pods)
	if err := n.connect(); err != nil {
		return nil, err
	}
	if err := n.addPods(ctx); err != nil {
		return nil, err
	}
	if modes[0] != modePlain {
		n.host, err = hostnet.New(hostnet.Options{
			NetNS: int(n.node.file.Fd()),
			Log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
		})
		if err != nil {
			return nil, err
		}
	}
	return n, n.openFlows()
}

// podAddresses spreads the pods over the ENIs, beginning with the first secondary one.
func podAddresses(pods int) []netip.Addr {
	next := make([]netip.Addr, enis)
	for eni := range next {
		next[eni] = poolOf(eni).Addr()
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
		)
		if err != nil {
			return err
		}
	}
	if err := n.vpc.ip("address", "add", peerAddr.String(), "dev", "lo"); err != nil {
		return err
	}
	forwarding := map[string]string{"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0"}
	for eni := range enis {
		forwarding[fmt.Sprintf("ipv4/conf/eth%d/rp_filter", eni)] = "0"
	}
	if err := n.node.sysctl(forwarding); err != nil {
		return err
	}
	return n.node.ips(
		[]string{"address", "add", netip.PrefixFrom(ownOf(0), 20).String(), "dev", "eth0"},
		[]string{"route", "add", "default", "via", routerOf(0).String(), "dev", "eth0"},
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

// use gives the node the state of a mode. The floor has none: routes, and not a single rule or table of nftables.
func (n *packetNode) use(ctx context.Context, mode string) error {
	if mode == modePlain {
		return nil
	}
	report, err := n.host.Apply(ctx, n.config(mode))
	if err != nil {
		return err
	}
	for eni, reason := range report.NotReady {
		return fmt.Errorf("%s is not ready: %w", eni, reason)
	}
	return nil
}

func (n *packetNode) config(mode string) hostnet.Config {
	cfg := hostnet.Config{
		VPCCIDRs: []netip.Prefix{vpcCIDR}, NodePort: true, VethPrefix: "eni", MTU: 9001,
		PrimaryMark: names.DefaultPrimaryMark, ENIMask: names.DefaultENIMask,
	}
	for eni := range enis {
		cfg.ENIs = append(cfg.ENIs, hostnet.ENI{
			ID: fmt.Sprintf("eni-%d", eni), MAC: macOf(eni), Device: eni, Primary: eni == 0,
			Address: ownOf(eni), SubnetCIDR: subnetOf(eni), Pool: n.pool(eni, mode),
		})
	}
	return cfg
}

// pool is what the ENI holds for its pods: their addresses, or the /28s around them.
func (n *packetNode) pool(eni int, mode string) []netip.Prefix {
	var pool []netip.Prefix
	for _, addr := range n.podAddrs {
		if !poolOf(eni).Contains(addr) {
			continue
		}
		prefix := netip.PrefixFrom(addr, 32)
		if mode == modePrefixes {
			prefix = netip.PrefixFrom(addr, 28).Masked()
		}
		if len(pool) == 0 || pool[len(pool)-1] != prefix {
			pool = append(pool, prefix)
		}
	}
	return pool
}

// Ports of the measured flow.
const (
	podPort  = 4000
	peerPort = 4001
)

// openFlows opens a socket in the pod and one at the peer.
func (n *packetNode) openFlows() error {
	pod, peer := netip.AddrPortFrom(n.podAddrs[0], podPort), netip.AddrPortFrom(peerAddr, peerPort)
	podSocket, err := openSocket(n.pod, pod, peer)
	if err != nil {
		return err
	}
	peerSocket, err := openSocket(n.vpc, peer, pod)
	if err != nil {
		return err
	}
	n.flows = map[string]flow{
		fromPod: {from: podSocket, to: peerSocket},
		toPod:   {from: peerSocket, to: podSocket},
	}
	return nil
}

// lossTimeout is how long a packet may be on its way before it counts as lost.
const lossTimeout = 3 * time.Second

func openSocket(ns namespace, local, remote netip.AddrPort) (int, error) {
	fd := -1
	err := ns.do(func() error {
		var err error
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(lossTimeout.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: local.Addr().As4(), Port: int(local.Port())}); err != nil {
			return fmt.Errorf("bind %s: %w", local, err)
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: remote.Addr().As4(), Port: int(remote.Port())})
	})
	return fd, err
}

// send measures one run in a direction.
func (n *packetNode) send(direction string, packets int) (float64, error) {
	return n.flows[direction].cost(packets)
}

// close releases sockets; the namespaces go with the sandbox.
func (n *packetNode) close() {
	if n.host != nil {
		n.host.Close()
	}
	_ = unix.Close(n.flows[fromPod].from)
	_ = unix.Close(n.flows[fromPod].to)
}
