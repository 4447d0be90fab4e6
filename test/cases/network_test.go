package cases

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
	"vpccni/pkg/networkutils/names"
	"vpccni/test/upstream"
)

// bare is a node without pods, whose settings change.
var bare = newShared(cluster.Spec{
	Name: "cases", Nodes: []cluster.NodeSpec{{Name: "n1", Type: "t3.medium"}},
	Env: map[string]string{"POD_RULE_LAYOUT": "per-pod", "IP_COOLDOWN_PERIOD": "1"},
}, 0)

// two are nodes in two zones with pods on the primary ENI and on a secondary one.
var two = newShared(cluster.Spec{
	Name: "cases", Nodes: []cluster.NodeSpec{{Name: "n1", Type: "t3.medium"}, {Name: "n2", Type: "t3.medium"}},
	Env: map[string]string{"POD_RULE_LAYOUT": "per-pod", "IP_COOLDOWN_PERIOD": "5"},
}, 7)

func hostNetworking(t *testing.T) { hostNetworkingWith(t, nil, "eni", 9001) }

func changedMTU(t *testing.T) {
	hostNetworkingWith(t, map[string]string{"AWS_VPC_K8S_CNI_VETHPREFIX": "vet", "AWS_VPC_ENI_MTU": "1300"}, "vet", 1300)
}

func changedPodMTU(t *testing.T) {
	hostNetworkingWith(t, map[string]string{"AWS_VPC_K8S_CNI_VETHPREFIX": "vet", "AWS_VPC_ENI_MTU": "1300", "POD_MTU": "1280"}, "vet", 1280)
}

// hostNetworkingWith has upstream's tester look at pods on both ENIs, and at what is left of them.
func hostNetworkingWith(t *testing.T, env map[string]string, prefix string, mtu int) {
	t.Helper()
	l := bare.use(t)
	n := l.Nodes()[0]
	if env != nil {
		withEnv(t, l, n, env)
	}
	// Ten fit on the secondary ENIs.
	pods, remove := deploy(t, l, "n1", "host", 12)
	var list []upstream.HostPod
	on := map[bool]int{}
	for _, p := range pods {
		list = append(list, hostPod(l, p, prefix, mtu))
		on[list[len(list)-1].Secondary]++
	}
	if on[false] < 2 || on[true] < 2 {
		t.Fatalf("%d pods on the primary ENI, %d on secondary ones", on[false], on[true])
	}
	for _, p := range list {
		if err := n.OS().Do(func() error { return upstream.CheckSetUp(p) }); err != nil {
			t.Error(err)
		}
	}
	remove()
	for _, p := range list {
		eventually(t, "nothing is left of a pod", func() error {
			return n.OS().Do(func() error { return upstream.CheckTornDown(p) })
		})
	}
}

func testerFails(t *testing.T) {
	l := bare.use(t)
	n := l.Nodes()[0]
	pods, _ := deploy(t, l, "n1", "self", 1)
	good := hostPod(l, pods[0], "eni", 9001)
	wrongAddress, wrongPod, wrongMTU := good, good, good
	wrongAddress.Address = netip.MustParseAddr("1.1.1.1")
	wrongPod.Veth = names.HostVeth("eni", "different", pods[0].Name, 0)
	wrongMTU.MTU = 1500
	for what, check := range map[string]func() error{
		"another address":    func() error { return upstream.CheckSetUp(wrongAddress) },
		"another pod":        func() error { return upstream.CheckSetUp(wrongPod) },
		"another MTU":        func() error { return upstream.CheckSetUp(wrongMTU) },
		"a running pod":      func() error { return upstream.CheckTornDown(good) },
		"its address":        func() error { g := good; g.Veth = "enigone"; return upstream.CheckTornDown(g) },
		"its veth":           func() error { g := wrongAddress; return upstream.CheckTornDown(g) },
		"nothing (must not)": func() error { return not(upstream.CheckSetUp(good)) },
	} {
		if err := n.OS().Do(check); err == nil {
			t.Errorf("the tester finds nothing wrong with %s", what)
		}
	}
}

func not(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return nil
}

// placement is a client and a server.
type placement struct {
	name     string
	from, to cluster.Pod
}

// placements are upstream's six.
func placements(t *testing.T, l *cluster.Cluster) []placement {
	t.Helper()
	find := func(node string, secondary bool) (pods []cluster.Pod) {
		n, err := l.Node(node)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range l.Pods(node) {
			if (device(l, n, p.Address) > 0) == secondary {
				pods = append(pods, p)
			}
		}
		if len(pods) < 2 {
			t.Fatalf("%d pods on %s, secondary: %t", len(pods), node, secondary)
		}
		return pods
	}
	primary1, secondary1, primary2, secondary2 := find("n1", false), find("n1", true), find("n2", false), find("n2", true)
	return []placement{
		{"same node, primary → primary", primary1[0], primary1[1]},
		{"same node, primary → secondary", primary1[0], secondary1[0]},
		{"same node, secondary → secondary", secondary1[0], secondary1[1]},
		{"other node, primary → primary", primary1[0], primary2[0]},
		{"other node, primary → secondary", primary1[0], secondary2[0]},
		{"other node, secondary → secondary", secondary1[0], secondary2[0]},
	}
}

func icmp(t *testing.T) {
	l := two.use(t)
	for _, p := range placements(t, l) {
		for i := range 5 {
			if err := echo(podDo(l, p.from), p.to.Address, uint16(i)); err != nil {
				t.Errorf("%s: packet %d: %v", p.name, i+1, err)
			}
		}
	}
}

// echo sends one ICMP echo request and waits for the reply.
func echo(do probe.Do, to netip.Addr, number uint16) error {
	var conn *net.IPConn
	if err := do(func() (err error) {
		conn, err = net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: to.AsSlice()})
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	const id = 2273
	request := []byte{8, 0, 0, 0, 0, 0, 0, 0, 'v', 'p', 'c', 'c'}
	binary.BigEndian.PutUint16(request[4:], id)
	binary.BigEndian.PutUint16(request[6:], number)
	var sum uint32
	for i := 0; i < len(request); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(request[i:]))
	}
	binary.BigEndian.PutUint16(request[2:], ^uint16(sum+sum>>16))
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	reply := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(reply) // without the header, which Read would leave
		if err != nil {
			return err
		}
		if n >= 8 && reply[0] == 0 && binary.BigEndian.Uint16(reply[4:]) == id && binary.BigEndian.Uint16(reply[6:]) == number {
			return nil
		}
	}
}

func tcp(t *testing.T) { eachPlacement(t, probe.TCP) }
func udp(t *testing.T) { eachPlacement(t, probe.UDP) }

func soak(t *testing.T) {
	for range 12 {
		if !t.Run("", func(t *testing.T) { eachPlacement(t, probe.TCP) }) {
			return
		}
	}
}

func eachPlacement(t *testing.T, ask asking) {
	t.Helper()
	l := two.use(t)
	for _, p := range placements(t, l) {
		a, err := ask(t.Context(), podDo(l, p.from), netip.AddrPortFrom(p.to.Address, port), 100, patient)
		if err != nil || a.Server != p.to.Name || a.Source != p.from.Address {
			t.Errorf("%s: %s answers and sees %s, %v", p.name, a.Server, a.Source, err)
		}
		// Refused at once, or else not answered.
		if a, err := ask(t.Context(), podDo(l, p.from), netip.AddrPortFrom(p.to.Address, wrongPort), 100, probe.Timeout(5*time.Second)); err == nil {
			t.Errorf("%s: %s answers at the wrong port", p.name, a.Server)
		}
	}
}

// macIsSet: udev's policy, whichever it is, changes addresses that the kernel made up, and no others.
func macIsSet(t *testing.T) {
	l := two.use(t)
	internet, err := probe.Serve(t.Context(), "internet", func(f func() error) error { return l.Fabric().Do(fabric.HostInternet, f) }, port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = internet.Close() }()
	pods, _ := deploy(t, l, "n1", "udev", 1)
	veth := names.HostVeth("eni", namespace, pods[0].Name, 0)
	out, err := l.Nodes()[0].OS().Command(t.Context(), "cat", "/sys/class/net/"+veth+"/addr_assign_type").CombinedOutput()
	if strings.TrimSpace(string(out)) != "3" {
		t.Errorf("addr_assign_type of %s is %s (%v), want 3: set", veth, out, err)
	}
	if a, err := probe.TCP(t.Context(), podDo(l, pods[0]), netip.AddrPortFrom(fabric.InternetAddr, port), 100, patient); err != nil || a.Server != "internet" {
		t.Errorf("the internet says %+v, %v", a, err)
	}
}

func zones(t *testing.T) {
	l := two.use(t)
	have := map[string]bool{}
	for _, n := range l.Nodes() {
		have[zoneOf(l, n)] = true
	}
	for _, s := range l.Spec().Subnets {
		if !have[s.Zone] {
			t.Errorf("no node in zone %s", s.Zone)
		}
	}
}

func zoneOf(l *cluster.Cluster, n *cluster.Node) string {
	for _, s := range l.Spec().Subnets {
		if s.Name == n.Subnet() {
			return s.Zone
		}
	}
	return ""
}

func betweenZones(t *testing.T) {
	l := two.use(t)
	if a, b := zoneOf(l, l.Nodes()[0]), zoneOf(l, l.Nodes()[1]); a == b {
		t.Fatalf("both nodes are in zone %s", a)
	}
	for _, from := range l.Pods("n1") {
		for _, to := range l.Pods("n2") {
			for _, way := range []placement{{"there", from, to}, {"back", to, from}} {
				a, err := probe.TCP(t.Context(), podDo(l, way.from), netip.AddrPortFrom(way.to.Address, port), 100, patient)
				if err != nil || a.Source != way.from.Address {
					t.Errorf("%s → %s: sees %s, %v", way.from.Name, way.to.Name, a.Source, err)
				}
			}
		}
	}
}
