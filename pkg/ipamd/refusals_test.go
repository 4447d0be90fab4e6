package ipamd

import (
	"context"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

func TestSubnetExhausted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1), func(_ *Options, r *rig) {
			for r.cloud.free() > 3 {
				r.cloud.takeIP()
			}
		})
		<-r.Ready()
		time.Sleep(10 * time.Second)
		if _, errs, _ := r.burst(0, 3); errs != nil {
			t.Fatal(errs)
		}
		start := time.Now()
		_, err := r.Add(context.Background(), pod(3))
		r.wantRefusal(err, CodeSubnetExhausted, "subnet-a has no free address")
		if time.Since(start) > 2*time.Second {
			t.Errorf("refused after %s", time.Since(start))
		}
		before := r.cloud.total()
		time.Sleep(time.Hour)
		if n := r.cloud.total() - before; n > 4*30 {
			t.Errorf("%d calls in an hour of an exhausted subnet", n)
		}
		r.cloud.mu.Lock()
		for ip := range r.cloud.used {
			if ip.As4()[3] > 100 {
				delete(r.cloud.used, ip)
			}
		}
		r.cloud.mu.Unlock()
		time.Sleep(3 * time.Minute)
		r.mustAdd(4)
		r.stop()
	})
}

func TestDeniedCreate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		r.cloud.fail(func(call string, _ int) fault {
			if call == "CreateENI" {
				return fault{err: awsError("UnauthorizedOperation")}
			}
			return fault{}
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 5); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Second)
		_, err := r.Add(context.Background(), pod(5))
		r.wantRefusal(err, CodeDenied, "ec2:CreateNetworkInterface")
		before := r.cloud.count("CreateENI")
		time.Sleep(time.Hour)
		if n := r.cloud.count("CreateENI") - before; n > 12 {
			t.Errorf("%d tries an hour", n)
		}
		r.stop()
	})
}

// TestLostResponses loses the answer of each kind of call, once. Nothing may leak and every pod gets its address.
func TestLostResponses(t *testing.T) {
	for _, lost := range []string{"DescribeENIs", "CreateENI", "AttachENI", "DeleteOnTermination", "AssignIPs", "UnassignIPs",
		"DetachENI", "DeleteENI"} {
		t.Run(lost, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, warmpool.Targets{WarmIP: 1})
				r.cloud.fail(func(call string, n int) fault {
					return fault{lost: call == lost && n == 1}
				})
				<-r.Ready()
				if _, errs, _ := r.burst(0, 13); errs != nil {
					t.Fatal(errs)
				}
				time.Sleep(2 * time.Minute)
				for i := range 12 {
					r.mustDel(i)
				}
				time.Sleep(10 * time.Minute)
				v := r.View()
				if v.Totals.Total != 2 || v.Totals.Assigned != 1 || len(v.InFlight) != 0 {
					t.Errorf("%+v, in flight %+v", v.Totals, v.InFlight)
				}
				r.wantSame()
				r.stop()
			})
		})
	}
}

func TestDeniedDetachLeavesAnENIThatServes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0))
		r.cloud.fail(func(call string, _ int) fault {
			if call == "DetachENI" {
				return fault{err: awsError("UnauthorizedOperation")}
			}
			return fault{}
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 10); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Minute)
		for i := range 10 {
			r.mustDel(i)
		}
		time.Sleep(10 * time.Minute)
		before := r.cloud.count("DetachENI")
		if before == 0 {
			t.Fatal("no detach was tried")
		}
		time.Sleep(time.Hour)
		if n := r.cloud.count("DetachENI") - before; n > 12 {
			t.Errorf("%d tries an hour", n)
		}
		if _, errs, took := r.burst(20, 10); errs != nil || took > time.Second {
			t.Errorf("%v after %s", errs, took)
		}
		r.stop()
	})
}

func TestLimitLowerThanTheTable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1), func(_ *Options, r *rig) { r.cloud.maxENIs = 2 })
		<-r.Ready()
		if _, errs, _ := r.burst(0, 10); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(10 * time.Minute)
		_, err := r.Add(context.Background(), pod(10))
		r.wantRefusal(err, CodeAtLimit, "AttachmentLimitExceeded")
		if n := r.cloud.size(); n != 2 {
			t.Errorf("%d ENIs in EC2", n)
		}
		time.Sleep(2 * time.Hour)
		before := r.cloud.total()
		time.Sleep(24 * time.Hour)
		if n := r.cloud.total() - before; n > 24*5 {
			t.Errorf("%d calls a day for an ENI that cannot be had", n)
		}
		r.stop()
	})
}

// TestEveryDeniedCallIsRareAndCostsNothingHeld denies each call in turn for two hours in which a node's pods come, go
// and come again. The call is made 12 times an hour at most, and pods get what is held and what the other calls bring.
func TestEveryDeniedCallIsRareAndCostsNothingHeld(t *testing.T) {
	const maxPods = 15
	for denied, pods := range map[string]int{
		"DescribeENIs": maxPods, // it was asked before
		"AssignIPs":    10,      // two more ENIs are created with theirs
		"CreateENI":    5,
		"AttachENI":    5,
		// Only giving back is denied, or what nobody waits for.
		"DeleteOnTermination": maxPods, "UnassignIPs": maxPods, "DetachENI": maxPods, "DeleteENI": maxPods,
	} {
		t.Run(denied, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, warmpool.Targets{WarmIP: 1, MaxPods: maxPods + 2})
				<-r.Ready()
				time.Sleep(30 * time.Second)
				var tries []time.Time
				r.cloud.fail(func(call string, _ int) fault {
					if call == denied {
						tries = append(tries, time.Now())
						return fault{err: awsError("UnauthorizedOperation")}
					}
					return fault{}
				})
				for round := range 4 {
					replies, errs, _ := r.burst(100*round, maxPods)
					if len(replies) < pods {
						t.Errorf("round %d: %d pods have an address, want %d: %v", round, len(replies), pods, errs)
					}
					for i, err := range errs {
						if i == 0 {
							r.wantRefusal(err, CodeDenied, "")
						}
					}
					time.Sleep(15 * time.Minute)
					for i := range maxPods {
						_, _ = r.Del(context.Background(), DelRequest{Sandbox: pod(100*round + i).Sandbox})
					}
					time.Sleep(15 * time.Minute)
				}
				r.cloud.fail(nil)
				for i, first := range tries {
					if i+12 < len(tries) && tries[i+12].Sub(first) < time.Hour {
						t.Errorf("%d tries within an hour, from %s on; all: %v", 13, first.Format(time.TimeOnly), times(tries))
						break
					}
				}
				// An ENI that cannot be deleted is not followed by others.
				if n := r.cloud.available(); n > 1 {
					t.Errorf("%d ENIs are attached to nothing", n)
				}
				t.Logf("%d tries in %s", len(tries), 4*30*time.Minute)
				r.stop()
			})
		})
	}
}

func times(list []time.Time) (out []string) {
	for _, x := range list {
		out = append(out, x.Format(time.TimeOnly))
	}
	return out
}

// available counts the ENIs that are attached to nothing.
func (c *cloud) available() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.enis {
		if e.Status == "available" {
			n++
		}
	}
	return n
}
