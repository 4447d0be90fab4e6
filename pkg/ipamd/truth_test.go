package ipamd

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/warmpool"
)

func TestLostENIServesItsPodsAndGoesWithTheLast(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmpool.Targets{WarmIP: 1})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 7); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Minute)
		var gone string
		var there []int
		for _, e := range r.View().ENIs {
			if e.Primary {
				continue
			}
			gone = e.ID
			for _, b := range e.Pool {
				if h := b.Addresses[0].Holder; h != nil {
					var n int
					if _, err := fmt.Sscanf(h.Pod, "p%d", &n); err != nil {
						t.Fatal(err)
					}
					there = append(there, n)
				}
			}
		}
		r.cloud.mu.Lock()
		delete(r.cloud.enis, gone)
		r.cloud.mu.Unlock()
		// One more pod makes the daemon ask for an address there, and find out.
		r.mustAdd(7)
		time.Sleep(5 * time.Minute)
		v := r.View()
		if v.Counters.ENIsLost != 1 || v.Totals.Assigned != 8 {
			t.Fatalf("%d lost, %+v", v.Counters.ENIsLost, v.Totals)
		}
		if _, errs, _ := r.burst(10, 3); errs != nil {
			t.Fatal("the slot of a lost ENI is free: ", errs)
		}
		for _, n := range append(there, 7) {
			_, _ = r.Del(context.Background(), DelRequest{Sandbox: pod(n).Sandbox})
		}
		for _, e := range r.View().ENIs {
			if e.ID == gone {
				t.Errorf("still there: %+v", e)
			}
		}
		r.stop()
	})
}

func TestForeignENIsAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1), func(_ *Options, r *rig) {
			for i, tags := range []map[string]string{{tagNoManage: "true"}} {
				e, err := r.cloud.create(awsutils.NewENI{SubnetID: testSubnet, Token: fmt.Sprint(i), Tags: tags}, time.Now())
				if err != nil {
					r.t.Fatal(err)
				}
				if _, err := r.cloud.attach(e.ID, testInstance, 1, time.Now()); err != nil {
					r.t.Fatal(err)
				}
			}
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 10); errs != nil {
			t.Fatal(errs)
		}
		_, err := r.Add(context.Background(), pod(10))
		r.wantRefusal(err, CodeAtLimit, "2 ENIs x (6-1) addresses; 1 more ENIs of this node are not managed")
		for i := range 10 {
			r.mustDel(i)
		}
		time.Sleep(10 * time.Minute)
		if n := r.cloud.size(); n != 2 {
			t.Errorf("%d ENIs, want the primary one and the foreign one", n)
		}
		r.stop()
	})
}

func TestAnENIThatLeftIsNotTakenInAgain(t *testing.T) {
	t.Parallel()
	cl := newCloud(3, 6)
	o := testOptions(cl, warmENI(1))
	c := newController(o, o.Rand)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	stale := awsutils.ENI{ID: "eni-9", Device: 1, MAC: macOf(9), SubnetID: testSubnet, Primary: netip.MustParseAddr("10.0.0.99"),
		Type: "interface", Status: "in-use", InstanceID: testInstance, AttachmentID: "att-9", DeleteOnTermination: true}
	c.forget("eni-9", now)
	c.adopt([]awsutils.ENI{clone(cl.enis[testPrimary]), stale}, now, now)
	if c.enis["eni-9"] != nil || c.enis[testPrimary] == nil {
		t.Errorf("took in %v", c.sorted())
	}
}
