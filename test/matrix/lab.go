package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
)

const namespace = "matrix"

// An instance type with few addresses per ENI: a handful of pods fills one.
const (
	instanceType = "t3.small"
	perENI       = 4 - 1
	podsOnN1     = 2*perENI + 2
	podsOnOthers = perENI + 1
)

// bed is the lab of a set-up.
type bed struct {
	setUp   setUp
	cluster *cluster.Cluster
	n1      *cluster.Node
	world   world
	do      map[string]probe.Do // by the name of an end
	stop    []func()            // in reverse order
}

func spec(s setUp, binDir string) cluster.Spec {
	env := map[string]string{"POD_RULE_LAYOUT": s.Layout}
	switch s.SNAT {
	case snatExternal:
		env["AWS_VPC_K8S_CNI_EXTERNALSNAT"] = "true"
	case snatExcluded:
		env["AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"] = excludedCIDR.String()
	}
	node := func(name, subnet string) cluster.NodeSpec {
		rpDefault := s.RPDefault
		settings := map[string]string{
			"net/ipv4/conf/all/rp_filter":      strconv.Itoa(s.RPAll),
			"net/ipv4/conf/all/src_valid_mark": strconv.Itoa(s.SrcValid),
		}
		if s.IPv6 {
			settings["net/ipv6/conf/all/forwarding"] = "1" // as the init container sets it
		}
		return cluster.NodeSpec{Name: name, Type: instanceType, Subnet: subnet, RPFilter: &rpDefault, Sysctls: settings}
	}
	subnets := []cluster.Subnet{
		{Name: "a", CIDR: netip.MustParsePrefix("10.0.1.0/24"), Zone: "us-west-2a", Private: !s.public()},
		{Name: "b", CIDR: netip.MustParsePrefix("100.64.1.0/24"), Zone: "us-west-2b", Private: !s.public()},
	}
	bits := 24
	if s.IPv6 {
		subnets[0].IPv6 = netip.MustParsePrefix("2001:db8:10:1::/64")
		subnets[1].IPv6 = netip.MustParsePrefix("2001:db8:10:2::/64")
		bits = 64
	}
	w := aroundIn(s)
	return cluster.Spec{
		Name:        "matrix-" + s.Name,
		CIDRs:       []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("100.64.0.0/16")},
		Subnets:     subnets,
		Nodes:       []cluster.NodeSpec{node("n1", "a"), node("n2", "a"), node("n3", "b")},
		AttachDelay: 20 * time.Millisecond, DetachDelay: 20 * time.Millisecond,
		Env: env, BinDir: binDir, NoIPAMD: s.IPv6,
		MoreHosts: []fabric.PeeredHost{
			{Name: lbHost, Addr: netip.PrefixFrom(w.lb.addr, bits)},
			{Name: clientHost, Addr: netip.PrefixFrom(w.client.addr, bits)},
		},
	}
}

// build starts the lab with everything that answers in it.
func build(ctx context.Context, s setUp, binDir string) (_ *bed, err error) {
	c, err := cluster.New(ctx, spec(s, binDir), cluster.Hooks{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	b := &bed{setUp: s, cluster: c, do: map[string]probe.Do{}}
	b.stop = append(b.stop, func() { _ = c.Close() })
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.n1, err = c.Node("n1"); err != nil {
		return nil, err
	}
	if s.Proxy == proxyLegacy {
		if err := b.onN1(ctx, "", "mount", "--bind", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi"); err != nil {
			return nil, err
		}
	}
	if s.IPv6 {
		if err := b.standIn(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.addPods(ctx); err != nil {
		return nil, err
	}
	if err := b.populate(); err != nil {
		return nil, err
	}
	if err := b.nodeLocal(ctx); err != nil {
		return nil, err
	}
	if err := b.serve(ctx); err != nil {
		return nil, err
	}
	if err := b.startMarks(ctx); err != nil {
		return nil, err
	}
	if s.Proxy != proxyNone {
		if err := b.startProxy(ctx); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *bed) close() {
	for _, f := range slices.Backward(b.stop) {
		f()
	}
}

// onN1 runs a program on n1.
func (b *bed) onN1(ctx context.Context, input, name string, args ...string) error {
	_, err := run(ctx, b.n1, input, name, args...)
	return err
}

// addPods puts pods on all nodes: on n1 one after the other, so that each has a host port known beforehand.
func (b *bed) addPods(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for _, n := range b.cluster.Nodes() {
		group.Go(func() error {
			count := podsOnOthers
			if n == b.n1 {
				count = podsOnN1
			}
			for i := range count {
				var ports []cluster.HostPort
				if n == b.n1 {
					for _, protocol := range []string{"tcp", "udp"} {
						ports = append(ports, cluster.HostPort{Host: firstHostPort + i, Pod: probePort, Protocol: protocol})
					}
				}
				if _, err := b.cluster.PodAdd(groupCtx, n.Name, namespace, fmt.Sprintf("%s-pod%d", n.Name, i+1), ports...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// populate finds out who is where.
func (b *bed) populate() error {
	w := &b.world
	w.around = aroundIn(b.setUp)
	w.hostPorts, w.own = map[string]int{}, map[int]netip.Addr{}
	for _, n := range b.cluster.Nodes() {
		node := end{n.Name, n.Name, n.Address}
		if b.setUp.IPv6 {
			node.addr = n.Address6
		}
		b.do[n.Name] = n.OS().Do
		pods := map[int][]end{}
		enis := b.cluster.Cloud().ENIsOf(n.InstanceID)
		for _, p := range b.cluster.Pods(n.Name) {
			for _, e := range enis {
				if !slices.Contains(e.Secondary, p.Address) && !slices.ContainsFunc(e.IPv6Prefixes, func(r netip.Prefix) bool { return r.Contains(p.Address) }) {
					continue
				}
				device := e.Attachment.Device
				pod := end{p.Name, fmt.Sprintf("pod@%s.eth%d", n.Name, device), p.Address}
				pods[device] = append(pods[device], pod)
				b.do[p.Name] = func(f func() error) error { return b.cluster.PodDo(p.Node, p.Namespace, p.Name, f) }
				if len(p.HostPorts) > 0 {
					w.hostPorts[p.Name] = p.HostPorts[0].Host
				}
			}
		}
		switch n.Name {
		case "n1":
			w.n1, w.pods1 = node, pods
			for _, e := range enis {
				w.own[e.Attachment.Device] = e.Primary
				if b.setUp.IPv6 {
					w.own[e.Attachment.Device] = e.IPv6[0]
				}
			}
		case "n2":
			w.n2, w.pods2 = node, pods
		case "n3":
			w.n3, w.pods3 = node, pods
		}
	}
	switch {
	case len(w.pods1[0]) < 2 || len(w.pods1[1]) < 2 || len(w.pods1[2]) < 2:
		return fmt.Errorf("the pods of n1 are not two or more on each of 3 ENIs: %v", w.pods1)
	case len(w.pods2[0]) < 1 || len(w.pods2[1]) < 1 || len(w.pods3[0]) < 1 || len(w.pods3[1]) < 1:
		return errors.New("n2 or n3 has no pod on its primary or on its secondary ENI")
	}
	for _, h := range []end{w.internet, w.onPrem, w.lb, w.client, w.imds} {
		b.do[h.name] = func(f func() error) error { return b.cluster.Fabric().Do(fabric.Host(h.name), f) }
	}
	return nil
}

// nodeLocal gives n1 what NodeLocal DNSCache and Istio's ambient mode put on a node: an address on a link of its own
// whose connections are not tracked, and a source translation of what the host sends to pods.
func (b *bed) nodeLocal(ctx context.Context) error {
	w, iptables := b.world, "iptables"
	if b.setUp.IPv6 {
		iptables = "ip6tables"
	}
	local := netip.PrefixFrom(w.nodeLocal, w.nodeLocal.BitLen())
	for _, args := range [][]string{
		{"link", "add", "nodelocaldns", "up", "type", "bridge"},
		{"addr", "add", local.String(), "dev", "nodelocaldns", "nodad"},
	} {
		if err := b.onN1(ctx, "", "ip", args...); err != nil {
			return err
		}
	}
	address, dns := w.nodeLocal.String(), strconv.Itoa(dnsPort)
	for _, protocol := range []string{"udp", "tcp"} {
		for _, rule := range [][]string{
			{"-t", "raw", "-A", "PREROUTING", "-d", address, "-p", protocol, "--dport", dns, "-j", "NOTRACK"},
			{"-t", "raw", "-A", "OUTPUT", "-d", address, "-p", protocol, "--dport", dns, "-j", "NOTRACK"},
			{"-t", "raw", "-A", "OUTPUT", "-s", address, "-p", protocol, "--sport", dns, "-j", "NOTRACK"},
			{"-t", "nat", "-A", "POSTROUTING", "-m", "owner", "--socket-exists", "-p", protocol,
				"--dport", strconv.Itoa(istioPort), "-j", "SNAT", "--to-source", w.istio.String()},
		} {
			if err := b.onN1(ctx, "", iptables, append([]string{"-w"}, rule...)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// serve has every end answer.
func (b *bed) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = append(b.stop, cancel)
	for _, e := range b.world.ends() {
		ports := []uint16{probePort}
		switch {
		case e == b.world.imds || e == b.world.n1:
			ports = append(ports, dnsPort)
		case slices.Contains(b.world.pods1[0], e), slices.Contains(b.world.pods1[1], e), slices.Contains(b.world.pods1[2], e):
			ports = append(ports, istioPort)
		}
		if _, err := probe.Serve(ctx, e.name, b.do[e.name], ports...); err != nil {
			return err
		}
	}
	return nil
}
