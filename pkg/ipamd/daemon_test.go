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

func bubble(t *testing.T, f func(t *testing.T)) { t.Helper(); t.Parallel(); synctest.Test(t, f) }

func warmENI(n int) warmpool.Targets { return warmpool.Targets{WarmENI: n, MaxPods: 17} }

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

func TestNewReportsEverythingThatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := New(Options{})
	for _, part := range []string{"EC2", "primary ENI", "limits", "subnet"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v lacks %q", err, part)
		}
	}
}
