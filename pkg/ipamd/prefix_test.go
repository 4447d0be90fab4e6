package ipamd

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/warmpool"
)

func warmPrefix(n int) warmpool.Targets {
	return warmpool.Targets{Prefixes: true, WarmPrefix: n, WarmENI: 1}
}

// xlarge makes the rig an m5.xlarge: 4 ENIs x 14 slots.
func xlarge(o *Options, r *rig) {
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	r.cloud.maxENIs, r.cloud.maxIPs = 4, 15
	o.Identity.InstanceType = "m5.xlarge"
	o.Limits = awsutils.Limits{ENIs: 4, IPv4PerENI: 15, Hypervisor: "nitro"}
}

func (r *rig) fragment(on bool) {
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	r.cloud.fragmented = on
}

// kinds counts the node's prefixes and single addresses, in the ledger and in EC2, which must agree.
func (r *rig) kinds() (prefixes, singles int) {
	r.t.Helper()
	held := map[netip.Prefix]bool{}
	for _, e := range r.View().ENIs {
		for _, b := range e.Pool {
			held[b.CIDR] = true
			if b.CIDR.IsSingleIP() {
				singles++
			} else {
				prefixes++
			}
		}
	}
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	n := 0
	for _, e := range r.cloud.enis {
		for _, p := range e.Prefixes {
			n++
			if !held[p] {
				r.t.Errorf("%s is in EC2 only", p)
			}
		}
		for _, ip := range e.Secondary {
			n++
			if !held[single(ip)] {
				r.t.Errorf("%s is in EC2 only", ip)
			}
		}
	}
	if n != len(held) {
		r.t.Errorf("%d blocks in EC2, %d in the ledger", n, len(held))
	}
	return prefixes, singles
}

func TestPrefixBurstWithinTheBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmPrefix(1), xlarge)
		<-r.Ready()
		time.Sleep(time.Second)
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignPrefixes": 1})
		_, errs, took := r.burst(0, 50)
		if errs != nil {
			t.Fatal(errs)
		}
		if took > time.Second {
			t.Errorf("50 pods waited %s for one call", took)
		}
		time.Sleep(time.Minute)
		// One Describe is the start's, the other looks for what an earlier life may have left.
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignPrefixes": 2})
		if prefixes, singles := r.kinds(); prefixes != 5 || singles != 0 {
			t.Errorf("%d prefixes and %d single addresses", prefixes, singles)
		}
		before := r.cloud.total()
		time.Sleep(24 * time.Hour)
		if n := r.cloud.total() - before; n != 0 {
			t.Errorf("%d calls in an idle day", n)
		}
		r.stop()
	})
}

func TestPrefixesOfNewENIsComeWithThem(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmPrefix(0))
		<-r.Ready()
		if _, errs, took := r.burst(0, 100); errs != nil || took > 9*time.Second {
			t.Fatalf("took %s: %v", took, errs)
		}
		time.Sleep(time.Minute)
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignPrefixes": 1, "CreateENI": 1, "AttachENI": 1,
			"DeleteOnTermination": 1})
		for i := range 100 {
			r.mustDel(i)
		}
		time.Sleep(5 * time.Minute)
		if prefixes, singles := r.kinds(); prefixes+singles != 0 || r.cloud.size() != 1 {
			t.Errorf("%d prefixes, %d single addresses, %d ENIs are left of nothing wanted", prefixes, singles, r.cloud.size())
		}
		r.stop()
	})
}

// TestFragmentedSubnet: no /28, but addresses. Pods get single ones at once, and prefixes take their place when there are
// some again.
func TestFragmentedSubnet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmPrefix(1), xlarge)
		r.fragment(true)
		<-r.Ready()
		time.Sleep(time.Second)
		_, errs, took := r.burst(0, 50)
		if errs != nil {
			t.Fatal(errs)
		}
		if limit := r.cloud.attachDelay + 2*time.Second; took > limit {
			t.Errorf("50 pods waited %s, want %s at most", took, limit)
		}
		if prefixes, singles := r.kinds(); prefixes != 0 || singles < 50 {
			t.Errorf("%d prefixes, %d single addresses", prefixes, singles)
		}
		before := r.cloud.total()
		time.Sleep(24 * time.Hour)
		if n := r.cloud.total() - before; n > 110 {
			t.Errorf("%d calls in a day for prefixes that nobody waits for and that are not there", n)
		}
		r.fragment(false)
		_, before = r.kinds()
		if _, errs, took := r.burst(50, 40); errs != nil || took > time.Second {
			t.Fatalf("took %s: %v", took, errs)
		}
		if prefixes, singles := r.kinds(); prefixes < 3 || singles > before {
			t.Errorf("%d prefixes and %d single addresses, had %d of these", prefixes, singles, before)
		}
		for i := range 50 {
			r.mustDel(i)
		}
		time.Sleep(5 * time.Minute)
		if prefixes, singles := r.kinds(); prefixes == 0 || singles > 5 {
			t.Errorf("%d prefixes, %d single addresses after the pods on these ended", prefixes, singles)
		}
		r.stop()
	})
}

// TestFragmentedSubnetAtCreation: EC2 reports it with another code when it creates an ENI.
func TestFragmentedSubnetAtCreation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmPrefix(0))
		<-r.Ready()
		if _, errs, _ := r.burst(0, 80); errs != nil {
			t.Fatal(errs)
		}
		r.fragment(true)
		if _, errs, took := r.burst(80, 3); errs != nil || took > 10*time.Second {
			t.Fatalf("took %s: %v", took, errs)
		}
		time.Sleep(time.Minute)
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignPrefixes": 1, "CreateENI": 2, "AttachENI": 1,
			"DeleteOnTermination": 1})
		r.stop()
	})
}

func TestModeChangesUnderRunningPods(t *testing.T) {
	bubble(t, func(t *testing.T) {
		secondary := warmpool.Targets{WarmENI: 1}
		r := newRig(t, secondary)
		<-r.Ready()
		held := map[int]netip.Addr{}
		for i := range 6 {
			held[i] = r.mustAdd(i).Address
		}
		time.Sleep(time.Minute)
		restart := func(targets warmpool.Targets) {
			r.stop()
			r.boot(targets)
			<-r.Ready()
			time.Sleep(5 * time.Minute)
			for i, ip := range held {
				if again := r.mustAdd(i); again.Address != ip {
					t.Errorf("pod %d had %s, gets %s", i, ip, again.Address)
				}
			}
		}
		restart(warmPrefix(1))
		if prefixes, singles := r.kinds(); prefixes != 1 || singles != 6 {
			t.Errorf("%d prefixes and %d single addresses, want 1 and those of 6 pods", prefixes, singles)
		}
		for i := 6; i < 26; i++ {
			if held[i] = r.mustAdd(i).Address; onSingle(r, held[i]) {
				t.Errorf("pod %d gets a single address", i)
			}
		}
		time.Sleep(time.Minute)
		for i := range 6 {
			r.mustDel(i)
			delete(held, i)
		}
		time.Sleep(5 * time.Minute)
		if prefixes, singles := r.kinds(); prefixes != 3 || singles != 0 {
			t.Errorf("%d prefixes and %d single addresses, want 3 and 0", prefixes, singles)
		}
		restart(secondary)
		if prefixes, singles := r.kinds(); prefixes != 2 || singles < 5 {
			t.Errorf("%d prefixes and %d single addresses, want those of the pods and 5 or more", prefixes, singles)
		}
		if ip := r.mustAdd(30).Address; !onSingle(r, ip) {
			t.Errorf("a new pod gets %s of a prefix", ip)
		}
		for i := range held {
			r.mustDel(i)
		}
		time.Sleep(5 * time.Minute)
		if prefixes, _ := r.kinds(); prefixes != 0 {
			t.Errorf("%d prefixes without pods", prefixes)
		}
		before := r.cloud.total()
		time.Sleep(12 * time.Hour)
		if n := r.cloud.total() - before; n != 0 {
			t.Errorf("%d calls at rest", n)
		}
		r.stop()
	})
}

// TestPrefixesServeFromTheJournal: a restart without EC2 hands out what is free of the prefixes.
func TestPrefixesServeFromTheJournal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmPrefix(1))
		<-r.Ready()
		held := r.mustAdd(0).Address
		time.Sleep(time.Minute)
		r.stop()
		r.cloud.fail(func(string, int) fault { return fault{err: awsError("UnauthorizedOperation")} })
		r.boot(warmPrefix(1))
		<-r.Ready()
		if again := r.mustAdd(0).Address; again != held {
			t.Errorf("%s, had %s", again, held)
		}
		replies, errs, took := r.burst(1, 31)
		if errs != nil || took > time.Second {
			t.Fatalf("took %s: %v", took, errs)
		}
		for _, reply := range replies {
			if reply.Address == held || reply.Device != 0 {
				t.Errorf("%+v", reply)
			}
		}
		r.stop()
	})
}

func onSingle(r *rig, ip netip.Addr) bool {
	for _, e := range r.View().ENIs {
		for _, b := range e.Pool {
			if b.CIDR == single(ip) {
				return true
			}
		}
	}
	return false
}

// TestLostPrefix: EC2 says that it does not have a prefix any more on which a pod lives. The pod keeps its address, and
// nobody gets one of the others.
func TestLostPrefix(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmPrefix(1))
		<-r.Ready()
		time.Sleep(time.Second)
		var lost netip.Prefix
		r.cloud.fail(func(call string, n int) fault { // called under the cloud's mutex
			if call != "AssignPrefixes" || n != 2 {
				return fault{}
			}
			e := r.cloud.enis[testPrimary]
			lost, e.Prefixes = e.Prefixes[0], nil
			return fault{err: context.DeadlineExceeded}
		})
		reply := r.mustAdd(0)
		time.Sleep(time.Minute)
		r.cloud.fail(nil)
		if !lost.Contains(reply.Address) {
			t.Fatalf("%s is not of %s", reply.Address, lost)
		}
		if again := r.mustAdd(0); again.Address != reply.Address {
			t.Errorf("%s, had %s", again.Address, reply.Address)
		}
		for i := 1; i < 20; i++ {
			if ip := r.mustAdd(i).Address; lost.Contains(ip) {
				t.Errorf("%s is of a prefix that is gone", ip)
			}
		}
		if v := r.View(); v.Totals.Quarantined != 15 {
			t.Errorf("%+v", v.Totals)
		}
		r.mustDel(0)
		time.Sleep(5 * time.Minute)
		r.stop()
	})
}
