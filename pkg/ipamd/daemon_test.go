package ipamd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
)

// rig is a t3.medium with a daemon. It lives in a synctest bubble: time passes as fast as nothing happens.
type rig struct {
	t     *testing.T
	cloud *cloud
	host  *host
	disk  *disk
	*Daemon
	stop func()
	end  chan error
}

func testOptions(c *cloud, targets warmpool.Targets) Options {
	return Options{
		Settings: Settings{Targets: targets, Cooldown: 30 * time.Second},
		Identity: awsutils.Identity{InstanceID: testInstance, InstanceType: "t3.medium", PrimaryENI: testPrimary,
			SubnetID: testSubnet, PrimaryIP: c.enis[testPrimary].Primary},
		Limits:   awsutils.Limits{ENIs: c.maxENIs, IPv4PerENI: c.maxIPs},
		Groups:   []string{"sg-1"},
		VPCCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		Subnets:  map[string]netip.Prefix{testSubnet: testCIDR},
		Rand:     rand.New(rand.NewPCG(1, 2)),
	}
}

func newRig(t *testing.T, targets warmpool.Targets, change ...func(*Options, *rig)) *rig {
	t.Helper()
	r := &rig{t: t, cloud: newCloud(3, 6)}
	r.cloud.attachDelay, r.cloud.detachDelay = 8*time.Second, 3*time.Second
	r.host = &host{cloud: r.cloud, delay: 5 * time.Millisecond}
	r.disk = &disk{delay: time.Millisecond}
	r.boot(targets, change...)
	return r
}

// boot starts a daemon on what the rig's cloud, host and disk have.
func (r *rig) boot(targets warmpool.Targets, change ...func(*Options, *rig)) {
	r.t.Helper()
	o := testOptions(r.cloud, targets)
	o.Restored = r.disk.state
	o.EC2 = account{r.cloud, 100 * time.Millisecond}
	o.Network, o.Checkpointer = r.host, r.disk
	for _, f := range change {
		f(&o, r)
	}
	d, err := New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Daemon, r.disk.take = d, d.Durable
	ctx, cancel := context.WithCancel(context.Background())
	r.end = make(chan error, 1)
	go func() { r.end <- d.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-r.end; err != nil {
			r.t.Error(err)
		}
	}
}

func pod(n int) AddRequest {
	return AddRequest{Sandbox: Sandbox{NetworkName: "aws-cni", ContainerID: fmt.Sprintf("c%03d", n), IfName: "eth0"},
		Namespace: "default", Pod: fmt.Sprintf("p%03d", n)}
}

func (r *rig) mustAdd(n int) AddReply {
	r.t.Helper()
	reply, err := r.Add(context.Background(), pod(n))
	if err != nil {
		r.t.Fatalf("pod %d: %v", n, err)
	}
	return reply
}

func (r *rig) mustDel(n int) {
	r.t.Helper()
	if _, err := r.Del(context.Background(), DelRequest{Sandbox: pod(n).Sandbox}); err != nil {
		r.t.Fatalf("del pod %d: %v", n, err)
	}
}

// burst adds pods at once and returns the replies, the errors and the longest wait.
func (r *rig) burst(from, n int) ([]AddReply, []error, time.Duration) {
	type one struct {
		reply AddReply
		err   error
	}
	start := time.Now()
	out := make(chan one, n)
	for i := range n {
		go func() {
			reply, err := r.Add(context.Background(), pod(from+i))
			out <- one{reply, err}
		}()
	}
	var replies []AddReply
	var errs []error
	for range n {
		x := <-out
		if x.err != nil {
			errs = append(errs, x.err)
		} else {
			replies = append(replies, x.reply)
		}
	}
	return replies, errs, time.Since(start)
}

func (r *rig) wantCalls(want map[string]int) {
	r.t.Helper()
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	for name, n := range want {
		if r.cloud.counts[name] != n {
			r.t.Errorf("%s: %d calls, want %d", name, r.cloud.counts[name], n)
		}
	}
	for name, n := range r.cloud.counts {
		if _, ok := want[name]; !ok && n > 0 {
			r.t.Errorf("%s: %d calls, want none", name, n)
		}
	}
}

func (r *rig) wantRefusal(err error, code Code, part string) {
	r.t.Helper()
	var refusal *Refusal
	if !errors.As(err, &refusal) || refusal.Code != code || !strings.Contains(refusal.Reason, part) {
		r.t.Errorf("error %v, want %s with %q", err, code, part)
	}
}

func bubble(t *testing.T, f func(t *testing.T)) { t.Helper(); t.Parallel(); synctest.Test(t, f) }

func warmENI(n int) warmpool.Targets { return warmpool.Targets{WarmENI: n, MaxPods: 17} }

func TestFifteenPodsWithinTheBudget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		seen := map[netip.Addr]bool{}
		for i := range 15 {
			reply := r.mustAdd(i)
			if seen[reply.Address] {
				t.Fatalf("%s twice", reply.Address)
			}
			seen[reply.Address] = true
			if want := reply.Device + 1; reply.Device > 0 && reply.Table != want {
				t.Errorf("device %d: table %d", reply.Device, reply.Table)
			}
		}
		time.Sleep(time.Minute)
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignIPs": 1, "CreateENI": 2, "AttachENI": 2,
			"DeleteOnTermination": 2})
		_, err := r.Add(context.Background(), pod(15))
		r.wantRefusal(err, CodeAtLimit, "all 15 addresses that a t3.medium can give pods are in use: 3 ENIs x (6-1) addresses")
		r.stop()
	})
}

func TestSixteenthPodWaitsForACoolingAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		if _, errs, _ := r.burst(0, 15); errs != nil {
			t.Fatal(errs)
		}
		r.mustDel(3)
		start := time.Now()
		r.mustAdd(15)
		if took := time.Since(start); took < 29*time.Second || took > 31*time.Second {
			t.Errorf("waited %s for an address that cools for 30 s", took)
		}
		r.stop()
	})
}

func TestBurstOnAnEmptyPool(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0))
		<-r.Ready()
		time.Sleep(time.Second)
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1})
		_, errs, took := r.burst(0, 10)
		if errs != nil {
			t.Fatal(errs)
		}
		if took > 9*time.Second {
			t.Errorf("took %s with an attach delay of 8 s", took)
		}
		time.Sleep(time.Minute)
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignIPs": 1, "CreateENI": 1, "AttachENI": 1,
			"DeleteOnTermination": 1})
		r.stop()
	})
}

func TestBurstAttachesInParallel(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0))
		<-r.Ready()
		_, errs, took := r.burst(0, 15)
		if errs != nil {
			t.Fatal(errs)
		}
		if took > 9*time.Second {
			t.Errorf("took %s: two ENIs one after the other", took)
		}
		time.Sleep(time.Minute)
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignIPs": 1, "CreateENI": 2, "AttachENI": 2,
			"DeleteOnTermination": 2})
		r.stop()
	})
}

func TestBurstWithIPTargetsAsksForWhatIsMissing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmpool.Targets{WarmIP: 2, MinimumIP: 3})
		<-r.Ready()
		time.Sleep(time.Second)
		if _, errs, _ := r.burst(0, 10); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Minute)
		v := r.View()
		if v.Totals.Total != 12 || v.Totals.Assigned != 10 {
			t.Errorf("totals %+v, want 10 pods and 2 free", v.Totals)
		}
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignIPs": 2, "CreateENI": 2, "AttachENI": 2,
			"DeleteOnTermination": 2})
		r.stop()
	})
}

func TestIdleDayCallsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		for i := range 6 {
			r.mustAdd(i)
		}
		time.Sleep(10 * time.Minute)
		before, saves := r.cloud.total(), r.disk.count()
		time.Sleep(24 * time.Hour)
		if after := r.cloud.total(); after != before {
			t.Errorf("%d EC2 calls in an idle day", after-before)
		}
		if after := r.disk.count(); after != saves {
			t.Errorf("%d commits in an idle day", after-saves)
		}
		r.stop()
	})
}

func TestShrinksToTheWarmTarget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		if _, errs, _ := r.burst(0, 15); errs != nil {
			t.Fatal(errs)
		}
		for i := range 15 {
			r.mustDel(i)
		}
		time.Sleep(5 * time.Minute)
		if v := r.View(); len(v.ENIs) != 1 || v.Totals.Total != 5 || v.Totals.Free != 5 {
			t.Errorf("%d ENIs, %+v", len(v.ENIs), v.Totals)
		}
		if n := r.cloud.size(); n != 1 {
			t.Errorf("%d ENIs in EC2", n)
		}
		if n := len(r.host.config().ENIs); n != 1 {
			t.Errorf("%d ENIs in the host's network", n)
		}
		before := r.cloud.total()
		time.Sleep(time.Hour)
		if r.cloud.total() != before {
			t.Error("calls after the pool has settled")
		}
		r.stop()
	})
}

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

func TestCancelledAddGivesTheAddressBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0))
		<-r.Ready()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			_, err := r.Add(ctx, pod(1))
			done <- err
		}()
		time.Sleep(50 * time.Millisecond)
		cancel()
		r.wantRefusal(<-done, CodeCancelled, "went away")
		if v := r.View(); v.Waiting != 0 {
			t.Errorf("%d wait", v.Waiting)
		}
		// While the commit is in flight: the address was assigned and nobody got to know.
		time.Sleep(time.Minute)
		r.disk.slow(time.Second)
		ctx, cancel = context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		_, err := r.Add(ctx, pod(2))
		r.wantRefusal(err, CodeCancelled, "went away")
		time.Sleep(5 * time.Second)
		if v := r.View(); v.Totals.Assigned != 0 || v.Totals.Cooling != 0 || v.Counters.Undone != 1 {
			t.Errorf("%+v, undone %d", v.Totals, v.Counters.Undone)
		}
		if n := len(r.disk.last().Allocations); n != 0 {
			t.Errorf("%d allocations are durable", n)
		}
		r.disk.slow(0)
		r.stop()
	})
}

func TestDelCancelsAWaitingAdd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0))
		<-r.Ready()
		done := make(chan error, 1)
		go func() {
			_, err := r.Add(context.Background(), pod(1))
			done <- err
		}()
		time.Sleep(30 * time.Millisecond)
		_, err := r.Del(context.Background(), DelRequest{Sandbox: pod(1).Sandbox})
		if !errors.Is(err, datastore.ErrUnknownPod) || !strings.Contains(err.Error(), "datastore: unknown pod") {
			t.Errorf("DEL of a waiting ADD: %v", err)
		}
		r.wantRefusal(<-done, CodeCancelled, "DEL")
		time.Sleep(time.Minute)
		if v := r.View(); v.Totals.Assigned != 0 {
			t.Errorf("%+v", v.Totals)
		}
		r.stop()
	})
}

func TestFailedCommitLeavesNoTrace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		r.mustAdd(0)
		time.Sleep(time.Minute)
		r.disk.mu.Lock()
		r.disk.fails = func() error { return errors.New("no space left on device") }
		r.disk.mu.Unlock()
		_, err := r.Add(context.Background(), pod(1))
		r.wantRefusal(err, CodeStorage, "no space left")
		_, err = r.Del(context.Background(), DelRequest{Sandbox: pod(0).Sandbox})
		r.wantRefusal(err, CodeStorage, "no space left")
		if v := r.View(); v.Totals.Assigned != 1 || v.Totals.Cooling != 0 {
			t.Errorf("%+v", v.Totals)
		}
		r.disk.mu.Lock()
		r.disk.fails = nil
		r.disk.mu.Unlock()
		r.mustDel(0)
		r.mustAdd(1)
		r.stop()
	})
}

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

// wantSame checks that EC2, the ledger and the host agree.
func (r *rig) wantSame() {
	r.t.Helper()
	ledger := map[string][]netip.Prefix{}
	for _, e := range r.View().ENIs {
		for _, b := range e.Pool {
			ledger[e.ID] = append(ledger[e.ID], b.CIDR)
		}
	}
	wired := map[string]hostnet.ENI{}
	for _, e := range r.host.config().ENIs {
		wired[e.ID] = e
	}
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	for id, e := range r.cloud.enis {
		var want []netip.Prefix
		for _, ip := range clone(e).Secondary {
			want = append(want, single(ip))
		}
		if !slices.Equal(ledger[id], want) || !slices.Equal(wired[id].Pool, want) {
			r.t.Errorf("%s has %v in EC2, %v in the ledger, %v on the host", id, want, ledger[id], wired[id].Pool)
		}
		if !e.DeleteOnTermination {
			r.t.Errorf("%s would outlive the node", id)
		}
	}
	if len(ledger) > len(r.cloud.enis) || len(wired) > len(r.cloud.enis) {
		r.t.Errorf("%d ENIs in EC2, %d in the ledger, %d on the host", len(r.cloud.enis), len(ledger), len(wired))
	}
}

func TestShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0))
		<-r.Ready()
		done := make(chan error, 1)
		go func() {
			_, err := r.Add(context.Background(), pod(1))
			done <- err
		}()
		time.Sleep(30 * time.Millisecond)
		start := time.Now()
		r.stop()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("took %s", took)
		}
		r.wantRefusal(<-done, CodeShutdown, "ending")
		_, err := r.Add(context.Background(), pod(2))
		r.wantRefusal(err, CodeShutdown, "not running")
	})
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

func TestRepeatedAddOfALostReplyKeepsTheAddress(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		first := r.mustAdd(1)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err := r.Add(ctx, pod(1)) // a repetition that is given up must not take the address from the pod
		r.wantRefusal(err, CodeCancelled, "")
		if again := r.mustAdd(1); again.Address != first.Address {
			t.Errorf("%s, then %s", first.Address, again.Address)
		}
		r.stop()
	})
}

func TestDelOfReleasedSandboxWaitsForTheCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		r.mustAdd(1)
		time.Sleep(time.Minute)
		r.disk.slow(time.Second)
		first := make(chan error, 1)
		go func() {
			_, err := r.Del(context.Background(), DelRequest{Sandbox: pod(1).Sandbox})
			first <- err
		}()
		time.Sleep(10 * time.Millisecond)
		start := time.Now()
		_, err := r.Del(context.Background(), DelRequest{Sandbox: pod(1).Sandbox})
		if !errors.Is(err, datastore.ErrUnknownPod) || time.Since(start) < 900*time.Millisecond {
			t.Errorf("%v after %s: a crash now would bring the address back", err, time.Since(start))
		}
		if err := <-first; err != nil {
			t.Errorf("the first DEL: %v", err)
		}
		if n := len(r.disk.last().Allocations); n != 0 {
			t.Errorf("%d allocations are durable", n)
		}
		r.disk.slow(0)
		r.stop()
	})
}

func TestHostIsRepairedAtAPace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		time.Sleep(time.Minute)
		applies := func() uint64 { return r.View().Counters.Applies }
		before := applies()
		r.HostChanged()
		time.Sleep(time.Millisecond)
		if n := applies() - before; n != 1 {
			t.Errorf("a change of the host made %d applies, want 1 at once", n)
		}
		// Somebody undoes all that is done, every 10 ms for 5 s.
		before = applies()
		for range 500 {
			r.HostChanged()
			time.Sleep(10 * time.Millisecond)
		}
		if n := applies() - before; n < 5 || n > 11 {
			t.Errorf("%d applies in 5 s, want about 2 a second", n)
		}
		time.Sleep(time.Minute)
		before = applies()
		time.Sleep(time.Hour)
		if n := applies() - before; n != 0 {
			t.Errorf("%d applies after the host was left alone", n)
		}
		r.stop()
	})
}

func TestVPCRangesReachTheHostAndTheReplies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1), func(o *Options, _ *rig) {
			o.Settings.Host.ExcludeSNATCIDRs = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}
		})
		<-r.Ready()
		time.Sleep(time.Second)
		added := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("100.64.0.0/16")}
		r.SetVPCCIDRs(added)
		time.Sleep(time.Second)
		if got := r.host.config().VPCCIDRs; !slices.Equal(got, added) {
			t.Errorf("host has %v", got)
		}
		want := append(slices.Clone(added), netip.MustParsePrefix("192.168.0.0/16"))
		if got := r.mustAdd(1).NoSNAT; !slices.Equal(got, want) {
			t.Errorf("reply has %v, want %v", got, want)
		}
		r.stop()
	})
}

func TestNewReportsEverythingThatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := New(Options{})
	for _, part := range []string{"EC2", "primary ENI", "limits", "subnet"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v lacks %q", err, part)
		}
	}
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
