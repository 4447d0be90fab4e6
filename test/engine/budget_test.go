package engine

import (
	"testing"
	"time"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/warmpool"
)

// TestCallBudget: what an m5.xlarge asks of EC2 from its first start, without a journal, until 50 pods run and the
// pool has come to rest: at most 3 calls per ENI added and 5 in secondary-IP mode, at most 6 in prefix mode.
func TestCallBudget(t *testing.T) {
	secondary := warmpool.Targets{WarmENI: 1, MaxPods: 58}
	prefixes := warmpool.Targets{Prefixes: true, WarmPrefix: 1, MaxPods: 110}
	for _, c := range []struct {
		name    string
		targets warmpool.Targets
		atOnce  bool
		budget  func(added int) int
	}{
		{"secondary, one by one", secondary, false, func(added int) int { return 3*added + 5 }},
		{"secondary, at once", secondary, true, func(added int) int { return 3*added + 5 }},
		{"prefixes, at once", prefixes, true, func(int) int { return 6 }},
		{"prefixes, one by one", prefixes, false, func(int) int { return 8 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, "m5.xlarge", ipamd.Settings{Targets: c.targets, SubnetDiscovery: true}, "10.0.0.0/22", func(*rig) {}, nil)
				if c.atOnce {
					r.burst(0, 50)
				} else {
					for i := range 50 {
						r.burst(i, 1)
					}
				}
				time.Sleep(5 * time.Minute)
				enis, _, _ := r.held()
				calls := r.calls()
				t.Logf("50 pods, %d ENIs added, budget %d:%s", enis-1, c.budget(enis-1), table(calls))
				if total(calls) > c.budget(enis-1) {
					t.Errorf("%d calls", total(calls))
				}
				time.Sleep(24 * time.Hour)
				if n := total(r.calls()) - total(calls); n != 0 {
					t.Errorf("%d calls in an idle day", n)
				}
				r.stop()
			})
		})
	}
}
