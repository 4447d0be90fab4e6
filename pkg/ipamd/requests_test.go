package ipamd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/ipamd/datastore"
)

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

// TestDelOfATakenBackAddressWaitsForTheCommit: the plugin was killed before it had its reply, and the runtime deletes the
// sandbox once. Should ipamd die then, nobody would ask again.
func TestDelOfATakenBackAddressWaitsForTheCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		lost := r.mustAdd(1)
		time.Sleep(time.Minute)
		r.disk.slow(time.Second)
		r.Undelivered(pod(1).Sandbox, lost)
		time.Sleep(10 * time.Millisecond)
		_, err := r.Del(context.Background(), DelRequest{Sandbox: pod(1).Sandbox})
		if n := len(r.disk.last().Allocations); !errors.Is(err, datastore.ErrUnknownPod) || n != 0 {
			t.Errorf("%v, with %d durable allocations: a crash now would bring the address back", err, n)
		}
		r.disk.slow(0)
		r.stop()
	})
}

// TestUndeliveredReply: the server says after Add returned that the reply reached nobody.
func TestUndeliveredReply(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		lost := r.mustAdd(1)
		time.Sleep(time.Minute)
		r.Undelivered(pod(1).Sandbox, lost)
		time.Sleep(time.Second)
		if v := r.View(); v.Totals.Assigned != 0 || v.Totals.Cooling != 0 || v.Counters.Undone != 1 {
			t.Errorf("%+v, undone %d", v.Totals, v.Counters.Undone)
		}
		if n := len(r.disk.last().Allocations); n != 0 {
			t.Errorf("%d allocations are durable", n)
		}
		// Somebody has asked again meanwhile, and has the address.
		first := r.mustAdd(2)
		time.Sleep(time.Second)
		again := r.mustAdd(2)
		r.Undelivered(pod(2).Sandbox, first)
		// A repetition's reply is lost: whoever heard the first one has the address.
		r.Undelivered(pod(2).Sandbox, again)
		// The sandbox was deleted and came again.
		old := r.mustAdd(3)
		r.mustDel(3)
		time.Sleep(time.Second)
		r.mustAdd(3)
		r.Undelivered(pod(3).Sandbox, old)
		time.Sleep(time.Second)
		if v := r.View(); v.Totals.Assigned != 2 || v.Counters.Undone != 1 {
			t.Errorf("%+v, undone %d", v.Totals, v.Counters.Undone)
		}
		r.stop()
	})
}

func TestRepliesSayWhereTheTimeWent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(0))
		<-r.Ready()
		r.disk.slow(time.Second)
		got := r.mustAdd(1) // the pool is empty: an address is brought in
		if got.Waited < 20*time.Millisecond || got.Waited > 30*time.Second || got.Recorded < time.Second || got.Recorded > 3*time.Second {
			t.Errorf("waited %s, recorded %s", got.Waited, got.Recorded)
		}
		gone, err := r.Del(context.Background(), DelRequest{Sandbox: pod(1).Sandbox})
		if err != nil || gone.Recorded < time.Second || gone.Recorded > 3*time.Second {
			t.Errorf("%v, recorded %s", err, gone.Recorded)
		}
		r.disk.slow(0)
		r.stop()
	})
}
