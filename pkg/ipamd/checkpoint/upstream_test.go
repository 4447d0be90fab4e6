package checkpoint

import (
	"maps"
	"os"
	"slices"
	"testing"

	"vpccni/pkg/ipamd/checkpoint/checkpointtest"
)

// Files of upstream's versions are taken over whole, and what is written in their place upstream reads as the same
// allocations. All that is added is the count of interfaces, which versions before 1.20 do not know and do not mind.
func TestUpstreamsFilesThereAndBack(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{"ipam-v1.12.json": 2, "ipam-v1.12-empty.json": 0, "ipam-v1.20.json": 3, "ipam-v1.23.json": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, &model{})
			raw, err := os.ReadFile("testdata/" + name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			before, err := checkpointtest.ReadAsUpstream(s.path)
			if err != nil || len(before) != want {
				t.Fatalf("%d allocations, %v", len(before), err)
			}
			state, err := s.Load()
			if err != nil || len(state.Allocations) != want {
				t.Fatalf("loaded %+v, %v", state, err)
			}
			if err := s.save(state.Snapshot()); err != nil {
				t.Fatal(err)
			}
			after, err := checkpointtest.ReadAsUpstream(s.path)
			if err != nil {
				t.Fatal(err)
			}
			for ip, e := range before {
				e.Metadata.Interfaces = max(e.Metadata.Interfaces, 1)
				before[ip] = e
			}
			if !maps.Equal(before, after) {
				t.Errorf("before %+v\nafter  %+v", before, after)
			}
			rewritten, err := os.ReadFile(s.path)
			if err != nil {
				t.Fatal(err)
			}
			golden := "testdata/rewritten/" + name
			wanted, err := os.ReadFile(golden)
			if err != nil || string(wanted) != string(rewritten) {
				t.Errorf("%s: %v\ngot  %swant %s", golden, err, rewritten, wanted)
			}
		})
	}
}

// What upstream would read after a downgrade is, at every step of every write, what one of our own restarts would read.
func TestDowngradeAtEveryStep(t *testing.T) {
	t.Parallel()
	var points []string
	story := func(killAt int) (s *Store) {
		points = nil
		faults := &checkpointtest.Faults{At: func(point string) bool {
			points = append(points, point)
			return len(points) == killAt
		}}
		s = newStore(t, &model{})
		s.files = faults
		var state State
		for i := range 4 {
			state.Allocations = append(slices.Clone(state.Allocations), numbered(i))
			state.Journal.InstanceID = "i-1"
			if i == 3 {
				state.Journal.Cooling = []Cooling{{Address: numbered(0).Address, Until: numbered(0).Time}}
				state.Allocations = state.Allocations[1:]
			}
			if s.save(state.Snapshot()) != nil {
				break
			}
		}
		return s
	}
	story(0)
	for at := range len(points) {
		s := story(at + 1)
		ours, err := s.Load()
		if err != nil && at > 7 { // before there is a file beside the journal, the kernel is asked
			t.Errorf("%s: %v", points[at], err)
		}
		theirs, err := checkpointtest.ReadAsUpstream(s.path)
		if err != nil || len(theirs) != len(ours.Allocations) {
			t.Fatalf("%s: upstream reads %d allocations (%v), we read %d", points[at], len(theirs), err, len(ours.Allocations))
		}
		for _, a := range ours.Allocations {
			if e := theirs[a.Address]; e.ContainerID != a.ContainerID || e.Timestamp != a.Time.UnixNano() || e.Metadata.Pod != a.Pod {
				t.Errorf("%s: upstream reads %+v, we read %+v", points[at], e, a)
			}
		}
	}
	t.Logf("%d points", len(points))
}
