package ipamd

import (
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

// An instance that is about to end gives nothing back: its ENIs go with it, and every call would be for nothing.
func TestLeavingInstanceHoldsItsPool(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var notices []string
		r := newRig(t, warmpool.Targets{WarmIP: 1}, func(o *Options, _ *rig) {
			o.Notify = func(n Notice) { notices = append(notices, n.Reason) }
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 7); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Minute)
		r.SetLeaving("spot: terminate")
		r.SetNode(NodeState{MaxPods: 17}) // says nothing about the instance
		calls := r.cloud.total()
		for n := range 7 {
			r.mustDel(n)
		}
		time.Sleep(20 * time.Minute)
		if n := r.cloud.total(); n != calls {
			t.Errorf("%d calls of a node that is about to end", n-calls)
		}
		r.SetLeaving("")
		time.Sleep(20 * time.Minute)
		if n := r.cloud.size(); n != 1 {
			t.Errorf("%d ENIs although the instance stays", n)
		}
		if len(notices) != 1 || notices[0] != "InstanceLeaving" {
			t.Errorf("notices %v", notices)
		}
		r.stop()
	})
}
