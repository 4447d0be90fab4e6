package slice

import (
	"strings"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
)

// TestDeniedActions: docs/iam.md says what is lost without each right; here it is. What is held is served all the same.
func TestDeniedActions(t *testing.T) {
	for _, c := range []struct {
		action string
		pods   int    // that get an address
		next   string // what the ADD of one more says; empty: the node is full
		after  func(*testing.T, *cluster.Cluster, *cluster.Node)
	}{
		{action: "AssignPrivateIpAddresses", pods: 10, next: "ec2:AssignPrivateIpAddresses"},
		{action: "CreateNetworkInterface", pods: 5, next: "ec2:CreateNetworkInterface"},
		{action: "AttachNetworkInterface", pods: 5, next: "ec2:AttachNetworkInterface", after: noneAvailable},
		{action: "ModifyNetworkInterfaceAttribute", pods: 15, after: func(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
			for _, e := range attachedENIs(l, n) {
				if e.Attachment.DeleteOnTermination != (e.Attachment.Device == 0) {
					t.Errorf("%s at device %d: DeleteOnTermination is %t", e.ID, e.Attachment.Device, e.Attachment.DeleteOnTermination)
				}
			}
		}},
		{action: "DetachNetworkInterface", pods: 15, after: func(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
			deleteAll(t, l)
			// Long enough for several removals, had they been allowed.
			eventually(t, time.Minute, "a refused removal", func() bool { return refused(l, "DetachNetworkInterface") > 0 })
			if got := len(attachedENIs(l, n)); got != 3 {
				t.Errorf("%d ENIs, want the 3 that cannot be detached", got)
			}
		}},
		{action: "DeleteNetworkInterface", pods: 15, after: func(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
			deleteAll(t, l)
			eventually(t, time.Minute, "a refused deletion", func() bool { return refused(l, "DeleteNetworkInterface") > 0 })
			for _, id := range l.Cloud().Faults() {
				l.Cloud().RemoveFault(id.ID)
			}
			// The right is back: what was left is tried again, at most 12 times an hour, or at the next start.
			n.KillIPAMD()
			if err := n.StartIPAMD(t.Context()); err != nil {
				t.Fatal(err)
			}
			noneAvailable(t, l, n)
		}},
	} {
		t.Run(c.action, func(t *testing.T) {
			l := lab(t, one(100*time.Millisecond, map[string]string{
				"WARM_ENI_TARGET": "0", "ADD_WAIT_TIMEOUT": "20", "IP_COOLDOWN_PERIOD": "1", "POOL_SHRINK_DELAY": "2",
			}))
			n := l.Nodes()[0]
			l.Cloud().AddFault(ec2.Fault{Action: c.action, Deny: true})
			for i := range c.pods {
				if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
					t.Fatalf("%s: %v", podName(i), err)
				}
			}
			if c.next != "" {
				_, err := l.PodAdd(t.Context(), "n1", namespace, "one-more")
				if err == nil || !strings.Contains(err.Error(), "Denied") || !strings.Contains(err.Error(), c.next) {
					t.Errorf("one more pod got %v, want a refusal that names %s", err, c.next)
				}
			}
			checkHolders(t, l, n)
			checkReachable(t, l)
			if c.after != nil {
				c.after(t, l, n)
			}
			if n := refused(l, c.action); n > 12 {
				t.Errorf("a denied call was tried %d times in a test of seconds; 12 an hour are enough", n)
			}
		})
	}
}

// TestNoDescribe: without the right to look, a restart serves what the journal says.
func TestNoDescribe(t *testing.T) {
	l := lab(t, one(100*time.Millisecond, nil))
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 5) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	eventually(t, 30*time.Second, "two ENIs", func() bool { return len(attachedENIs(l, n)) == 2 })
	l.Cloud().AddFault(ec2.Fault{Action: "Describe*", Deny: true})
	n.KillIPAMD()
	if err := n.StartIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := 5; i < 10; i++ {
		if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
}

func noneAvailable(t *testing.T, l *cluster.Cluster, _ *cluster.Node) {
	t.Helper()
	eventually(t, time.Minute, "no ENI is attached to nothing", func() bool {
		for _, e := range l.Cloud().ENIs() {
			if e.Attachment == nil {
				return false
			}
		}
		return true
	})
}

func deleteAll(t *testing.T, l *cluster.Cluster) {
	t.Helper()
	for _, p := range l.Pods("") {
		if err := l.PodDel(t.Context(), p.Node, p.Namespace, p.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// refused counts the calls of an action that were denied.
func refused(l *cluster.Cluster, action string) int {
	count := 0
	for _, r := range l.Cloud().Requests() {
		if r.Action == action && r.Outcome == "UnauthorizedOperation" {
			count++
		}
	}
	return count
}
