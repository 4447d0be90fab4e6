package slice

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"vpccni/lab/ec2"
)

// TestStopWithACallUnderWay: SIGTERM while EC2 takes its time and a pod waits. ipamd ends by itself within the 2 s that it
// gives itself (it says so when it does not), what pods hold is on disk, and the next one goes on from there.
func TestStopWithACallUnderWay(t *testing.T) {
	t.Parallel()
	l := lab(t, one(200*time.Millisecond, map[string]string{"WARM_ENI_TARGET": "0"}))
	n := l.Nodes()[0]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for i, err := range burst(ctx, l, 5) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	// The next pod needs a second ENI.
	l.Cloud().AddFault(ec2.Fault{Action: "CreateNetworkInterface", Latency: 30 * time.Second, Count: 1})
	waiting := make(chan error, 1)
	go func() { waiting <- addUntilRunning(ctx, l, podName(5)) }()
	eventually(t, time.Minute, "the call is under way", func() bool {
		faults := l.Cloud().Faults() // one that is used up is gone
		return len(faults) == 0 || faults[0].Hits > 0
	})
	started := time.Now()
	if err := n.StopIPAMD(ctx); err != nil {
		t.Errorf("ipamd: %v", err)
	}
	t.Logf("ended %s after SIGTERM", time.Since(started).Round(time.Millisecond))
	if log := tail(n.IPAMDLog(), 30); !strings.Contains(log, `"msg":"ended"`) || strings.Contains(log, "did not end in time") {
		t.Error("it did not end by itself")
	}
	held := allocations(t, n)
	for _, p := range l.Pods("n1") {
		if held[p.ID] != p.Address {
			t.Errorf("%s has %s, but the state file says %v", p.Name, p.Address, held[p.ID])
		}
	}
	if err := n.StartIPAMD(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("the pod that waited: %v", err)
	}
	if err := l.CollectGarbage(ctx); err != nil {
		t.Errorf("sandboxes are left: %v", err)
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
}

// TestLogPerAdd: at most 3 lines for each ADD at INFO and above, those of the pool's growth included.
func TestLogPerAdd(t *testing.T) {
	t.Parallel()
	const pods = 8
	l := lab(t, one(200*time.Millisecond, nil))
	n := l.Nodes()[0]
	before := notable(t, n.IPAMDLog())
	for i, err := range burst(t.Context(), l, pods) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	if lines := notable(t, n.IPAMDLog())[len(before):]; len(lines) > 3*pods {
		t.Errorf("%d lines for %d ADDs:\n%s", len(lines), pods, strings.Join(lines, "\n"))
	} else {
		t.Logf("%d lines for %d ADDs", len(lines), pods)
	}
}

// notable are a log's lines at INFO and above.
func notable(t *testing.T, log string) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(log) {
		var l struct{ Level, Caller string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if l.Caller == "" {
			t.Errorf("no caller: %s", line)
		}
		if l.Level != "debug" {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}
