package ipamd

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

// withIMDS gives the rig's daemons an IMDS.
func withIMDS(imds **teller) func(*Options, *rig) {
	return func(o *Options, r *rig) {
		if *imds == nil {
			*imds = &teller{cloud: r.cloud}
		}
		o.Metadata = *imds
	}
}

// omit is an IMDS that leaves an address out.
func omit(ip netip.Addr) func([]awsutils.ENI, time.Time) ([]awsutils.ENI, error) {
	return func(truth []awsutils.ENI, _ time.Time) ([]awsutils.ENI, error) {
		for i := range truth {
			truth[i].Secondary = slices.DeleteFunc(truth[i].Secondary, func(x netip.Addr) bool { return x == ip })
		}
		return truth, nil
	}
}

// writes counts the lines of a log.
type writes struct{ atomic.Int64 }

func (w *writes) Write(line []byte) (int, error) {
	w.Add(1)
	return len(line), nil
}

// An idle node asks IMDS once a minute, and EC2 not at all; if IMDS is wrong and stays so, twice.
func TestIdleDayWithIMDS(t *testing.T) {
	for name, want := range map[string]int{"right": 0, "wrong": 2, "failing": 0} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var imds *teller
				var log writes
				r := newRig(t, warmENI(1), withIMDS(&imds), func(o *Options, _ *rig) {
					o.Log = slog.New(slog.NewTextHandler(&log, nil))
				})
				<-r.Ready()
				if _, errs, _ := r.burst(0, 3); errs != nil {
					t.Fatal(errs)
				}
				time.Sleep(10 * time.Minute)
				calls, reads, lines := r.cloud.total(), imds.count(), log.Load()
				switch name {
				case "wrong":
					imds.say(omit(r.View().ENIs[0].Pool[4].CIDR.Addr()))
				case "failing":
					imds.say(func([]awsutils.ENI, time.Time) ([]awsutils.ENI, error) { return nil, errors.New("imds: 500") })
				}
				time.Sleep(24 * time.Hour)
				if n := r.cloud.total() - calls; n != want {
					t.Errorf("%d calls to EC2 in a day, want %d", n, want)
				}
				if n := imds.count() - reads; n > 1500 || n < 200 {
					t.Errorf("%d reads of IMDS in a day", n)
				}
				if n := log.Load() - lines; n > 1 {
					t.Errorf("%d lines in the log", n)
				}
				// Whatever IMDS says: all 15 pods that the node has room for get an address.
				if _, errs, _ := r.burst(10, 12); errs != nil {
					t.Error(errs)
				}
				r.stop()
			})
		})
	}
}

// What somebody takes away is handed out no more once IMDS has told of it, and EC2 is asked once.
func TestIMDSTellsOfAnAddressThatIsGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var imds *teller
		var notices []string
		r := newRig(t, warmpool.Targets{MinimumIP: 5}, withIMDS(&imds), func(o *Options, _ *rig) {
			o.Notify = func(n Notice) { notices = append(notices, n.Reason) }
		})
		<-r.Ready()
		held := r.mustAdd(0).Address
		time.Sleep(10 * time.Minute)
		describes := r.cloud.count("DescribeENIs")
		r.cloud.mu.Lock()
		e := r.cloud.enis[testPrimary]
		taken := e.Secondary[1]
		if taken == held {
			taken = e.Secondary[2]
		}
		e.Secondary = slices.DeleteFunc(e.Secondary, func(ip netip.Addr) bool { return ip == taken || ip == held })
		r.cloud.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if n := r.cloud.count("DescribeENIs") - describes; n != 1 {
			t.Errorf("%d Describes, want 1", n)
		}
		v := r.View()
		if v.Totals.Assigned != 1 || v.Totals.Quarantined != 0 {
			t.Errorf("%+v: what a pod holds stays, and nothing else", v.Totals)
		}
		replies, errs, _ := r.burst(1, 5)
		if errs != nil {
			t.Fatal(errs)
		}
		for _, x := range replies {
			if x.Address == taken || x.Address == held {
				t.Errorf("a pod gets %s", x.Address)
			}
		}
		if len(notices) != 1 || notices[0] != "AddressLost" {
			t.Errorf("notices %v", notices)
		}
		r.mustDel(0)
		for _, e := range r.View().ENIs {
			for _, b := range e.Pool {
				if b.CIDR.Addr() == held {
					t.Errorf("%s is still in the pool after its pod", held)
				}
			}
		}
		r.stop()
	})
}

// The walk finds an ENI that somebody detached: it serves nobody, its pods keep what they have until they end.
func TestIMDSTellsOfAnENIThatIsGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var imds *teller
		var notices []string
		r := newRig(t, warmENI(1), withIMDS(&imds), func(o *Options, _ *rig) {
			o.Notify = func(n Notice) { notices = append(notices, n.Reason) }
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 6); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(10 * time.Minute)
		var lost string
		for _, e := range r.View().ENIs {
			if !e.Primary && e.Assigned > 0 {
				lost = e.ID
			}
		}
		r.cloud.mu.Lock()
		delete(r.cloud.enis, lost)
		r.cloud.mu.Unlock()
		time.Sleep(2 * time.Minute)
		for _, e := range r.View().ENIs {
			if e.ID == lost && e.Phase != datastore.Lost {
				t.Errorf("%s is %s", lost, e.Phase)
			}
		}
		for i := range 6 {
			r.mustDel(i)
		}
		if want := []string{"ENILost", "LostENIFreed"}; !slices.Equal(notices, want) {
			t.Errorf("notices %v, want %v", notices, want)
		}
		r.stop()
	})
}

// With a journal a node serves as soon as its host's network stands, and asks EC2 within 30 s.
func TestRestartServesAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var imds *teller
		r := newRig(t, warmENI(1), withIMDS(&imds))
		<-r.Ready()
		r.mustAdd(0)
		time.Sleep(10 * time.Minute)
		r.stop()
		describes := r.cloud.count("DescribeENIs")
		start := time.Now()
		r.boot(warmENI(1), withIMDS(&imds))
		<-r.Ready()
		r.mustAdd(1)
		if took := time.Since(start); took > 20*time.Millisecond { // one Apply of 5 ms, one commit of 1 ms
			t.Errorf("took %s", took)
		}
		if n := r.cloud.count("DescribeENIs") - describes; n != 0 {
			t.Errorf("%d Describes before the first address", n)
		}
		time.Sleep(verifySpread + time.Second)
		if n := r.cloud.count("DescribeENIs") - describes; n != 1 || r.View().Verified.IsZero() {
			t.Errorf("%d Describes, verified %s", n, r.View().Verified)
		}
		// A pod that needs a new address does not wait for that.
		r.stop()
		r.boot(warmENI(1), withIMDS(&imds))
		<-r.Ready()
		start = time.Now()
		if _, errs, _ := r.burst(2, 13); errs != nil {
			t.Fatal(errs)
		}
		if took := time.Since(start); took > 10*time.Second { // 8 s to attach an ENI
			t.Errorf("the 15th pod waited %s", took)
		}
		r.stop()
	})
}

// A journal that another version's state file has overtaken serves nobody before EC2 was asked, and what EC2 does not
// have any more then serves nobody at all.
func TestStaleJournalServesNobody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmpool.Targets{MinimumIP: 5})
		<-r.Ready()
		kept := r.mustAdd(0).Address
		time.Sleep(time.Minute)
		r.stop()
		r.disk.state.Journal.Stale = true
		r.cloud.mu.Lock()
		e := r.cloud.enis[testPrimary]
		gone := slices.DeleteFunc(slices.Clone(e.Secondary), func(ip netip.Addr) bool { return ip == kept })
		e.Secondary = []netip.Addr{kept}
		r.cloud.mu.Unlock()
		r.boot(warmpool.Targets{MinimumIP: 5}, func(o *Options, r *rig) { o.EC2 = account{r.cloud, 5 * time.Second} })
		<-r.Ready()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if reply, err := r.Add(ctx, pod(1)); err == nil {
			t.Errorf("gets %s before EC2 was asked", reply.Address)
		}
		cancel()
		if reply := r.mustAdd(2); slices.Contains(gone, reply.Address) {
			t.Errorf("gets %s, which is gone", reply.Address)
		}
		if again := r.mustAdd(0); again.Address != kept {
			t.Errorf("pod 0 had %s, gets %s", kept, again.Address)
		}
		r.stop()
	})
}
