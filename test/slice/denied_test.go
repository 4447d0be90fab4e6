package slice

import (
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/pkg/config"
)

// TestDeniedActions: docs/iam.md says what is lost without each right; here it is. What is held is served all the same.
func TestDeniedActions(t *testing.T) {
	t.Parallel()
	var table strings.Builder
	columns := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "denied\tpods of 15\tdenials\tthe next pod is told")
	var mu sync.Mutex // guards columns
	t.Cleanup(func() { _ = columns.Flush(); t.Logf("what is left without each right:\n%s", &table) })
	shrinking := map[string]string{"IP_COOLDOWN_PERIOD": "1", "POOL_SHRINK_DELAY": "2", "WARM_ENI_TARGET": "0", "ADD_WAIT_TIMEOUT": "20"}
	byAddress := maps.Clone(shrinking)
	byAddress["WARM_IP_TARGET"] = "1"
	for _, c := range []struct {
		action string
		env    map[string]string
		pods   int    // that get an address
		next   string // what the ADD of one more says
		after  func(*testing.T, *cluster.Cluster, *cluster.Node)
	}{
		{action: "AssignPrivateIpAddresses", pods: 10, next: "ec2:AssignPrivateIpAddresses"},
		{action: "CreateNetworkInterface", pods: 5, next: "ec2:CreateNetworkInterface"},
		{action: "CreateTags", pods: 5, next: "ec2:CreateTags"},
		{action: "AttachNetworkInterface", pods: 5, next: "ec2:AttachNetworkInterface", after: noneAvailable},
		{action: "DescribeSubnets", pods: 15, next: "3 ENIs x (6-1) addresses"},
		{action: "ModifyNetworkInterfaceAttribute", pods: 15, next: "3 ENIs x (6-1) addresses", after: func(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
			for _, e := range attachedENIs(l, n) {
				if e.Attachment.DeleteOnTermination != (e.Attachment.Device == 0) {
					t.Errorf("%s at device %d: DeleteOnTermination is %t", e.ID, e.Attachment.Device, e.Attachment.DeleteOnTermination)
				}
			}
		}},
		{action: "UnassignPrivateIpAddresses", env: byAddress, pods: 15, next: "3 ENIs x (6-1) addresses", after: func(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
			deleteAll(t, l)
			eventually(t, time.Minute, "addresses that cannot be given back", func() bool { return refused(l, "UnassignPrivateIpAddresses") > 0 })
		}},
		{action: "DetachNetworkInterface", pods: 15, next: "3 ENIs x (6-1) addresses", after: func(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
			deleteAll(t, l)
			// Long enough for several removals, had they been allowed.
			eventually(t, time.Minute, "a refused removal", func() bool { return refused(l, "DetachNetworkInterface") > 0 })
			if got := len(attachedENIs(l, n)); got != 3 {
				t.Errorf("%d ENIs, want the 3 that cannot be detached", got)
			}
		}},
		{action: "DeleteNetworkInterface", pods: 15, next: "3 ENIs x (6-1) addresses", after: func(t *testing.T, l *cluster.Cluster, n *cluster.Node) {
			deleteAll(t, l)
			eventually(t, time.Minute, "a refused deletion", func() bool { return refused(l, "DeleteNetworkInterface") > 0 })
			// The places of those that stay behind are free: of the one that was denied, and of another one whose removal
			// may have been under way. No other one follows.
			for i := range 15 {
				if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
					t.Fatalf("%s: %v", podName(i), err)
				}
			}
			checkHolders(t, l, n)
			if got := len(l.Cloud().ENIs()); got > 5 {
				t.Errorf("%d ENIs, want 3 and at most 2 that cannot be deleted", got)
			}
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
			t.Parallel()
			env := shrinking
			if c.env != nil {
				env = c.env
			}
			l := lab(t, one(100*time.Millisecond, env))
			n := l.Nodes()[0]
			l.Cloud().AddFault(ec2.Fault{Action: c.action, Deny: true})
			for i := range c.pods {
				if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
					t.Fatalf("%s: %v", podName(i), err)
				}
			}
			_, err := l.PodAdd(t.Context(), "n1", namespace, "one-more")
			if err == nil || !strings.Contains(err.Error(), c.next) {
				t.Errorf("one more pod got %v, want a refusal that names %s", err, c.next)
			}
			checkHolders(t, l, n)
			checkReachable(t, l)
			if c.after != nil {
				c.after(t, l, n)
			}
			denials := 0
			for _, r := range l.Cloud().Requests() {
				if r.Caller == n.InstanceID && r.Outcome == "UnauthorizedOperation" {
					denials++
				}
			}
			if denials > 12 {
				t.Errorf("%d denied calls in a test of seconds; 12 an hour are enough", denials)
			}
			_, told, _ := strings.Cut(fmt.Sprint(err), "to container: ")
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(columns, "ec2:%s\t%d\t%d\t%s\n", c.action, c.pods, denials, told)
		})
	}
}

// TestNoDescribe: without the right to look, a restart serves what the journal says.
func TestNoDescribe(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, nil))
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 5) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	eventually(t, 30*time.Second, "two ENIs", func() bool { return len(attachedENIs(l, n)) == 2 })
	l.Cloud().AddFault(ec2.Fault{Action: "Describe*", Deny: true})
	restart(t, n)
	for i := 5; i < 8; i++ {
		if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	checkHolders(t, l, n)
	checkReachable(t, l)

	// An EC2 that does not answer at all holds up a restart as little.
	const silence = 10 * time.Minute
	l.Cloud().AddFault(ec2.Fault{Action: "*", Latency: silence})
	started := time.Now()
	restart(t, n)
	for i := 8; i < 10; i++ {
		if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	t.Logf("with EC2 silent, two pods had an address %s after the start", time.Since(started).Round(time.Millisecond))
	checkHolders(t, l, n)
	checkReachable(t, l)
}

// TestUnknownType: an instance type that ipamd does not know is asked about; without the right to, it counts as the
// smallest type of its size.
func TestUnknownType(t *testing.T) {
	t.Parallel()
	spec := one(100*time.Millisecond, map[string]string{"WARM_ENI_TARGET": "0"})
	spec.Nodes[0].Type = newType
	l := lab(t, spec)
	n := l.Nodes()[0]
	add := func(from, to int) (err error) {
		for i := from; i < to && err == nil; i++ {
			_, err = l.PodAdd(t.Context(), "n1", namespace, podName(i))
		}
		return err
	}
	if err := add(0, 8); err != nil {
		t.Fatal(err)
	}
	l.Cloud().AddFault(ec2.Fault{Action: "DescribeInstanceTypes", Deny: true})
	restart(t, n)
	// What the two ENIs hold is served, also beyond the least that any type of the size "medium" has.
	if err := add(8, 10); err != nil {
		t.Error(err)
	}
	if err := add(10, 11); err == nil || !strings.Contains(err.Error(), "2 ENIs x (4-1) addresses") {
		t.Errorf("one more pod got %v", err)
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
	for _, f := range l.Cloud().Faults() {
		l.Cloud().RemoveFault(f.ID)
	}
	restart(t, n)
	if err := add(10, 15); err != nil {
		t.Errorf("with the right to ask: %v", err)
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
}

// newType is a t3.medium that ipamd has never heard of.
const newType = "t99.medium"

func init() { vpc.Limits[newType] = vpc.Limits["t3.medium"] }

// TestNoOptionalVariables: what the manifest sets is there for features, not for pods to have addresses.
func TestNoOptionalVariables(t *testing.T) {
	t.Parallel()
	const required = "ENABLE_IPv4" // the one that has to be there
	cfg, err := config.Load(func(name string) (string, bool) { return "true", name == required })
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, v := range cfg.Effective() {
		if v.Name != required {
			env[v.Name] = "" // not set
		}
	}
	l := lab(t, one(100*time.Millisecond, env))
	n := l.Nodes()[0]
	if got := n.IPAMDEnv(); len(got) != 1 {
		t.Errorf("ipamd runs with %v", got)
	}
	for i, err := range burst(t.Context(), l, 15) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	restart(t, n)
	checkHolders(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
}

// restart kills ipamd and starts it again.
func restart(t *testing.T, n *cluster.Node) {
	t.Helper()
	n.KillIPAMD()
	if err := n.StartIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
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
