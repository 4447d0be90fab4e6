package slice

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/lab/fabric"
)

// TestPrefixDelegation: 40 pods at once on a t3.medium, which has 15 secondary addresses, are served without another ENI,
// and all reach each other.
func TestPrefixDelegation(t *testing.T) {
	t.Parallel()
	l := lab(t, one(500*time.Millisecond, map[string]string{"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}))
	n := l.Nodes()[0]
	eventually(t, 30*time.Second, "one prefix is ready", func() bool { return prefixesOf(l, n) == 1 })
	l.Cloud().ResetRequests()
	started := time.Now()
	for i, err := range burst(t.Context(), l, 40) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	t.Logf("40 ADDs took %s", time.Since(started).Round(time.Millisecond))
	eventually(t, 30*time.Second, "a prefix is free", func() bool { return prefixesOf(l, n) == 4 })
	// Plugins start one after the other: ADDs that come after the first call may need another one.
	got := calls(l, n)
	t.Logf("EC2 calls: %v", got)
	if total(got) != got["AssignPrivateIpAddresses"] || total(got) > 3 {
		t.Errorf("EC2 calls %v, want one AssignPrivateIpAddresses for each of 3 prefixes at most", got)
	}
	checkBlocks(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
}

// TestPrefixesToTheLimit: the second ENI brings its prefixes along, and the limit is named.
func TestPrefixesToTheLimit(t *testing.T) {
	t.Parallel()
	l := lab(t, cluster.Spec{
		Nodes:       []cluster.NodeSpec{{Name: "n1", Type: "t3.small"}},
		AttachDelay: 500 * time.Millisecond, DetachDelay: 500 * time.Millisecond,
		Env: map[string]string{"ENABLE_PREFIX_DELEGATION": "true", "WARM_IP_TARGET": "1", "MAX_ENI": "2"},
	})
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 96) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	if got := len(attachedENIs(l, n)); got != 2 || prefixesOf(l, n) != 6 {
		t.Errorf("%d ENIs, %d prefixes, want 2 and 6", got, prefixesOf(l, n))
	}
	got := calls(l, n)
	t.Logf("%d calls: %v", total(got), got)
	// 6 prefixes, one of which at least came with the ENI.
	if got["CreateNetworkInterface"] != 1 || got["AttachNetworkInterface"] != 1 || got["AssignPrivateIpAddresses"] > 5 {
		t.Errorf("EC2 calls %v", got)
	}
	_, err := l.PodAdd(t.Context(), "n1", namespace, "one-too-many")
	if err == nil || !strings.Contains(err.Error(), "2 ENIs x 3 prefixes of 16") {
		t.Errorf("the 97th pod got %v, want a refusal that names the limit", err)
	}
	checkBlocks(t, l, n)
	checkDrops(t, l)
}

func prefixesOf(l *cluster.Cluster, n *cluster.Node) int {
	count := 0
	for _, e := range attachedENIs(l, n) {
		count += len(e.Prefixes)
	}
	return count
}

// TestModeSwitch: ipamd starts again with the other mode while pods run, as in a rolling update. Those that run keep
// their addresses and their open connections and reach the new ones, whose addresses are of the other kind; what is unused
// of the one kind goes back.
func TestModeSwitch(t *testing.T) {
	t.Parallel()
	l := lab(t, one(200*time.Millisecond, map[string]string{"WARM_ENI_TARGET": "1", "WARM_PREFIX_TARGET": "1",
		"IP_COOLDOWN_PERIOD": "1", "POOL_SHRINK_DELAY": "2"}))
	n := l.Nodes()[0]
	add := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	restart := func(prefixes string) {
		t.Helper()
		if err := n.StopIPAMD(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Spec().Env["ENABLE_PREFIX_DELEGATION"] = prefixes
		if err := n.StartIPAMD(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	singles := func() (count int) {
		for _, e := range attachedENIs(l, n) {
			count += len(e.Secondary)
		}
		return count
	}
	fromPrefix := func(p cluster.Pod) bool {
		return slices.ContainsFunc(attachedENIs(l, n), func(e ec2.ENI) bool {
			return slices.ContainsFunc(e.Prefixes, func(at netip.Prefix) bool { return at.Contains(p.Address) })
		})
	}
	// from wants pods of these numbers to have addresses of one kind.
	from := func(prefixes bool, first, last int) {
		t.Helper()
		for _, p := range l.Pods("n1") {
			if p.Name >= podName(first) && p.Name < podName(last) && fromPrefix(p) != prefixes {
				t.Errorf("%s has %s; is it of a prefix: %t", p.Name, p.Address, !prefixes)
			}
		}
	}
	// Connections out of a pod: to another one, to the internet, which sees the node's address, and from the node.
	var flows []*flow
	flowsOf := func(p, other cluster.Pod) {
		t.Helper()
		serve(t, other.Name, podDo(l, other), flowPort)
		serve(t, p.Name, podDo(l, p), flowPort)
		flows = append(flows,
			openFlow(t, p.Name+" → "+other.Name, podDo(l, p), other.Address),
			openFlow(t, p.Name+" → internet", podDo(l, p), fabric.InternetAddr),
			openFlow(t, "node → "+p.Name, n.OS().Do, p.Address))
	}
	serve(t, "internet", hostDo(l, fabric.HostInternet), flowPort)

	add(0, 10)
	pods := l.Pods("n1")
	from(false, 0, 10)
	flowsOf(pods[8], pods[9])
	restart("true")
	eventually(t, time.Minute, "single addresses are those of the 10 pods", func() bool { return singles() == 10 && prefixesOf(l, n) == 1 })
	add(10, 28)
	from(true, 10, 28)
	pods = l.Pods("n1")
	flowsOf(pods[26], pods[27])
	checkBlocks(t, l, n)
	checkReachable(t, l)
	for i := range 8 {
		if err := l.PodDel(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, "of the single addresses two are left", func() bool { return singles() == 2 })
	restart("false")
	// The journal serves what is left of three prefixes at once; for more, EC2 is asked.
	add(30, 64)
	eventually(t, time.Minute, "there are single addresses again", func() bool { return prefixesOf(l, n) == 3 && singles() > 4 })
	checkBlocks(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
	for _, f := range flows {
		f.close(t)
	}
}

// checkBlocks is checkHolders for pods whose addresses may be of prefixes.
func checkBlocks(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
	t.Helper()
	var prefixes []netip.Prefix
	for _, e := range l.Cloud().ENIsOf(n.InstanceID) {
		prefixes = append(prefixes, e.Prefixes...)
		for _, ip := range e.Secondary {
			prefixes = append(prefixes, netip.PrefixFrom(ip, 32))
		}
	}
	held, seen := allocations(t, n), map[netip.Addr]bool{}
	for _, p := range l.Pods(n.Name) {
		if seen[p.Address] || held[p.ID] != p.Address ||
			!slices.ContainsFunc(prefixes, func(at netip.Prefix) bool { return at.Contains(p.Address) }) {
			t.Errorf("%s has %s; the state file says %v, EC2 %v", p.Name, p.Address, held[p.ID], prefixes)
		}
		seen[p.Address] = true
		delete(held, p.ID)
	}
	if len(held) > 0 {
		t.Errorf("leaked: %v", held)
	}
}
