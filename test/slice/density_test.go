package slice

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
)

// TestHundredTenPodsByPrefixes: a t3.medium, which has 15 secondary addresses, runs the 110 pods that a kubelet takes.
// Each of them reaches a pod of another node and is reached by it, and reaches the internet.
func TestHundredTenPodsByPrefixes(t *testing.T) {
	t.Parallel()
	const pods = 110
	l := lab(t, cluster.Spec{
		Nodes: []cluster.NodeSpec{
			{Name: "n1", Type: "t3.medium", Env: map[string]string{"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}},
			{Name: "n2", Type: "t3.medium"},
		},
		AttachDelay: 500 * time.Millisecond, DetachDelay: 500 * time.Millisecond,
	})
	n := l.Nodes()[0]
	peer, err := l.PodAdd(t.Context(), "n2", namespace, "peer")
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	for i, err := range burst(t.Context(), l, pods) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	t.Logf("%d ADDs took %s", pods, time.Since(started).Round(time.Millisecond))
	checkBlocks(t, l, n)

	// 5 prefixes fit on an ENI, and 110 pods need 7. One more may be there for the next pods.
	eventually(t, 30*time.Second, "the pool is at rest", func() bool {
		return len(attachedENIs(l, n)) == 2 && (prefixesOf(l, n) == 7 || prefixesOf(l, n) == 8)
	})
	singles := 0
	for _, e := range attachedENIs(l, n) {
		singles += len(e.Secondary)
	}
	if singles > 0 {
		t.Errorf("%d single addresses beside the prefixes", singles)
	}
	got := calls(l, n)
	t.Logf("%d ENIs, %d prefixes, EC2 calls %v", len(attachedENIs(l, n)), prefixesOf(l, n), got)

	serve(t, "internet", hostDo(l, fabric.HostInternet), probePort)
	serve(t, peer.Name, podDo(l, peer), probePort)
	var group errgroup.Group
	group.SetLimit(8)
	ask := func(what string, from probe.Do, to netip.Addr, server string, source netip.Addr) {
		a, err := probe.UDP(t.Context(), from, netip.AddrPortFrom(to, probePort), 512, patient)
		if err == nil && (a.Server != server || a.Source != source) {
			err = fmt.Errorf("%s answered and saw %s, want %s", a.Server, a.Source, source)
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	addresses := map[netip.Addr]bool{}
	for _, p := range l.Pods("n1") {
		addresses[p.Address] = true
		serve(t, p.Name, podDo(l, p), probePort)
		group.Go(func() error {
			ask(p.Name+" → pod of another node", podDo(l, p), peer.Address, peer.Name, p.Address)
			ask("pod of another node → "+p.Name, podDo(l, peer), p.Address, p.Name, peer.Address)
			ask(p.Name+" → internet", podDo(l, p), fabric.InternetAddr, "internet", n.Address)
			return nil
		})
	}
	_ = group.Wait()
	if len(addresses) != pods {
		t.Errorf("%d pods have %d addresses", pods, len(addresses))
	}
	checkDrops(t, l)
}
