package fleet_test

import (
	"encoding/json"
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

func run(t *testing.T, c fleet.Config) fleet.Result {
	t.Helper()
	r, err := fleet.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if testing.Verbose() {
		text, _ := json.MarshalIndent(r, "", " ")
		t.Logf("%s", text)
	}
	return r
}

func TestSmall(t *testing.T) {
	t.Parallel()
	run(t, fleet.Config{Nodes: 400, Trace: builtIn(t, "ci"), Duration: 2 * time.Hour, BootWithin: 10 * time.Second, Seed: 1,
		Buckets: map[string]fleet.Bucket{"": {Burst: 100, PerSecond: 20}}})
}
