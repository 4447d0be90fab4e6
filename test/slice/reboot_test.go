package slice

import (
	"slices"
	"testing"
	"time"

	"vpccni/lab/ec2"
)

// TestReboot: a power cut takes the pods, the journal and the state file; the ENIs stay attached, come up bare, and
// serve again without a new one being made.
func TestReboot(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, nil))
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 8) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	eventually(t, 30*time.Second, "three ENIs that end with their instance", func() bool {
		enis := attachedENIs(l, n)
		return len(enis) == 3 && !slices.ContainsFunc(enis, func(e ec2.ENI) bool { return !e.Attachment.DeleteOnTermination })
	})
	l.Cloud().ResetRequests()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.CollectGarbage(t.Context()); err != nil {
		t.Errorf("the kubelet's DELs of what is gone: %v", err)
	}
	for i, err := range burst(t.Context(), l, 15) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	for action, count := range calls(l, n) {
		if action != "DescribeNetworkInterfaces" {
			t.Errorf("%d × %s after the reboot", count, action)
		}
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
}
