package slice

import (
	"maps"
	"strings"
	"testing"
	"time"

	"vpccni/lab/ec2"
)

// TestBurstOnEmptyPool: ADDs that come while nothing is there wait, count as demand, and are all served by their
// first call. One assignment for the ENI with room, three calls for each new ENI, one for the zone's subnets, nothing else.
func TestBurstOnEmptyPool(t *testing.T) {
	t.Parallel()
	const attach = 8 * time.Second
	for _, c := range []struct {
		name string
		pods int
		want map[string]int
	}{
		{"10 pods: room on the primary ENI and one more", 10, map[string]int{
			"DescribeSubnets": 1, "AssignPrivateIpAddresses": 1, "CreateNetworkInterface": 1, "AttachNetworkInterface": 1, "ModifyNetworkInterfaceAttribute": 1,
		}},
		{"15 pods: two more, attached at the same time", 15, map[string]int{
			"DescribeSubnets": 1, "AssignPrivateIpAddresses": 1, "CreateNetworkInterface": 2, "AttachNetworkInterface": 2, "ModifyNetworkInterfaceAttribute": 2,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := lab(t, one(attach, map[string]string{"WARM_ENI_TARGET": "0"}))
			n := l.Nodes()[0]
			l.Cloud().ResetRequests()
			started := time.Now()
			for i, err := range burst(t.Context(), l, c.pods) {
				if err != nil {
					t.Errorf("%s: %v", podName(i), err)
				}
			}
			t.Logf("%d ADDs took %s; attaching takes %s", c.pods, time.Since(started).Round(time.Millisecond), attach)
			if got := calls(l, n); !maps.Equal(got, c.want) {
				t.Errorf("EC2 calls %v, want %v", got, c.want)
			}
			var attaches []ec2.Request
			for _, r := range l.Cloud().Requests() {
				if r.Action == "AttachNetworkInterface" {
					attaches = append(attaches, r)
				}
			}
			if len(attaches) > 1 && attaches[1].Time.Sub(attaches[0].Time) > attach/2 {
				t.Errorf("attached one after the other: %s apart", attaches[1].Time.Sub(attaches[0].Time))
			}
			checkHolders(t, l, n)
			checkReachable(t, l)
			checkDrops(t, l)
		})
	}
}

// TestCallsToFullNode: with default targets, from the start to 15 pods, then idle.
func TestCallsToFullNode(t *testing.T) {
	t.Parallel()
	l := lab(t, one(500*time.Millisecond, nil))
	n := l.Nodes()[0]
	for i := range 15 {
		if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatal(err)
		}
	}
	got := calls(l, n)
	t.Logf("%d calls: %v", total(got), got)
	if total(got) > 11 {
		t.Errorf("%d EC2 calls, want at most 11: %v", total(got), got)
	}
	_, err := l.PodAdd(t.Context(), "n1", namespace, "one-too-many")
	if err == nil || !strings.Contains(err.Error(), "3 ENIs x (6-1) addresses") {
		t.Errorf("the 16th pod got %v, want a refusal that names the limit", err)
	}
	checkHolders(t, l, n)
	checkDrops(t, l)
}

// TestShrinkToWarmTarget: what no pod needs goes back, and nothing comes again.
func TestShrinkToWarmTarget(t *testing.T) {
	t.Parallel()
	l := lab(t, one(200*time.Millisecond, map[string]string{"IP_COOLDOWN_PERIOD": "1", "POOL_SHRINK_DELAY": "2"}))
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 15) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	if got := len(attachedENIs(l, n)); got != 3 {
		t.Errorf("%d ENIs with 15 pods, want 3", got)
	}
	for i := range 15 {
		if err := l.PodDel(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, "one ENI left", func() bool { return len(attachedENIs(l, n)) == 1 })
	eventually(t, time.Minute, "every detached ENI is deleted", func() bool { return len(l.Cloud().ENIs()) == 1 })
	if held := allocations(t, n); len(held) > 0 {
		t.Errorf("no pod is left, but these addresses are held: %v", held)
	}
	checkDrops(t, l)
}
