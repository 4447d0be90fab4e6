package ipamd

import (
	"slices"
	"testing"
	"time"

	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
)

// Who keeps pods' routes is told of a pod from before its ADD is answered until its DEL comes, and takes no sandbox for
// the one before it.
func TestPodsThatHoldAddresses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1), func(o *Options, _ *rig) { o.Settings.Host.VethPrefix = "eni" })
		<-r.Ready()
		a := r.mustAdd(1)
		r.mustAdd(2)
		find := func(n int) (hostnet.Pod, bool) {
			pods := r.Pods()
			i := slices.IndexFunc(pods, func(p hostnet.Pod) bool { return p.Sandbox.ContainerID == pod(n).ContainerID })
			if i < 0 {
				return hostnet.Pod{}, false
			}
			return pods[i], true
		}
		first, ok := find(1)
		if !ok || first.Address != a.Address || first.Veth != names.HostVeth("eni", pod(1).Namespace, pod(1).Pod, 0) || !r.Lives(first) {
			t.Errorf("pod 1 is %+v", first)
		}
		// A new sandbox of the same pod, while the old one is not gone.
		newer := pod(1)
		newer.ContainerID += "-again"
		if _, err := r.Add(t.Context(), newer); err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Pods() {
			if p.Sandbox.ContainerID != pod(2).ContainerID && p.Veth != "" {
				t.Errorf("two sandboxes could have veth %s", p.Veth)
			}
		}
		r.mustDel(1)
		if _, still := find(1); still || r.Lives(first) {
			t.Error("pod 1 lives after its DEL")
		}
		before := r.View().Counters
		r.HostRepaired(hostnet.Repair{Changes: map[hostnet.Kind]int{hostnet.KindPodRoute: 3}})
		time.Sleep(time.Second)
		after := r.View().Counters
		if after.Repairs != before.Repairs+1 || after.RepairsOf[hostnet.KindPodRoute] != 3 {
			t.Errorf("counted %d repairs, %v", after.Repairs-before.Repairs, after.RepairsOf)
		}
		r.stop()
	})
}
