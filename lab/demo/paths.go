package demo

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/fabric"
	"vpccni/lab/probe"
)

// endpoint is something that can ask and answer.
type endpoint struct {
	name string
	addr netip.Addr
	do   probe.Do
}

// atOnce is how many checks run at the same time.
const atOnce = 8

// serveHosts has nodes, the internet and on-prem answer.
func (s *scene) serveHosts(ctx context.Context) error {
	for _, n := range s.cluster.Nodes() {
		s.ends[n.Name] = endpoint{n.Name, n.Address, n.OS().Do}
	}
	outside := func(host fabric.Host, addr netip.Addr) {
		do := func(f func() error) error { return s.cluster.Fabric().Do(host, f) }
		s.ends[string(host)] = endpoint{string(host), addr, do}
	}
	outside(fabric.HostInternet, fabric.InternetAddr)
	outside(fabric.HostOnPrem, fabric.OnPremAddr)
	for _, e := range s.ends {
		if _, err := probe.Serve(ctx, e.name, e.do, probePort); err != nil {
			return err
		}
	}
	return nil
}

// path is a check: from one endpoint to another, and the source that the other one has to see.
type path struct {
	group, name string
	from, to    endpoint
	source      netip.Addr
}

// check asks over UDP and TCP, once each, and wants the right server to answer and to have seen the right source.
func (p path) check(ctx context.Context) (string, error) {
	target := netip.AddrPortFrom(p.to.addr, probePort)
	udp, err := probe.UDP(ctx, p.from.do, target, 512)
	if err == nil {
		err = p.judge(udp)
	}
	if err != nil {
		return "", fmt.Errorf("udp: %w", err)
	}
	tcp, err := probe.TCP(ctx, p.from.do, target, 1024)
	if err == nil {
		err = p.judge(tcp)
	}
	if err != nil {
		return "", fmt.Errorf("tcp: %w", err)
	}
	return fmt.Sprintf("seen as %s, udp %s, tcp %s", tcp.Source, short(udp.RTT), short(tcp.RTT)), nil
}

func (p path) judge(a probe.Answer) error {
	if a.Server != p.to.name {
		return fmt.Errorf("%s answered instead of %s", a.Server, p.to.name)
	}
	if a.Source != p.source {
		return fmt.Errorf("seen as %s, want %s", a.Source, p.source)
	}
	return nil
}

func short(d time.Duration) string { return d.Round(10 * time.Microsecond).String() }

// run checks paths, several at once, and reports them in their order.
func (s *scene) run(ctx context.Context, paths []path) {
	figures, errs := make([]string, len(paths)), make([]error, len(paths))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, p := range paths {
		group.Go(func() error {
			figures[i], errs[i] = p.check(ctx)
			return nil
		})
	}
	_ = group.Wait()
	for i, p := range paths {
		s.add(p.group, p.name, figures[i], errs[i])
	}
}

// placedPod is a pod and the ENI its address is on.
type placedPod struct {
	endpoint
	place string
}

func placed(primary, secondary []endpoint) []placedPod {
	return []placedPod{{primary[0], "pod@primary"}, {secondary[0], "pod@secondary"}}
}

// paths checks every way inside the VPC.
func (s *scene) paths(ctx context.Context) error {
	s.step("Every path inside the VPC: who answers, and which source it saw")
	var paths []path
	between := func(group, name string, from, to endpoint) {
		paths = append(paths, path{group, name, from, to, from.addr})
	}
	nodes := s.cluster.Nodes()
	for _, n := range nodes {
		primary, secondary, err := s.podsOn(n)
		if err != nil {
			return err
		}
		host := s.ends[n.Name]
		between("same node", n.Name+" pod@primary → pod@primary", primary[0], primary[1])
		between("same node", n.Name+" pod@secondary → pod@secondary", secondary[0], secondary[1])
		between("same node", n.Name+" pod@primary → pod@secondary", primary[0], secondary[0])
		between("same node", n.Name+" pod@secondary → pod@primary", secondary[0], primary[0])
		for _, pod := range placed(primary, secondary) {
			between("node and pod", n.Name+" node → own "+pod.place, host, pod.endpoint)
			between("node and pod", n.Name+" "+pod.place+" → own node", pod.endpoint, host)
		}
	}
	for _, from := range nodes {
		for _, to := range nodes {
			if from == to {
				continue
			}
			fromPrimary, fromSecondary, err := s.podsOn(from)
			if err != nil {
				return err
			}
			toPrimary, toSecondary, err := s.podsOn(to)
			if err != nil {
				return err
			}
			where := "other node, same subnet"
			if from.Subnet() != to.Subnet() {
				where = "other node, other subnet"
			}
			name := func(a, b string) string { return fmt.Sprintf("%s %s → %s %s", from.Name, a, to.Name, b) }
			between(where, name("pod@primary", "pod@primary"), fromPrimary[0], toPrimary[0])
			between(where, name("pod@primary", "pod@secondary"), fromPrimary[0], toSecondary[0])
			between(where, name("pod@secondary", "pod@primary"), fromSecondary[0], toPrimary[0])
			between(where, name("pod@secondary", "pod@secondary"), fromSecondary[0], toSecondary[0])
			between("node and pod", name("node", "pod@secondary"), s.ends[from.Name], toSecondary[0])
			between("node and pod", name("pod@secondary", "node"), fromSecondary[0], s.ends[to.Name])
		}
	}
	s.run(ctx, paths)
	return nil
}

// outside checks the ways out of the VPC and into it.
func (s *scene) outside(ctx context.Context) error {
	s.step("Out of the VPC: SNAT to the node on n1 and n2; none on n3 (EXTERNALSNAT=true), whose subnet has a NAT gateway")
	internet, onPrem := s.ends[string(fabric.HostInternet)], s.ends[string(fabric.HostOnPrem)]
	var paths []path
	for _, n := range s.cluster.Nodes() {
		primary, secondary, err := s.podsOn(n)
		if err != nil {
			return err
		}
		external := n.IPAMDEnv()["AWS_VPC_K8S_CNI_EXTERNALSNAT"] == "true"
		for _, pod := range placed(primary, secondary) {
			toInternet, toOnPrem := n.Address, n.Address
			as := "the node"
			if external {
				toInternet, toOnPrem, as = fabric.NATAddr, pod.addr, "the NAT gateway"
			}
			paths = append(paths, path{"internet", fmt.Sprintf("%s %s → internet as %s", n.Name, pod.place, as), pod.endpoint, internet, toInternet})
			if external {
				as = "the pod"
			}
			paths = append(paths,
				path{"on-prem", fmt.Sprintf("%s %s → on-prem as %s", n.Name, pod.place, as), pod.endpoint, onPrem, toOnPrem},
				path{"on-prem", fmt.Sprintf("on-prem → %s %s", n.Name, pod.place), onPrem, pod.endpoint, onPrem.addr})
		}
	}
	s.run(ctx, paths)
	return nil
}

// sizes checks that packets of every size get through, up to the MTU of the VPC.
func (s *scene) sizes(ctx context.Context) error {
	s.step("Sizes: DNS-sized UDP, the largest packet, and a stream, between pods on secondary ENIs in two subnets, MTU 9001")
	_, from, err := s.podsOn(s.cluster.Nodes()[0])
	if err != nil {
		return err
	}
	_, to, err := s.podsOn(s.cluster.Nodes()[2])
	if err != nil {
		return err
	}
	target := netip.AddrPortFrom(to[0].addr, probePort)
	const (
		mtu     = 9001
		headers = 20 + 8
		stream  = 20 << 20
	)
	for _, size := range []int{512, 1232, 4096, mtu - headers} {
		a, err := probe.UDP(ctx, from[0].do, target, size, probe.DontFragment())
		s.add("sizes", fmt.Sprintf("udp %d bytes, unfragmented", size), short(a.RTT), err)
	}
	started := time.Now()
	a, err := probe.TCP(ctx, from[0].do, target, stream)
	took := time.Since(started)
	if err == nil && a.Bytes != stream {
		err = fmt.Errorf("%d of %d bytes came through", a.Bytes, stream)
	}
	s.add("sizes", "tcp stream of 20 MB", fmt.Sprintf("%s, %.0f MB/s", took.Round(time.Millisecond), float64(stream)/1e6/took.Seconds()), err)
	return nil
}
