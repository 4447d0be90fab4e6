package ipamd

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

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

// TestIdleLog: what does not change is not said. A node with pods writes at most 10 lines an hour at INFO and above, and
// every line names the file that says it.
func TestIdleLog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		lines := &lineCounter{}
		r := newRig(t, warmENI(1), func(o *Options, _ *rig) { o.Log = slog.New(lines) })
		<-r.Ready()
		for i := range 6 {
			r.mustAdd(i)
		}
		time.Sleep(10 * time.Minute)
		before := lines.count()
		if before == 0 {
			t.Error("nothing was logged at all")
		}
		time.Sleep(24 * time.Hour)
		if n := lines.count() - before; n > 24*10 {
			t.Errorf("%d lines in an idle day", n)
		}
		r.stop()
		if lines.sites["daemon.go"] > 0 || lines.sites["grow.go"] == 0 {
			t.Errorf("lines by file: %v", lines.sites)
		}
	})
}

// lineCounter counts lines at INFO and above, by the file that says them.
type lineCounter struct {
	mu    sync.Mutex
	n     int
	sites map[string]int
}

func (l *lineCounter) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *lineCounter) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (l *lineCounter) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	if l.sites == nil {
		l.sites = map[string]int{}
	}
	if s := r.Source(); s != nil {
		l.sites[filepath.Base(s.File)]++
	}
	return nil
}

func (l *lineCounter) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *lineCounter) WithGroup(string) slog.Handler      { return l }

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
