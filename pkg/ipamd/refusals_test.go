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
