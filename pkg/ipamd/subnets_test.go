package ipamd

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
)

// TestSubnetTags holds the vectors of upstream for the choice of subnets.
func TestSubnetTags(t *testing.T) {
	t.Parallel()
	type tags map[string]string
	const own, foreign = tagClusterPrefix + "mine", tagClusterPrefix + "other"
	for _, c := range []struct {
		name              string
		primary           bool
		cluster           string
		tags              tags
		offered, excluded bool
	}{
		{"primary, untagged", true, "mine", nil, true, false},
		{"primary, empty tag", true, "mine", tags{tagRole: ""}, true, false},
		{"primary, 0", true, "mine", tags{tagRole: "0"}, false, true},
		{"primary, untagged, of another cluster", true, "mine", tags{foreign: "shared"}, true, false},
		{"primary, 1, of another cluster", true, "mine", tags{tagRole: "1", foreign: "shared"}, false, true},
		{"primary, old cluster tag of another", true, "mine", tags{"kubernetes.io/cluster/other": "shared"}, true, false},
		{"secondary, untagged", false, "mine", nil, false, false},
		{"secondary, 0", false, "mine", tags{tagRole: "0"}, false, true},
		{"secondary, 1", false, "mine", tags{tagRole: "1"}, true, false},
		{"secondary, true", false, "mine", tags{tagRole: "true"}, true, false},
		{"secondary, mistyped key", false, "mine", tags{"kubernetes.io/role/cn": "1"}, false, false},
		{"secondary, 1, of another cluster", false, "mine", tags{tagRole: "1", foreign: ""}, false, true},
		{"secondary, 1, of this and another cluster", false, "mine", tags{tagRole: "1", own: "", foreign: ""}, true, false},
		{"secondary, 1, of another cluster, none is named", false, "", tags{tagRole: "1", foreign: ""}, true, false},
		{"secondary, 1, old cluster tag of another", false, "mine", tags{tagRole: "1", "kubernetes.io/cluster/other": ""}, true, false},
	} {
		s := awsutils.Subnet{ID: "s", Tags: c.tags}
		if got := offers(s, c.cluster, c.primary); got != c.offered {
			t.Errorf("%s: offered %v", c.name, got)
		}
		if got := excludes(s, c.cluster); got != c.excluded {
			t.Errorf("%s: excluded %v", c.name, got)
		}
	}
}

// discovery turns subnet discovery on, with a second subnet that is for pods and has fewer addresses than the first.
func discovery(o *Options, r *rig) {
	o.Settings.SubnetDiscovery, o.Settings.ClusterName = true, "mine"
	if len(r.cloud.others) == 0 {
		r.cloud.addSubnet("subnet-b", "10.0.1.0/25", map[string]string{tagRole: "1"})
	}
}

func subnetsOf(r *rig) map[string]int {
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	n := map[string]int{}
	for _, e := range r.cloud.enis {
		n[e.SubnetID] += 1 + len(e.Secondary) + 16*len(e.Prefixes)
	}
	return n
}

func TestExhaustedSubnetLeadsToTheNext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0), discovery, func(_ *Options, r *rig) {
			for r.cloud.free() > 130 { // still more than the other one when it is asked
				r.cloud.takeIP()
			}
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 5); errs != nil {
			t.Fatal(errs)
		}
		r.cloud.mu.Lock()
		for r.cloud.free() > 0 {
			r.cloud.takeIP()
		}
		r.cloud.mu.Unlock()
		replies, errs, took := r.burst(5, 10)
		if errs != nil || took > 15*time.Second {
			t.Fatalf("took %s: %v", took, errs)
		}
		for _, reply := range replies {
			if !netip.MustParsePrefix("10.0.1.0/25").Contains(reply.Address) {
				t.Errorf("%+v", reply)
			}
		}
		if got := subnetsOf(r); got["subnet-b"] != 12 {
			t.Errorf("%v", got)
		}
		for _, e := range r.host.config().ENIs {
			if want := r.cloud.rangeOf(subnetOf(r, e.ID)); e.SubnetCIDR != want {
				t.Errorf("%s is wired for %s, lies in %s", e.ID, e.SubnetCIDR, want)
			}
		}
		before := r.cloud.count("DescribeSubnets")
		time.Sleep(24 * time.Hour)
		if before != 1 || r.cloud.count("DescribeSubnets") != 1 {
			t.Errorf("%d DescribeSubnets, %d after a day", before, r.cloud.count("DescribeSubnets"))
		}
		r.stop()
	})
}

func subnetOf(r *rig, eni string) string {
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	return r.cloud.enis[eni].SubnetID
}

// TestDescribeSubnetsDenied: the primary ENI's subnet serves, and the right is asked for at most 12 times an hour.
func TestDescribeSubnetsDenied(t *testing.T) {
	for name, why := range map[string]error{"denied": awsError("UnauthorizedOperation"), "failing": awsError("InternalError"),
		"no answer": context.DeadlineExceeded} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, warmENI(1), discovery)
				r.cloud.fail(func(call string, _ int) fault {
					if call == "DescribeSubnets" {
						return fault{err: why}
					}
					return fault{}
				})
				<-r.Ready()
				if _, errs, _ := r.burst(0, 15); errs != nil {
					t.Fatal(errs)
				}
				if got := subnetsOf(r); len(got) != 1 || got[testSubnet] != 18 {
					t.Errorf("%v", got)
				}
				time.Sleep(time.Hour)
				if n := r.cloud.count("DescribeSubnets"); n > 12 {
					t.Errorf("%d calls", n)
				}
				r.stop()
			})
		})
	}
}

// TestExcludedPrimarySubnet: pods of before keep their addresses, new ones get none of the primary ENI, and what is
// unused of it goes back.
func TestExcludedPrimarySubnet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1), discovery)
		<-r.Ready()
		held := r.mustAdd(0)
		if held.Device != 0 {
			t.Fatalf("%+v", held)
		}
		time.Sleep(time.Minute)
		r.stop()
		r.cloud.tags[testSubnet] = map[string]string{tagRole: "0"}
		r.boot(warmENI(1), discovery, func(o *Options, _ *rig) {
			o.Rand = rand.New(rand.NewPCG(3, 4)) // another life has other client tokens
		})
		<-r.Ready()
		time.Sleep(10 * time.Minute) // the answer is needed only for growth
		replies, errs, _ := r.burst(1, 9)
		if errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(10 * time.Minute)
		if again := r.mustAdd(0); again.Address != held.Address {
			t.Errorf("pod 0 had %s, gets %s", held.Address, again.Address)
		}
		late := 0
		for _, reply := range replies {
			if reply.Device == 0 {
				late++
			}
		}
		if reply := r.mustAdd(10); reply.Device == 0 || late > 4 {
			t.Errorf("%d new pods on the primary ENI, and %+v", late, reply)
		}
		for _, e := range r.View().ENIs {
			if e.Primary && e.Counts.Free > 0 {
				t.Errorf("the primary ENI holds %+v", e.Counts)
			}
		}
		r.wantSame()
		r.stop()
	})
}

// TestExcludedFromTheStart: a new node never uses the primary ENI's subnet.
func TestExcludedFromTheStart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0), discovery, func(_ *Options, r *rig) {
			r.cloud.tags[testSubnet] = map[string]string{tagRole: "0"}
		})
		<-r.Ready()
		for i := range 10 {
			if reply := r.mustAdd(i); reply.Device == 0 {
				t.Errorf("pod %d: %+v", i, reply)
			}
		}
		_, err := r.Add(t.Context(), pod(10))
		r.wantRefusal(err, CodeAtLimit, "t3.medium")
		if got := subnetsOf(r); got[testSubnet] != 1 {
			t.Errorf("%v", got)
		}
		r.stop()
	})
}

// TestNoSubnetMayBeUsed says so.
func TestNoSubnetMayBeUsed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0), discovery, func(_ *Options, r *rig) {
			r.cloud.tags[testSubnet], r.cloud.tags["subnet-b"] = map[string]string{tagRole: "0"}, nil
		})
		<-r.Ready()
		_, err := r.Add(t.Context(), pod(0))
		r.wantRefusal(err, CodeSubnetExhausted, "the tags of the zone's subnets forbid the use of all of them")
		r.cloud.mu.Lock()
		r.cloud.tags["subnet-b"] = map[string]string{tagRole: "1"}
		r.cloud.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if reply := r.mustAdd(1); reply.Device == 0 {
			t.Errorf("%+v", reply)
		}
		r.stop()
	})
}
