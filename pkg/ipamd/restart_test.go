package ipamd

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
)

func TestRestartKeepsWhatPodsHold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		held := map[int]netip.Addr{}
		for i := range 7 {
			held[i] = r.mustAdd(i).Address
		}
		time.Sleep(time.Minute)
		r.mustDel(0)
		r.stop()
		r.boot(warmENI(1))
		<-r.Ready()
		for i := 1; i < 7; i++ {
			if again := r.mustAdd(i); again.Address != held[i] {
				t.Errorf("pod %d had %s, gets %s", i, held[i], again.Address)
			}
		}
		if _, errs, _ := r.burst(10, 8); errs != nil {
			t.Fatal(errs)
		}
		for _, a := range r.View().ENIs {
			for _, b := range a.Pool {
				for _, x := range b.Addresses {
					if x.Address == held[0] && x.State != datastore.StateCooling {
						t.Errorf("%s was released before the restart and is %s", x.Address, x.State)
					}
				}
			}
		}
		if n := r.cloud.count("DescribeENIsByTag"); n != 1 {
			t.Errorf("%d searches for lost ENIs, although the journal says there are none", n)
		}
		r.stop()
	})
}

func TestServesFromTheJournalWithoutEC2(t *testing.T) {
	for _, code := range []string{"UnauthorizedOperation", ""} {
		t.Run("code="+code, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, warmENI(1))
				<-r.Ready()
				r.mustAdd(0)
				time.Sleep(time.Minute)
				r.stop()
				away := true
				r.cloud.fail(func(string, int) fault {
					switch { // called under the cloud's mutex
					case !away:
						return fault{}
					case code == "":
						return fault{err: context.DeadlineExceeded}
					}
					return fault{err: awsError(code)}
				})
				start := time.Now()
				r.boot(warmENI(1), func(o *Options, r *rig) {
					if code == "" {
						o.EC2 = account{r.cloud, 20 * time.Second}
					}
				})
				<-r.Ready()
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("serves after %s", took)
				}
				if _, errs, _ := r.burst(1, 5); errs != nil {
					t.Fatal(errs)
				}
				r.cloud.mu.Lock()
				away = false
				r.cloud.mu.Unlock()
				time.Sleep(20 * time.Minute)
				if v := r.View(); v.Verified.IsZero() || v.Totals.Assigned != 6 {
					t.Errorf("verified %s, %+v", v.Verified, v.Totals)
				}
				r.stop()
			})
		})
	}
}

func TestRestoredIntentIsLookedUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		time.Sleep(time.Minute)
		r.stop()
		// The last life ended between a creation and its attachment.
		left, err := r.cloud.create(awsutils.NewENI{SubnetID: testSubnet, Token: "t", IPs: 2,
			Description: "aws-K8S-" + testInstance, Tags: map[string]string{tagInstance: testInstance}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		r.disk.state.Journal.Intents = []checkpoint.Intent{{Kind: "create", Token: "t", Since: time.Now()}}
		r.boot(warmENI(1))
		<-r.Ready()
		time.Sleep(2 * time.Minute)
		if r.cloud.has(left.ID) {
			t.Error("the ENI is still there")
		}
		if n := len(r.Durable().Journal.Intents); n != 0 {
			t.Errorf("%d intents left", n)
		}
		r.stop()
	})
}

func TestNoENIIsCreatedThatTheJournalDoesNotKnow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(2), func(_ *Options, r *rig) {
			r.disk.fails = func() error { return errors.New("no space left on device") }
		})
		<-r.Ready()
		time.Sleep(time.Minute)
		if n := r.cloud.count("CreateENI"); n != 0 {
			t.Errorf("%d ENIs created", n)
		}
		if n := r.View().Counters.CommitErrors; n == 0 || n > 61 {
			t.Errorf("%d commits tried in a minute", n)
		}
		r.disk.mu.Lock()
		r.disk.fails = nil
		r.disk.mu.Unlock()
		time.Sleep(time.Minute)
		if n := r.cloud.count("CreateENI"); n != 1 {
			t.Errorf("%d ENIs created", n)
		}
		r.stop()
	})
}
