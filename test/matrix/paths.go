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

// Addresses of what stands around the nodes.
var (
	lbHost     = fabric.Host("lb")     // a load balancer's own address in the VPC: the client's is not kept
	clientHost = fabric.Host("client") // a client behind a load balancer that keeps its address
	lbAddr     = netip.MustParseAddr("10.0.9.9")
	clientAddr = netip.MustParseAddr("198.18.0.7")

	nodeLocalDNS = netip.MustParseAddr("169.254.20.10")
	istioAddr    = netip.MustParseAddr("169.254.7.127")

	excludedCIDR = netip.PrefixFrom(fabric.OnPremAddr, 24).Masked()
)

// end is something that asks or answers.
type end struct {
	name  string // unique; what its server says
	label string // for people: pod@eth1
	addr  netip.Addr
}

// world is who is where, as far as the paths need it.
type world struct {
	n1, n2, n3 end
	// Pods by the ENI that their address is on: [device][i].
	pods1, pods2, pods3 map[int][]end
	own                 map[int]netip.Addr // n1's own addresses on its ENIs
	hostPorts           map[string]int     // by pod's name
	dns                 netip.Addr         // the VPC's resolver
}

func (w world) ends() []end {
	list := []end{w.n1, w.n2, w.n3, internet, onPrem, loadBalancer, client, router}
	for _, pods := range []map[int][]end{w.pods1, w.pods2, w.pods3} {
		for device := range maxENIs {
			list = append(list, pods[device]...)
		}
	}
	return list
}

var (
	internet     = end{"internet", "internet", fabric.InternetAddr}
	onPrem       = end{"onprem", "on-prem", fabric.OnPremAddr}
	loadBalancer = end{"lb", "load balancer", lbAddr}
	client       = end{"client", "client of a load balancer", clientAddr}
	router       = end{"vpc", "VPC", fabric.IMDSAddr}
)

// cell is one check: from an end to an address, who has to answer, and as whom the asker has to be seen.
type cell struct {
	Path, Name string
	from       end
	to         netip.AddrPort
	server     string
	source     netip.Addr
	cannot     string // why it cannot run in this set-up
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
		i := len(list)
		list = append(list, service{
			name:     fmt.Sprintf("svc%d", i+1),
			clusters: netip.AddrFrom4([4]byte{172, 20, 1, byte(i + 1)}),
			nodePort: firstNodePort + i, local: local, endpoint: endpoint, node: node, where: where,
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
	add(internet, "", "external", false)
	add(onPrem, "", "external", false)
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
	case b.s.SNAT == snatExternal && to == internet:
		return fabric.NATAddr
	case b.s.SNAT == snatExternal, b.s.SNAT == snatExcluded && to == onPrem:
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
	b.to("node → node", "n1's eth1 address", w.n2, netip.AddrPortFrom(w.own[1], probePort), w.n1.name, w.n2.addr)
}

func (b *builder) outside() {
	for _, pod := range b.asking() {
		b.add("pod → internet", pod, internet, b.seenOutside(pod, internet))
		b.add("pod → on-prem", pod, onPrem, b.seenOutside(pod, onPrem))
		b.add("on-prem → pod", onPrem, pod, onPrem.addr)
		b.add("load balancer → pod, IP mode, client kept", client, pod, client.addr)
		b.add("load balancer → pod, IP mode, client not kept", loadBalancer, pod, loadBalancer.addr)
	}
}

func (b *builder) linkLocal() {
	w := b.w
	for _, pod := range b.asking() {
		imds := w.n1.addr
		if b.s.SNAT == snatExternal {
			imds = pod.addr
		}
		b.add("pod → IMDS", pod, end{router.name, "IMDS", fabric.IMDSAddr}, imds)
		b.to("pod → VPC DNS", "VPC DNS", pod, netip.AddrPortFrom(w.dns, dnsPort), router.name, pod.addr)
		b.to("pod → NodeLocal DNS", nodeLocalDNS.String(), pod, netip.AddrPortFrom(nodeLocalDNS, dnsPort), w.n1.name, pod.addr)
		b.to("169.254.7.127 → pod", pod.label, w.n1, netip.AddrPortFrom(pod.addr, istioPort), pod.name, istioAddr)
	}
}

// needPublic keeps what the internet cannot reach from running.
func (b *builder) needPublic(c *cell) {
	if c.from == internet && !b.s.public() {
		c.cannot = "the node is in a private subnet: nothing in the internet can connect to it"
	}
}

func (b *builder) hostPorts() {
	w := b.w
	for _, pod := range b.asking() {
		port := uint16(w.hostPorts[pod.name])
		for _, from := range []end{internet, onPrem, client, w.n2, w.pods2[1][0], w.pods1[0][1], w.pods1[1][1]} {
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
		if svc.endpoint == internet && b.s.SNAT == snatExternal {
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
		clients := []end{internet, onPrem, client, w.n2, w.pods2[1][0]}
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
				if at.addr == w.own[1] && from == internet && c.cannot == "" {
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
