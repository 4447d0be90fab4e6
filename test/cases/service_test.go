package cases

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
)

const (
	serviceIP      = "172.20.0.10"
	servicePort    = 80
	serviceNode    = 30443
	wrongService   = 81
	wrongNodePort  = 30444
	kubeProxyTable = "kube-proxy-by-hand"
)

// service lays down on every node what kube-proxy does for one Service with these endpoints.
func service(t *testing.T, l *cluster.Cluster, endpoints []cluster.Pod) {
	t.Helper()
	var backends []string
	for i, p := range endpoints {
		backends = append(backends, fmt.Sprintf("%d : %s . %d", i, p.Address, port))
	}
	to := fmt.Sprintf("dnat ip to numgen random mod %d map { %s }", len(endpoints), strings.Join(backends, ", "))
	script := fmt.Sprintf(`nft -f - <<'END'
table ip %[1]s {
	chain services {
		ip daddr %[2]s tcp dport %[3]d %[5]s
		fib daddr type local tcp dport %[4]d meta mark set meta mark | 0x4000 %[5]s
	}
	chain prerouting { type nat hook prerouting priority dstnat; jump services; }
	chain output { type nat hook output priority -100; jump services; }
	chain postrouting {
		type nat hook postrouting priority srcnat;
		meta mark & 0x4000 == 0 return
		meta mark set meta mark ^ 0x4000
		masquerade fully-random
	}
}
END`, kubeProxyTable, serviceIP, servicePort, serviceNode, to)
	for _, n := range l.Nodes() {
		if out, err := n.OS().Command(t.Context(), "sh", "-e", "-c", script).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// halves are every second pod of each ENI, and the others: a pod does not ask itself, which takes a masquerade more.
func halves(l *cluster.Cluster) (endpoints, clients []cluster.Pod) {
	for _, n := range l.Nodes() {
		seen := map[int]int{}
		for _, p := range l.Pods(n.Name) {
			d := device(l, n, p.Address)
			if seen[d]++; seen[d]%2 == 0 {
				endpoints = append(endpoints, p)
			} else {
				clients = append(clients, p)
			}
		}
	}
	return endpoints, clients
}

func clusterIP(t *testing.T) {
	l := two.use(t)
	endpoints, clients := halves(l)
	service(t, l, endpoints)
	defer removeService(t, l)
	for _, from := range clients {
		for range 5 {
			ask(t, from.Name+" → ClusterIP", podDo(l, from), netip.AddrPortFrom(netip.MustParseAddr(serviceIP), servicePort), endpoints)
		}
	}
	for _, n := range l.Nodes() {
		ask(t, n.Name+" → ClusterIP", nodeDo(n), netip.AddrPortFrom(netip.MustParseAddr(serviceIP), servicePort), endpoints)
	}
	refused(t, podDo(l, clients[0]), netip.AddrPortFrom(netip.MustParseAddr(serviceIP), wrongService))
	for _, n := range l.Nodes() {
		if enis := len(l.Cloud().ENIsOf(n.InstanceID)); enis > 3 {
			t.Errorf("%s has %d ENIs", n.Name, enis)
		}
	}
}

func nodePort(t *testing.T) {
	l := two.use(t)
	endpoints, _ := halves(l)
	service(t, l, endpoints)
	defer removeService(t, l)
	onPrem := func(f func() error) error { return l.Fabric().Do(fabric.HostOnPrem, f) }
	for _, n := range l.Nodes() {
		for range 20 {
			ask(t, "on-prem → NodePort of "+n.Name, onPrem, netip.AddrPortFrom(n.Address, serviceNode), endpoints)
		}
		ask(t, "NodePort of "+n.Name+" → itself", nodeDo(n), netip.AddrPortFrom(n.Address, serviceNode), endpoints)
		for _, other := range l.Nodes() {
			ask(t, other.Name+" → NodePort of "+n.Name, nodeDo(other), netip.AddrPortFrom(n.Address, serviceNode), endpoints)
		}
		refused(t, onPrem, netip.AddrPortFrom(n.Address, wrongNodePort))
	}
}

// ask wants any of the endpoints to answer.
func ask(t *testing.T, what string, from probe.Do, to netip.AddrPort, endpoints []cluster.Pod) {
	t.Helper()
	a, err := probe.TCP(t.Context(), from, to, 1000, patient)
	for _, p := range endpoints {
		if err == nil && a.Server == p.Name {
			return
		}
	}
	t.Errorf("%s: %q answers, %v", what, a.Server, err)
}

func refused(t *testing.T, from probe.Do, to netip.AddrPort) {
	t.Helper()
	if a, err := probe.TCP(t.Context(), from, to, 100, probe.Timeout(3*time.Second)); err == nil {
		t.Errorf("%s answers at %s", a.Server, to)
	}
}

func removeService(t *testing.T, l *cluster.Cluster) {
	t.Helper()
	for _, n := range l.Nodes() {
		if out, err := n.OS().Command(t.Context(), "nft", "delete", "table", "ip", kubeProxyTable).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}
