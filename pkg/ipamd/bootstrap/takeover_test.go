package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/predecessor"
)

// What the predecessor left goes when EC2 has said which ENIs there are and all of them are wired; a failure is
// repeated.
func TestTakeOverWaitsForTheHost(t *testing.T) {
	t.Parallel()
	pool := func(cidr string) []datastore.Block { return []datastore.Block{{CIDR: netip.MustParsePrefix(cidr)}} }
	eni := func(phase datastore.Phase, cidr string) ipamd.ENIView {
		return ipamd.ENIView{ID: cidr, Managed: true, Phase: phase, Pool: pool(cidr)}
	}
	verified := time.Unix(1e6, 0)
	views := []ipamd.View{
		{},
		{Ready: true, ENIs: []ipamd.ENIView{eni(datastore.Usable, "10.0.1.11/32")}}, // from the journal
		{Ready: true, Verified: verified, ENIs: []ipamd.ENIView{eni(datastore.Usable, "10.0.1.11/32"), eni(datastore.Discovered, "10.0.1.128/28")}},
		{Ready: true, Verified: verified, ENIs: []ipamd.ENIView{eni(datastore.Usable, "10.0.1.11/32"), eni(datastore.Usable, "10.0.1.128/28"), {ID: "not managed"}}},
	}
	clock := clockwork.NewFakeClock()
	var looks, sweeps atomic.Int32
	view := func() ipamd.View { return views[min(int(looks.Add(1))-1, len(views)-1)] }
	sweep := func(_ context.Context, ours func(netip.Addr) bool) (predecessor.Report, error) {
		for addr, want := range map[string]bool{"10.0.1.11": true, "10.0.1.143": true, "10.0.1.12": false} {
			if ours(netip.MustParseAddr(addr)) != want {
				t.Errorf("%s is ours: %t", addr, !want)
			}
		}
		if sweeps.Add(1) == 1 {
			return predecessor.Report{}, errors.New("netlink: no buffer space available")
		}
		return predecessor.Report{}, nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		TakeOver(t.Context(), clock, view, sweep, slog.New(slog.DiscardHandler))
	}()
	for range len(views) {
		if err := clock.BlockUntilContext(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		clock.Advance(sweepPause)
	}
	<-done
	if looks.Load() != 5 || sweeps.Load() != 2 {
		t.Errorf("%d looks, %d sweeps", looks.Load(), sweeps.Load())
	}
}
