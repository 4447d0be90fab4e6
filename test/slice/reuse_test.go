package slice

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/lab/node"
	"vpccni/lab/probe"
)

var stuckFlag = flag.Int("stuck-clients", 20, "clients of each test of an address's reuse")

const (
	// serviceAddr is what the node's own rules translate to a pod, as kube-proxy's do.
	serviceAddr = "10.96.0.10"
	servicePort = 80
	// stuckAtOnce is how many clients wait at the same time, on the same node and on another one: there each is a pod, as
	// the kernel sends one address no more than about one ICMP error a second.
	stuckAtOnce       = 100
	stuckAtOnceRemote = 40
	// stuckFor is how long a client keeps trying: its SYN goes out at 0, 1, 3 and 7 s.
	stuckFor = 10 * time.Second
)

// TestReuseBesideStuckClients: clients wait for an answer of a Service's pod that has stopped to answer. The pod is
// deleted, the Service has another endpoint, and the next pod, which has the pod's address at once and listens on its
// port, hears of none of them.
func TestReuseBesideStuckClients(t *testing.T) {
	t.Parallel()
	r := newReuse(t, "n1", map[string]string{"IP_COOLDOWN_PERIOD": "0"})
	for i := range 3 {
		r.places = append(r.places, podDo(r.lab, r.lab.Pods("n1")[1+i]))
	}
	r.places = append(r.places, r.clients.OS().Do)
	answers := r.attempts(stuckAtOnce)
	t.Logf("%d clients of the same node: %v", *stuckFlag, answers)
	if answers["next"] > 0 {
		t.Errorf("%d of %d clients were taken to the address's next owner", answers["next"], *stuckFlag)
	}
}

// TestReuseBesideStuckRemoteClients reports how many clients of another node are taken to the wrong pod: that node has the
// connections, and this one cannot make it forget them. A cooldown helps, for what they send meanwhile is answered by ICMP,
// which ends them; whether they send anything is a matter of time, so nothing is wanted of the figures.
func TestReuseBesideStuckRemoteClients(t *testing.T) {
	t.Parallel()
	for _, cooldown := range []string{"0", "4"} {
		t.Run("cooldown "+cooldown, func(t *testing.T) {
			t.Parallel()
			r := newReuse(t, "n2", map[string]string{"IP_COOLDOWN_PERIOD": cooldown})
			for i := range min(stuckAtOnceRemote, *stuckFlag) {
				p, err := r.lab.PodAdd(t.Context(), "n2", namespace, podName(i))
				if err != nil {
					t.Fatal(err)
				}
				r.places = append(r.places, podDo(r.lab, p))
			}
			answers := r.attempts(stuckAtOnceRemote)
			t.Logf("%d clients of another node, cooldown %s s: %v; %.0f%% were taken to the next owner", *stuckFlag, cooldown, answers,
				100*float64(answers["next"])/float64(*stuckFlag))
		})
	}
}

// reuse is a node whose last free address goes from pod to pod, and a node with clients.
type reuse struct {
	t       *testing.T
	lab     *cluster.Cluster
	clients *cluster.Node
	other   cluster.Pod // the Service's other endpoint
	owner   cluster.Pod // who has the address now
	owners  int
	places  []probe.Do // where clients are
}

func newReuse(t *testing.T, clients string, env map[string]string) *reuse {
	t.Helper()
	env["MAX_ENI"] = "1"
	l := lab(t, cluster.Spec{
		Nodes: []cluster.NodeSpec{{Name: "n1", Type: "t3.medium", Env: env}, {Name: "n2", Type: "m5.xlarge"}},
	})
	r := &reuse{t: t, lab: l}
	var err error
	if r.clients, err = l.Node(clients); err != nil {
		t.Fatal(err)
	}
	for i := range 4 { // of five
		if _, err := l.PodAdd(t.Context(), "n1", namespace, fmt.Sprintf("beside%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	r.other = l.Pods("n1")[0]
	serve(t, "other", podDo(l, r.other), probePort)
	r.service(r.other)
	r.next()
	return r
}

// next makes the pod that gets the address.
func (r *reuse) next() {
	r.t.Helper()
	r.owners++
	before := r.owner
	var err error
	// An ADD that finds none waits for the address.
	if r.owner, err = r.lab.PodAdd(r.t.Context(), "n1", namespace, fmt.Sprintf("owner%d", r.owners)); err != nil {
		r.t.Fatal(err)
	}
	if before.Address.IsValid() && r.owner.Address != before.Address {
		r.t.Fatalf("the next pod has %s, not %s", r.owner.Address, before.Address)
	}
}

// service has the clients' node translate the Service's address to a pod's.
func (r *reuse) service(to cluster.Pod) {
	r.t.Helper()
	var rules strings.Builder
	rules.WriteString("add table ip services\nflush table ip services\n")
	for _, hook := range []string{"prerouting", "output"} {
		fmt.Fprintf(&rules, "add chain ip services %s { type nat hook %s priority -100; }\n", hook, hook)
		fmt.Fprintf(&rules, "add rule ip services %s ip daddr %s tcp dport %d dnat to %s:%d\n", hook, serviceAddr, servicePort, to.Address, probePort)
	}
	command(r.t, r.clients.OS().Command(r.t.Context(), "nft", "-f", "-"), rules.String())
}

func command(t *testing.T, cmd *node.Cmd, stdin string) {
	t.Helper()
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// attempts gets all clients stuck, so many at once.
func (r *reuse) attempts(atOnce int) map[string]int {
	answers := map[string]int{}
	for done := 0; done < *stuckFlag && !r.t.Failed(); done += atOnce {
		for who, n := range r.attempt(min(atOnce, *stuckFlag-done)) {
			answers[who] += n
		}
	}
	return answers
}

// attempt gets n clients stuck, gives the address to the next pod, and counts who answered them; "" is nobody.
func (r *reuse) attempt(n int) map[string]int {
	t, old := r.t, r.owner
	t.Helper()
	mute, err := r.lab.PodCommand(t.Context(), old.Node, old.Namespace, old.Name, "nft", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	command(t, mute, "table ip mute { chain in { type filter hook input priority 0; policy drop; }; }")
	r.service(old)

	answers := map[string]int{}
	var mu sync.Mutex
	var clients sync.WaitGroup
	for i := range n {
		do := r.places[i%len(r.places)]
		clients.Go(func() {
			who := ask(do)
			mu.Lock()
			defer mu.Unlock()
			answers[who]++
		})
	}
	eventually(t, 30*time.Second, "all clients wait", func() bool { return r.waiting(old.Address) >= n })
	// Some of them have just sent, some are about to.
	timer := time.NewTimer(time.Duration(rand.Int64N(int64(900 * time.Millisecond))))
	defer timer.Stop()
	<-timer.C

	r.service(r.other)
	if err := r.lab.PodDel(t.Context(), old.Node, old.Namespace, old.Name); err != nil {
		t.Fatal(err)
	}
	r.next()
	server, err := probe.Serve(t.Context(), "next", podDo(r.lab, r.owner), probePort)
	if err != nil {
		t.Fatal(err)
	}
	clients.Wait()
	_ = server.Close()
	return answers
}

// ask connects to the Service and says who answered, or how it ended.
func ask(do probe.Do) string {
	ctx, cancel := context.WithTimeout(context.Background(), stuckFor)
	defer cancel()
	var conn net.Conn
	err := do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", serviceAddr, servicePort))
		return err
	})
	switch {
	case errors.Is(err, unix.EHOSTUNREACH):
		return "unreachable"
	case errors.Is(err, unix.ECONNREFUSED):
		return "next" // the probe's port is the next owner's before it listens
	case err != nil:
		return "nobody"
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(stuckFor))
	line, _ := bufio.NewReader(conn).ReadString('\n')
	name, _, _ := strings.Cut(line, " ")
	return cmp.Or(name, "somebody")
}

// waiting counts the connections to an address without an answer, in the tables of the clients' node.
func (r *reuse) waiting(addr netip.Addr) (n int) {
	ns, err := r.clients.OS().NetNS()
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	h, err := handleAt(ns)
	if err != nil {
		r.t.Fatal(err)
	}
	defer h.Close()
	flows, err := h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range flows {
		if src, _ := netip.AddrFromSlice(f.Reverse.SrcIP); src.Unmap() == addr && f.Forward.DstIP.String() == serviceAddr {
			n++
		}
	}
	return n
}
