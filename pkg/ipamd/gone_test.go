package ipamd

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

// gone tells the daemon of a DEL of the past.
func (r *rig) gone(n int, since time.Time) (DelReply, error) {
	r.t.Helper()
	return r.Del(context.Background(), DelRequest{Sandbox: pod(n).Sandbox, Gone: since})
}

// untilCooled is the time from now until an address may be handed out again, as the disk has it; 0 if it cools not.
func (r *rig) untilCooled(ip netip.Addr) time.Duration {
	for _, c := range r.disk.last().Journal.Cooling {
		if c.Address == ip {
			return time.Until(c.Until)
		}
	}
	return 0
}

func TestPodsGoneWhileIpamdWasAway(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmpool.Targets{MinimumIP: 5})
		<-r.Ready()
		var was []netip.Addr
		for i := range 5 {
			was = append(was, r.mustAdd(i).Address)
		}
		r.stop()
		time.Sleep(10 * time.Second)
		died := time.Now()
		time.Sleep(12 * time.Second)
		r.boot(warmpool.Targets{MinimumIP: 5})
		synctest.Wait()
		// Whether the node serves pods yet makes no difference.
		for i := range 2 {
			if reply, err := r.gone(i, died); err != nil || reply.Address != was[i] {
				t.Errorf("pod %d: %+v, %v", i, reply, err)
			}
			if left := r.untilCooled(was[i]); left <= 0 || time.Now().Add(left) != died.Add(30*time.Second) {
				t.Errorf("%s cools for %s", was[i], left)
			}
		}
		if n := len(r.disk.last().Allocations); n != 3 {
			t.Errorf("%d allocations are durable, want 3", n)
		}
		// ipamd ends before the notes are removed: the next one reads them again.
		r.stop()
		r.boot(warmpool.Targets{MinimumIP: 5})
		<-r.Ready()
		if _, err := r.gone(0, died); !errors.Is(err, datastore.ErrUnknownPod) {
			t.Errorf("the second time: %v", err)
		}
		time.Sleep(30 * time.Second)
		again := map[netip.Addr]bool{}
		for i := range 2 {
			again[r.mustAdd(i).Address] = true // the same sandboxes
		}
		if !again[was[0]] || !again[was[1]] {
			t.Errorf("assigned %v, want %v", again, was[:2])
		}
		if _, err := r.gone(1, died); !errors.Is(err, datastore.ErrUnknownPod) {
			t.Errorf("set up again since: %v", err)
		}
		if n := len(r.disk.last().Allocations); n != 5 {
			t.Errorf("%d allocations are durable, want 5", n)
		}
		r.stop()
	})
}

func TestRepeatedAddOutdatesWhatWasSaidBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		first := r.mustAdd(0)
		time.Sleep(time.Second)
		died := time.Now()
		time.Sleep(time.Second)
		if again := r.mustAdd(0); again.Address != first.Address {
			t.Fatalf("had %s, gets %s", first.Address, again.Address)
		}
		// Also for the next life of the daemon.
		for range 2 {
			if _, err := r.gone(0, died); !errors.Is(err, datastore.ErrUnknownPod) {
				t.Errorf("released a pod that was set up again: %v", err)
			}
			r.stop()
			r.boot(warmENI(1))
			<-r.Ready()
		}
		r.stop()
	})
}

func TestGoneDoesNotCancelAnAddThatWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmpool.Targets{}) // a new address is an attachment away
		<-r.Ready()
		got := make(chan error, 1)
		go func() {
			_, err := r.Add(context.Background(), pod(0))
			got <- err
		}()
		synctest.Wait()
		if _, err := r.gone(0, time.Now()); !errors.Is(err, datastore.ErrUnknownPod) {
			t.Error(err)
		}
		if err := <-got; err != nil {
			t.Error(err)
		}
		r.stop()
	})
}

func TestGoneThatIsNotDurableIsRepeated(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		r.mustAdd(0)
		time.Sleep(time.Second)
		died := time.Now()
		r.disk.mu.Lock()
		r.disk.fails = func() error { return errors.New("disk full") }
		r.disk.mu.Unlock()
		var refusal *Refusal
		if _, err := r.gone(0, died); !errors.As(err, &refusal) || refusal.Code != CodeStorage {
			t.Errorf("got %v", err)
		}
		r.disk.mu.Lock()
		r.disk.fails = nil
		r.disk.mu.Unlock()
		if _, err := r.gone(0, died); err != nil {
			t.Error(err)
		}
		if n := len(r.disk.last().Allocations); n != 0 {
			t.Errorf("%d allocations are durable", n)
		}
		r.stop()
	})
}
