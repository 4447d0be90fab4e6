package ipamd

import (
	"testing"
	"time"

	"vpccni/pkg/ipamd/datastore"
)

// TestRemovalIsTakenBack: the node is cordoned while the host lets go of an ENI, or while EC2 refuses to look at its
// detachment.
func TestRemovalIsTakenBack(t *testing.T) {
	for _, stage := range []string{stageDrain, stageDetach} {
		t.Run(stage, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, warmENI(1))
				<-r.Ready()
				if _, errs, _ := r.burst(0, 15); errs != nil {
					t.Fatal(errs)
				}
				r.host.delay = 5 * time.Second
				r.cloud.fail(func(call string, _ int) fault {
					if call == "DetachENI" {
						return fault{err: awsError("RequestLimitExceeded")}
					}
					return fault{}
				})
				for i := range 15 {
					r.mustDel(i)
				}
				reached := func() bool {
					for _, op := range r.View().InFlight {
						if op.Kind == opRemove && op.Stage == stage && (stage == stageDrain || op.Tries > 0) {
							return true
						}
					}
					return false
				}
				for start := time.Now(); !reached(); time.Sleep(10 * time.Millisecond) {
					if time.Since(start) > 10*time.Minute {
						t.Fatal("no removal")
					}
				}
				r.SetNode(NodeState{MaxPods: 17, Cordoned: true})
				tried := r.cloud.count("DetachENI")
				time.Sleep(time.Hour)
				if n := r.cloud.count("DetachENI"); n != tried || r.cloud.size() != 3 {
					t.Errorf("%d more DetachENI, %d ENIs are left", n-tried, r.cloud.size())
				}
				for _, e := range r.View().ENIs {
					if e.Phase != datastore.Usable {
						t.Errorf("%s is %s", e.ID, e.Phase)
					}
				}
				r.wantSame()
				r.cloud.fail(nil)
				r.SetNode(NodeState{MaxPods: 17})
				time.Sleep(time.Hour)
				if r.cloud.size() != 1 {
					t.Errorf("%d ENIs after the node may be used again", r.cloud.size())
				}
				r.stop()
			})
		})
	}
}

// TestCordonedNodeServesWhoWaits: pods of DaemonSets still come, and get what they need and nothing more.
func TestCordonedNodeServesWhoWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		r.mustAdd(0)
		time.Sleep(time.Minute)
		r.SetNode(NodeState{MaxPods: 17, Cordoned: true})
		before := r.cloud.total()
		for i := 1; i < 10; i++ {
			r.mustAdd(i) // 10 addresses on two ENIs are held
		}
		time.Sleep(time.Hour)
		if n := r.cloud.total(); n != before {
			t.Errorf("%d calls for warm targets of a cordoned node", n-before)
		}
		r.mustAdd(10)
		if n := r.cloud.count("CreateENI"); n != 2 {
			t.Errorf("%d ENIs created, want one more for the pod that waited", n)
		}
		r.stop()
	})
}
