package slice

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
	"vpccni/test/upstream"
)

// TestTakeOverChaos: a node with running pods goes to amazon-vpc-cni-k8s and back, with the state of each of its versions, and
// both in order (handback) and without warning (ipamd is killed, and the other one starts over what it left). Open
// connections live on, pods that the other one starts work, also with an address that has changed its ENI; after every
// step the host's state is that of a golden file, and in the end nothing of either is left but what a node without pods
// has. CHAOS=1 has 50 pods and every version twice in both ways, and wants no pod to lose more than a second each time.
func TestTakeOverChaos(t *testing.T) {
	t.Parallel()
	chaos := os.Getenv("CHAOS") != ""
	// The pool has four addresses more than there are pods and is not full, so that addresses can move.
	node, pods, perENI, pool := cluster.NodeSpec{Name: "n1", Type: "t3.medium"}, 9, 5, 13
	rounds := []round{{upstream.V119, true}, {upstream.V122, false}, {upstream.V123, true}, {upstream.V123, false}}
	if chaos {
		node.Type, pods, perENI, pool = "m5.xlarge", 50, 14, 54
		rounds = nil
		for range 2 {
			for _, v := range upstream.Versions {
				rounds = append(rounds, round{v, true}, round{v, false})
			}
		}
	}
	l := lab(t, cluster.Spec{
		Nodes:       []cluster.NodeSpec{node, {Name: "n2", Type: "t3.medium"}},
		AttachDelay: 100 * time.Millisecond, DetachDelay: 100 * time.Millisecond,
		Env: map[string]string{"WARM_IP_TARGET": "3", "MINIMUM_IP_TARGET": fmt.Sprint(pool), "POOL_SHRINK_DELAY": "3600", "IP_COOLDOWN_PERIOD": "1"},
	})
	r := &takeOver{t: t, l: l, n: l.Nodes()[0]}
	r.other = &otherCNI{t: t, l: l, n: r.n, perENI: perENI}
	eventually(t, time.Minute, "the pool is full", func() bool {
		addresses := 0
		for _, e := range attachedENIs(l, r.n) {
			addresses += len(e.Secondary)
		}
		return addresses == pool
	})
	for i, err := range burst(t.Context(), l, pods) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	peer, err := l.PodAdd(t.Context(), "n2", namespace, "peer")
	if err != nil {
		t.Fatal(err)
	}
	r.open(peer)
	goldenState(t, l, r.n, "takeover-ours")
	for _, round := range rounds {
		t.Logf("%s, handback: %t", round.version, round.orderly)
		r.away(round, peer)
		r.back(round, peer)
		checkDrops(t, l)
	}
	r.close(chaos)
	checkHolders(t, l, r.n)
	for _, p := range l.Pods("n1") {
		if err := l.PodDel(t.Context(), "n1", namespace, p.Name); err != nil {
			t.Fatal(err)
		}
	}
	goldenState(t, l, r.n, "takeover-no-pods")
}

// round is one time there and back.
type round struct {
	version upstream.Version
	orderly bool // with handback
}

// takeOver is a node whose CNI changes, with flows of its pods.
type takeOver struct {
	t       *testing.T
	l       *cluster.Cluster
	n       *cluster.Node
	other   *otherCNI
	flows   []*flow
	streams []*stream
	// changes are the times of a change, in numbers of datagrams.
	changes []change
}

type change struct {
	what     string
	from, to []int // by stream
}

// open gives every pod a connection and a stream of datagrams: to the internet, to the peer and from it, in turn.
func (r *takeOver) open(peer cluster.Pod) {
	r.t.Helper()
	serve(r.t, "internet", hostDo(r.l, fabric.HostInternet), flowPort)
	serve(r.t, "peer", podDo(r.l, peer), flowPort)
	for i, p := range r.l.Pods("n1") {
		serve(r.t, p.Name, podDo(r.l, p), flowPort)
		paths := []path{
			{p.Name + " → internet", podDo(r.l, p), fabric.InternetAddr},
			{p.Name + " → peer", podDo(r.l, p), peer.Address},
			{"peer → " + p.Name, podDo(r.l, peer), p.Address},
		}
		connection, datagrams := paths[i%3], paths[(i+1)%3]
		r.flows = append(r.flows, openFlow(r.t, connection.name, connection.from, connection.to))
		r.streams = append(r.streams, openStream(r.t, datagrams.name, datagrams.from, datagrams.to))
	}
}

// during has the streams watch a change.
func (r *takeOver) during(what string, f func()) {
	r.t.Helper()
	c := change{what: what, from: r.next()}
	f()
	// What is under way at the end of the change belongs to it.
	end := r.next()
	eventually(r.t, time.Minute, "datagrams after the change", func() bool {
		c.to = r.next()
		for i := range c.to {
			if c.to[i] < end[i]+4 {
				return false
			}
		}
		return true
	})
	r.changes = append(r.changes, c)
}

func (r *takeOver) next() []int {
	list := make([]int, len(r.streams))
	for i, s := range r.streams {
		list[i] = s.next()
	}
	return list
}

// away hands the node to the other CNI, and tries that one's pods.
func (r *takeOver) away(round round, peer cluster.Pod) {
	r.t.Helper()
	v, state := round.version, "takeover-"+string(round.version)
	if !round.orderly {
		state += "-over-ours"
	}
	r.during(fmt.Sprintf("ours → %s, handback: %t", v, round.orderly), func() {
		if round.orderly {
			if err := r.n.StopIPAMD(r.t.Context()); err != nil {
				r.t.Fatal(err)
			}
			r.other.handBack(true)
			goldenState(r.t, r.l, r.n, "takeover-handed-back")
		} else {
			r.n.KillIPAMD()
		}
		checkDrops(r.t, r.l)
		// It takes every address off its ENIs when it starts, and with the last one the kernel takes the routes.
		r.other.start(v)
		if err := r.l.Fabric().ResetDrops(); err != nil {
			r.t.Fatal(err)
		}
		if round.orderly {
			r.other.handBack(false)
		}
	})
	goldenState(r.t, r.l, r.n, state)
	r.other.checkPod(v, peer, false)
	r.other.checkPod(v, peer, true)
	r.other.checkPaths(peer)
	goldenState(r.t, r.l, r.n, state)
}

// back takes the node over.
func (r *takeOver) back(round round, peer cluster.Pod) {
	r.t.Helper()
	r.during(fmt.Sprintf("%s → ours", round.version), func() {
		if err := r.n.StartIPAMD(r.t.Context()); err != nil {
			r.t.Fatal(err)
		}
		r.other.checkSwept()
	})
	r.other.checkPaths(peer)
	goldenState(r.t, r.l, r.n, "takeover-ours")
	pod, err := r.l.PodAdd(r.t.Context(), "n1", namespace, "new")
	if err != nil {
		r.t.Fatal(err)
	}
	// On a busy machine the kernel may not have heard yet that the new link has a carrier: TCP tries again.
	if _, err := probe.TCP(r.t.Context(), podDo(r.l, pod), netip.AddrPortFrom(peer.Address, flowPort), 100, patient); err != nil {
		r.t.Fatal(err)
	}
	reach(r.t, r.l, "new")
	if err := r.l.PodDel(r.t.Context(), "n1", namespace, "new"); err != nil {
		r.t.Fatal(err)
	}
}

// close ends the flows and says what they lost.
func (r *takeOver) close(strict bool) {
	r.t.Helper()
	for _, f := range r.flows {
		f.close(r.t)
	}
	for _, s := range r.streams {
		s.close()
	}
	var all []time.Duration
	for _, c := range r.changes {
		for i, s := range r.streams {
			if loss := s.loss(c.from[i], c.to[i]); loss > 2*streamPace {
				r.t.Logf("%s: %s lost %s, from %s on", c.what, s.name, loss, s.firstLoss(c.from[i], c.to[i]).Format("15:04:05.000"))
			}
		}
	}
	r.t.Logf("%-32s %8s %8s  pods that lost nothing", "loss per pod", "max", "p99")
	for _, c := range r.changes {
		var lost []time.Duration
		for i, s := range r.streams {
			loss := s.loss(c.from[i], c.to[i])
			lost = append(lost, loss)
			if strict && loss > time.Second {
				r.t.Errorf("%s: %s lost %s", c.what, s.name, loss)
			}
		}
		r.report(c.what, lost)
		all = append(all, lost...)
	}
	r.report(fmt.Sprintf("all %d changes", len(r.changes)), all)
}

func (r *takeOver) report(what string, lost []time.Duration) {
	slices.Sort(lost)
	none, _ := slices.BinarySearch(lost, time.Nanosecond)
	r.t.Logf("%-32s %8s %8s  %d of %d", what, lost[len(lost)-1].Round(time.Millisecond), lost[(len(lost)*99-1)/100].Round(time.Millisecond), none, len(lost))
}
