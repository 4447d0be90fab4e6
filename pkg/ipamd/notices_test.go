package ipamd

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

// board collects notices.
type board struct {
	mu  sync.Mutex
	all []Notice
}

func (b *board) post(n Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, n)
}

func (b *board) reasons() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, n := range b.all {
		out = append(out, n.Reason)
	}
	return strings.Join(out, " ")
}

// noticed makes a rig whose notices are collected.
func noticed(t *testing.T, targets warmpool.Targets, change ...func(*Options, *rig)) (*rig, *board) {
	t.Helper()
	b := &board{}
	change = append(change, func(o *Options, _ *rig) { o.Notify = b.post })
	return newRig(t, targets, change...), b
}

func (b *board) want(t *testing.T, when, reasons string) {
	t.Helper()
	if got := b.reasons(); got != reasons {
		t.Errorf("%s: %q, want %q", when, got, reasons)
	}
}

func emptySubnet(_ *Options, r *rig) {
	for r.cloud.free() > 3 {
		r.cloud.takeIP()
	}
}

func TestNoticesOfAnExhaustedSubnet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, b := noticed(t, warmENI(1), emptySubnet)
		<-r.Ready()
		if _, errs, _ := r.burst(0, 3); errs != nil {
			t.Fatal(errs)
		}
		for range 30 { // a kubelet tries again and again
			if _, err := r.Add(context.Background(), pod(9)); err == nil {
				t.Fatal("there was an address")
			}
			time.Sleep(time.Minute)
		}
		b.want(t, "half an hour", "SubnetExhausted")
		r.cloud.mu.Lock()
		for ip := range r.cloud.used {
			if ip.As4()[3] > 100 {
				delete(r.cloud.used, ip)
			}
		}
		r.cloud.mu.Unlock()
		time.Sleep(5 * time.Minute)
		b.want(t, "addresses for 5 minutes", "SubnetExhausted")
		time.Sleep(20 * time.Minute)
		b.want(t, "addresses for 25 minutes", "SubnetExhausted SubnetRecovered")
		r.stop()
	})
}

func TestNoticesOfADeniedCall(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, b := noticed(t, warmENI(1))
		var allowed bool
		var mu sync.Mutex
		r.cloud.fail(func(call string, _ int) fault {
			mu.Lock()
			defer mu.Unlock()
			if call == "CreateENI" && !allowed {
				return fault{err: awsError("UnauthorizedOperation")}
			}
			return fault{}
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 5); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Hour)
		b.want(t, "an hour", "EC2Denied")
		mu.Lock()
		allowed = true
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		b.want(t, "allowed", "EC2Denied EC2Allowed")
		r.stop()
	})
}

func TestNoticesOfASilentEC2(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, b := noticed(t, warmENI(1))
		<-r.Ready()
		time.Sleep(time.Minute)
		var silent bool
		var mu sync.Mutex
		r.cloud.fail(func(string, int) fault {
			mu.Lock()
			defer mu.Unlock()
			if silent {
				return fault{err: context.DeadlineExceeded}
			}
			return fault{}
		})
		// One answer that is lost is no silence.
		mu.Lock()
		silent = true
		mu.Unlock()
		r.mustAdd(0)
		time.Sleep(2 * time.Second)
		mu.Lock()
		silent = false
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		b.want(t, "one lost answer", "")
		mu.Lock()
		silent = true
		mu.Unlock()
		for i := range 7 { // more than the pool is to have free
			r.mustAdd(1 + i)
		}
		time.Sleep(30 * time.Minute)
		b.want(t, "half an hour", "EC2Unreachable")
		mu.Lock()
		silent = false
		mu.Unlock()
		time.Sleep(5 * time.Minute)
		b.want(t, "it answers", "EC2Unreachable EC2Reachable")
		r.stop()
	})
}

func TestNoticesOfARestartWithoutEC2(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, b := noticed(t, warmENI(1))
		<-r.Ready()
		r.mustAdd(0)
		time.Sleep(time.Minute)
		r.stop()
		var silent sync.Mutex
		down := true
		r.cloud.fail(func(string, int) fault {
			silent.Lock()
			defer silent.Unlock()
			if down {
				return fault{err: context.DeadlineExceeded}
			}
			return fault{}
		})
		r.boot(warmENI(1), func(o *Options, _ *rig) { o.Notify = b.post })
		<-r.Ready()
		time.Sleep(time.Hour)
		if got := strings.Fields(b.reasons()); !slices.Contains(got, NoticeUnverified) || !slices.Contains(got, NoticeEC2Unreachable) || len(got) != 2 {
			t.Errorf("an hour without EC2: %v", got)
		}
		silent.Lock()
		down = false
		silent.Unlock()
		time.Sleep(5 * time.Minute)
		if got := strings.Fields(b.reasons()); !slices.Contains(got, NoticeVerified) || !slices.Contains(got, NoticeEC2Reachable) || len(got) != 4 {
			t.Errorf("EC2 is back: %v", got)
		}
		r.stop()
	})
}

func TestNoticesOfAFullNode(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, b := noticed(t, warmENI(1))
		<-r.Ready()
		if _, errs, _ := r.burst(0, 15); errs != nil {
			t.Fatal(errs)
		}
		for range 20 { // pods come and go on a full node
			if _, err := r.Add(context.Background(), pod(20)); err == nil {
				t.Fatal("there was an address")
			}
			r.mustDel(0)
			time.Sleep(time.Minute)
			r.mustAdd(0)
			time.Sleep(time.Minute)
		}
		b.want(t, "forty minutes", "NodeFull")
		time.Sleep(time.Hour)
		if _, err := r.Add(context.Background(), pod(20)); err == nil {
			t.Fatal("there was an address")
		}
		b.want(t, "another time", "NodeFull NodeFull")
		r.stop()
	})
}
