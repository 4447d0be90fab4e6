package main

import (
	"fmt"
	"net/netip"
	"slices"

	"vpccni/lab/fabric"
)

// Ports that the ends answer at.
const (
	probePort = 7777
	dnsPort   = 53
	istioPort = 7780 // what the node sends there is translated to istioAddr
)

// Hosts besides those that every lab has.
const (
	lbHost     = fabric.Host("lb")     // a load balancer's own address in the VPC: the client's is not kept
	clientHost = fabric.Host("client") // a client behind a load balancer that keeps its address
)

// around is what stands around the nodes.
type around struct {
	internet, onPrem, lb, client end
	imds                         end
	dns                          netip.Addr // the VPC's resolver
	nodeLocal                    netip.Addr // what NodeLocal DNSCache listens on
	istio                        netip.Addr // the source of what Istio's ambient mode sends from the host to pods
	firstService                 netip.Addr
}

var excludedCIDR = netip.PrefixFrom(fabric.OnPremAddr, 24).Masked()

// routerName is what the VPC's router answers.
const routerName = "vpc"

func aroundIn(s setUp) around {
	pick := func(v4, v6 netip.Addr) netip.Addr {
		if s.IPv6 {
			return v6
		}
		return v4
	}
	addr := netip.MustParseAddr
	return around{
		internet:     end{"internet", "internet", pick(fabric.InternetAddr, fabric.InternetAddr6)},
		onPrem:       end{"onprem", "on-prem", pick(fabric.OnPremAddr, fabric.OnPremAddr6)},
		lb:           end{"lb", "load balancer", pick(addr("10.0.9.9"), addr("2001:db8:10:9::9"))},
		client:       end{"client", "client of a load balancer", pick(addr("198.18.0.7"), addr("2001:db8:c612::7"))},
		imds:         end{routerName, "IMDS", pick(fabric.IMDSAddr, fabric.IMDSAddr6)},
		dns:          pick(addr("10.0.0.2"), fabric.ResolverAddr6),
		nodeLocal:    pick(addr("169.254.20.10"), addr("fd00:20:10::53")),
		istio:        pick(addr("169.254.7.127"), addr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")),
		firstService: pick(addr("172.20.1.1"), addr("fd00:172:20::1")),
	}
}

// end is something that asks or answers.
type end struct {
	name  string // unique; what its server says
	label string // for people: pod@eth1
	addr  netip.Addr
}

// world is who is where, as far as the paths need it.
type world struct {
	around
	n1, n2, n3 end
	// Pods by the ENI that their address is on: [device][i].
	pods1, pods2, pods3 map[int][]end
	own                 map[int]netip.Addr // n1's own addresses on its ENIs
	hostPorts           map[string]int     // by pod's name
}

func (w world) ends() []end {
	list := []end{w.n1, w.n2, w.n3, w.internet, w.onPrem, w.lb, w.client, w.imds}
	for _, pods := range []map[int][]end{w.pods1, w.pods2, w.pods3} {
		for device := range maxENIs {
			list = append(list, pods[device]...)
		}
	}
	return list
}

// cell is one check: from an end to an address, who has to answer, and as whom the asker has to be seen.
type cell struct {
	Path, Name string
	from       end
	to         netip.AddrPort
	server     string
	source     netip.Addr
	bind       netip.Addr // the address to ask from; zero leaves it to the kernel
	cannot     string     // why it cannot run in this set-up
}

// service is a Service with one endpoint, so that it is clear who has to answer.
type service struct {
	name     string
	clusters netip.Addr // its ClusterIP
	nodePort int
	local    bool // externalTrafficPolicy: Local
	endpoint end
	node     string // whose pod the endpoint is: n1, n2, n3; empty outside of the cluster
	where    string // local, remote, external
}

const (
	servicePort   = 80
	firstNodePort = 30001
	firstHostPort = 18001
)

// services has one for every place that an endpoint can be at, and one more with local traffic policy for those on n1.
func (w world) services() []service {
	var list []service
	add := func(endpoint end, node, where string, local bool) {
		clusters := w.firstService
		if i := len(list); i > 0 {
			clusters = list[i-1].clusters.Next()
		}
		list = append(list, service{
			name: fmt.Sprintf("svc%d", len(list)+1), clusters: clusters, nodePort: firstNodePort + len(list),
			local: local, endpoint: endpoint, node: node, where: where,
		})
	}
	for _, local := range []bool{false, true} {
		add(w.pods1[0][1], "n1", "local", local)
		add(w.pods1[1][1], "n1", "local", local)
		add(w.pods1[2][1], "n1", "local", local)
	}
	add(w.pods2[0][0], "n2", "remote", false)
	add(w.pods2[1][0], "n2", "remote", false)
	add(w.pods3[1][0], "n3", "remote", false)
	add(w.internet, "", "external", false)
	add(w.onPrem, "", "external", false)
	return list
}

// maxENIs is the number of ENIs of the nodes.
const maxENIs = 3

// cells lists every path in a set-up. Those that cannot run are there, with the reason.
func cells(w world, s setUp) []cell {
	b := &builder{w: w, s: s}
	b.inside()
	b.outside()
	b.linkLocal()
	b.hostPorts()
	b.clusterIPs()
	b.nodePorts()
	return b.list
}

type builder struct {
	w    world
	s    setUp
	list []cell
}

// add appends a check of an end's ordinary port.
func (b *builder) add(path string, from, to end, source netip.Addr) {
	b.to(path, to.label, from, netip.AddrPortFrom(to.addr, probePort), to.name, source)
}

func (b *builder) to(path, what string, from end, to netip.AddrPort, server string, source netip.Addr) *cell {
	b.list = append(b.list, cell{Path: path, Name: from.label + " → " + what, from: from, to: to, server: server, source: source})
	return &b.list[len(b.list)-1]
}

// asking are the pods of n1 that paths begin at, one on each ENI.
func (b *builder) asking() []end {
	return []end{b.w.pods1[0][0], b.w.pods1[1][0], b.w.pods1[2][0]}
}

// seenOutside is what an end outside of the VPC has to see of a pod of n1.
func (b *builder) seenOutside(pod, to end) netip.Addr {
	switch {
	case b.s.SNAT == snatExternal && to == b.w.internet:
		return fabric.NATAddr
	case b.s.IPv6, b.s.SNAT == snatExternal, b.s.SNAT == snatExcluded && to == b.w.onPrem:
		return pod.addr
	default:
		return b.w.n1.addr
	}
}

func (b *builder) inside() {
	w := b.w
	for _, from := range b.asking() {
		for device := range maxENIs {
			path := "pod → pod, other ENI"
			if from == w.pods1[device][0] {
				path = "pod → pod, same ENI"
			}
			b.add(path, from, w.pods1[device][1], from.addr)
		}
		for _, to := range []end{w.pods2[0][0], w.pods2[1][0]} {
			b.add("pod → pod, other node", from, to, from.addr)
			b.add("pod → pod, from other node", to, from, to.addr)
		}
		for _, to := range []end{w.pods3[0][0], w.pods3[1][0]} {
			b.add("pod → pod, other subnet", from, to, from.addr)
			b.add("pod → pod, from other subnet", to, from, to.addr)
		}
		b.add("node → pod", w.n1, from, w.n1.addr)
		b.add("node → pod", w.n2, from, w.n2.addr)
		b.add("node → pod", w.n3, from, w.n3.addr)
		b.add("pod → node", from, w.n1, from.addr)
		b.add("pod → node", from, w.n2, from.addr)
		b.add("pod → node", from, w.n3, from.addr)
		b.to("pod → node", "n1's eth1 address", from, netip.AddrPortFrom(w.own[1], probePort), w.n1.name, from.addr)
	}
	own := netip.AddrPortFrom(w.onPrem.addr, probePort)
	b.to("node → on-prem, from eth1's address", w.onPrem.label, w.n1, own, w.onPrem.name, w.own[1]).bind = w.own[1]
	b.to("node → node", "n1's eth1 address", w.n2, netip.AddrPortFrom(w.own[1], probePort), w.n1.name, w.n2.addr)
}

func (b *builder) outside() {
	w := b.w
	for _, pod := range b.asking() {
		b.add("pod → internet", pod, w.internet, b.seenOutside(pod, w.internet))
		b.add("pod → on-prem", pod, w.onPrem, b.seenOutside(pod, w.onPrem))
		b.add("on-prem → pod", w.onPrem, pod, w.onPrem.addr)
		b.add("load balancer → pod, IP mode, client kept", w.client, pod, w.client.addr)
		b.add("load balancer → pod, IP mode, client not kept", w.lb, pod, w.lb.addr)
	}
}

func (b *builder) linkLocal() {
	w := b.w
	for _, pod := range b.asking() {
		imds := w.n1.addr
		if b.s.IPv6 || b.s.SNAT == snatExternal {
			imds = pod.addr
		}
		b.add("pod → IMDS", pod, w.imds, imds)
		b.to("pod → VPC DNS", "VPC DNS", pod, netip.AddrPortFrom(w.dns, dnsPort), routerName, pod.addr)
		b.to("pod → NodeLocal DNS", "NodeLocal DNS", pod, netip.AddrPortFrom(w.nodeLocal, dnsPort), w.n1.name, pod.addr)
		b.to("169.254.7.127 → pod", pod.label, w.n1, netip.AddrPortFrom(pod.addr, istioPort), pod.name, w.istio)
	}
}

// needPublic keeps what the internet cannot reach from running.
func (b *builder) needPublic(c *cell) {
	if c.from == b.w.internet && !b.s.public() {
		c.cannot = "the node is in a private subnet: nothing in the internet can connect to it"
	}
}

func (b *builder) hostPorts() {
	w := b.w
	for _, pod := range b.asking() {
		port := uint16(w.hostPorts[pod.name])
		for _, from := range []end{w.internet, w.onPrem, w.client, w.n2, w.pods2[1][0], w.pods1[0][1], w.pods1[1][1]} {
			b.needPublic(b.to("hostPort", "n1:hostPort → "+pod.label, from, netip.AddrPortFrom(w.n1.addr, port), pod.name, from.addr))
		}
	}
}

// needProxy keeps what kube-proxy does from running where there is none.
func (b *builder) needProxy(c *cell) {
	if b.s.Proxy == proxyNone {
		c.cannot = "no kube-proxy: nobody translates the Service's address"
	}
}

func (b *builder) clusterIPs() {
	w := b.w
	for _, svc := range w.services() {
		if svc.local {
			continue
		}
		to := netip.AddrPortFrom(svc.clusters, servicePort)
		path := "→ ClusterIP, " + svc.where + " endpoint"
		for _, from := range b.asking() {
			source := from.addr
			if svc.where == "external" {
				source = b.seenOutside(from, svc.endpoint)
			}
			b.needProxy(b.to(path, "Service → "+svc.endpoint.label, from, to, svc.endpoint.name, source))
		}
		host := w.n1.addr
		if svc.endpoint == w.internet && b.s.SNAT == snatExternal {
			host = fabric.NATAddr
		}
		b.needProxy(b.to(path, "Service → "+svc.endpoint.label, w.n1, to, svc.endpoint.name, host))
		// What comes back to the pod that asked has to have another source, or the pod would answer itself.
		if svc.node == "n1" {
			b.needProxy(b.to(path, "Service → itself", svc.endpoint, to, svc.endpoint.name, w.n1.addr))
		}
	}
}

func (b *builder) nodePorts() {
	w := b.w
	for _, svc := range w.services() {
		policy, path := "Cluster", "→ NodePort Cluster"
		if svc.local {
			policy, path = "Local", "→ NodePort Local"
		}
		if svc.where == "external" {
			continue
		}
		asking := b.asking()
		clients := []end{w.internet, w.onPrem, w.client, w.n2, w.pods2[1][0]}
		if !svc.local {
			clients = append(clients, asking...)
		}
		for _, from := range clients {
			source := w.n1.addr
			if svc.local {
				source = from.addr
			}
			// kube-proxy masquerades as the link that a packet leaves by, and a pod's leave by its own ENI.
			if device := slices.Index(asking, from); device >= 0 && svc.where == "remote" {
				source = w.own[device]
			}
			for _, at := range []struct {
				name string
				addr netip.Addr
			}{{"n1", w.n1.addr}, {"n1's eth1 address", w.own[1]}} {
				what := fmt.Sprintf("%s:NodePort (%s) → %s", at.name, policy, svc.endpoint.label)
				c := b.to(path, what, from, netip.AddrPortFrom(at.addr, uint16(svc.nodePort)), svc.endpoint.name, source)
				b.needPublic(c)
				if at.addr == w.own[1] && from == w.internet && !b.s.IPv6 && c.cannot == "" {
					c.cannot = "a secondary ENI has no public address"
				}
				if at.addr == w.own[1] && b.s.Layout == layoutPerPod && slices.Contains(w.pods1[2], svc.endpoint) {
					c.cannot = "with rules of its own a pod answers by its own ENI, not by the one that was asked; as with amazon-vpc-cni-k8s"
				}
				b.needProxy(c)
			}
		}
	}
}
