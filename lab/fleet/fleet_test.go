package fleet_test

import (
	"flag"
	"reflect"
	"strings"
	"testing"
	"time"

	"vpccni/lab/fleet"
)

func builtIn(t *testing.T, name string) fleet.Trace {
	t.Helper()
	trace, ok := fleet.TraceByName(name)
	if !ok {
		t.Fatalf("no trace %q", name)
	}
	return trace
}

// run runs a fleet; with -v it shows the result.
func run(t *testing.T, c fleet.Config) fleet.Result {
	t.Helper()
	r, err := fleet.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	r.WriteTable(&text)
	t.Logf("\n%s", text.String())
	return r
}

// restartNodes is how many nodes restart at once; make fleet has 500 of them.
var restartNodes = flag.Int("nodes", 100, "nodes of the restart")

func TestTheSameSeedGivesTheSameResult(t *testing.T) {
	t.Parallel()
	c := fleet.Config{Nodes: 6, InstanceTypes: []string{"m5.large", "c5.4xlarge"}, Trace: builtIn(t, "ci"), Duration: time.Hour,
		BootWithin: time.Second, Subnets: 3, SubnetBits: 20, Buckets: map[string]fleet.Bucket{"": {Burst: 3, PerSecond: 0.5}}, Seed: 7,
		Settings: map[string]string{"WARM_IP_TARGET": "2"}}
	a, b := run(t, c), run(t, c)
	a.RealSeconds, b.RealSeconds = 0, 0
	if !reflect.DeepEqual(a, b) {
		t.Errorf("two runs differ:\n%+v\n%+v", a, b)
	}
	// The buckets are small: what EC2 throttles is repeated in virtual time, and no pod fails for it.
	if len(a.Throttled) == 0 || a.FailedAdds > 0 || a.NeverStarted > 0 {
		t.Errorf("throttled %v, %d ADDs failed, %d pods never started", a.Throttled, a.FailedAdds, a.NeverStarted)
	}
	if a.RealSeconds > a.Hours*3600 {
		t.Error("virtual time is slower than real time")
	}
	c.Seed = 8
	if d := run(t, c); reflect.DeepEqual(a.Calls(), d.Calls()) && a.Events == d.Events {
		t.Error("another seed changes nothing")
	}
}

// A day without pods: whatever ipamd does by itself costs no call.
func TestAnIdleDayCallsNothing(t *testing.T) {
	t.Parallel()
	for _, settings := range []map[string]string{
		nil, {"WARM_IP_TARGET": "3", "MINIMUM_IP_TARGET": "5"}, {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"},
	} {
		const nodes = 4
		idle := fleet.Config{Nodes: nodes, Trace: builtIn(t, "idle"), Duration: 5 * time.Minute, Seed: 1, Settings: settings}
		before := run(t, idle)
		idle.Duration += 24 * time.Hour
		after := run(t, idle)
		if n := after.Calls() - before.Calls(); n > 2*nodes {
			t.Errorf("%v: %d calls of %d nodes in a day", settings, n, nodes)
		}
		for action, n := range after.All {
			if strings.HasPrefix(action, "Describe") && n != before.All[action] {
				t.Errorf("%v: %s: %d calls in a day", settings, action, n-before.All[action])
			}
		}
	}
}

// A fleet restarts within 10 s, as when its DaemonSet is replaced by force, against buckets of 100 tokens with 20/s for
// every 500 nodes.
func TestAFleetRestartsFromItsJournals(t *testing.T) {
	t.Parallel()
	nodes := *restartNodes
	buckets := map[string]fleet.Bucket{"": {Burst: nodes / 5, PerSecond: float64(nodes) / 25}}
	r := run(t, fleet.Config{Nodes: nodes, Trace: builtIn(t, "web"), Duration: 5 * time.Minute, BootWithin: time.Minute, Subnets: 5, Seed: 1,
		Buckets: buckets, Restart: &fleet.Restart{At: 3 * time.Minute, Within: 10 * time.Second}})
	x := r.Restart
	if x.Serving.Count != nodes || x.Serving.Max > 2 {
		t.Errorf("serving: %d nodes, %s", x.Serving.Count, x.Serving)
	}
	if x.Verified.Count != nodes || x.Verified.Max > 60 {
		t.Errorf("verified: %d nodes, %s", x.Verified.Count, x.Verified)
	}
	if share := x.ThrottledShare(); share >= 0.05 {
		t.Errorf("%.1f %% of the calls after the restart were throttled", 100*share)
	}
	if r.NeverStarted > 0 {
		t.Errorf("%d pods never started", r.NeverStarted)
	}
}

func TestReadTrace(t *testing.T) {
	t.Parallel()
	trace, err := fleet.ReadTrace("file", strings.NewReader("second,node,stay\n# by hand\n90, 0, 60\n30,2,600\n"), 2)
	if err != nil {
		t.Fatal(err)
	}
	want := []fleet.Pod{{At: 30 * time.Second, Life: 10 * time.Minute}, {At: 90 * time.Second, Life: time.Minute}}
	if got := trace.Pods(fleet.TraceNode{}); !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	for _, bad := range []string{"1,2\n", "1,0,5\nx,0,5\n", "-1,0,5\n", "1,0,0\n"} {
		if _, err := fleet.ReadTrace("file", strings.NewReader(bad), 2); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestMistakesAreToldTogether(t *testing.T) {
	t.Parallel()
	_, err := fleet.Run(t.Context(), fleet.Config{InstanceTypes: []string{"m0.none"}, Settings: map[string]string{"WARM_IP_TARGET": "1"},
		Algorithm: "best", SubnetBits: 30})
	for _, want := range []string{"m0.none", "best", "/30", "node", "duration"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}

// The short version of vpclab fleet compare: the smallest and the largest node, without the longest traces.
func TestNoMoreWasteThanUpstream(t *testing.T) {
	t.Parallel()
	cells, err := fleet.Compare(t.Context(), fleet.CompareOptions{Scenarios: fleet.Scenarios[1:3], Types: []string{"t3.small", "m5.24xlarge"},
		Nodes: 1, Duration: 14 * time.Hour, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	fleet.WriteCells(&text, cells)
	t.Logf("seed 1\n%s", text.String())
	if err := fleet.SumUp(cells).Check(); err != nil {
		t.Error(err)
	}
}
