package slice

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHostStateComesBack: what somebody takes away of the node's network is put back, and the pods' packets find their
// way again.
func TestHostStateComesBack(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, nil))
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 8) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	node := func(script string) string {
		out, err := n.OS().Command(t.Context(), "sh", "-e", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	// Sorted, because nft lists what was made again behind what was not.
	state := func() string {
		lines := strings.Split(node(`ip rule; ip route show table 2; ip route show table 3; ip route show table 5120; ip route show table 5121
			nft list table ip vpc-cni 2>&1 || true; grep . /proc/sys/net/ipv4/conf/eth*/rp_filter`), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	eventually(t, 30*time.Second, "three ENIs are wired", func() bool { return strings.Contains(state(), "lookup 3") })
	// What pods came and went last may still be under way.
	want := state()
	eventually(t, 30*time.Second, "the state is at rest", func() bool {
		last := want
		want = state()
		return want == last
	})
	for _, damage := range []string{
		"nft flush ruleset",
		"nft flush chain ip vpc-cni prerouting",
		"ip rule del pref 512",
		"ip rule del pref 1537; ip rule del pref 1024",
		"ip route flush table 2",
		"ip route del default table 3",
		"ip address flush dev eth1",
		"echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter",
	} {
		node(damage)
		eventually(t, 30*time.Second, damage+" is repaired", func() bool { return state() == want })
	}
	checkReachable(t, l)
	checkDrops(t, l)
}
