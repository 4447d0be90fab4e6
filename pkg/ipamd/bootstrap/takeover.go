package bootstrap

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/predecessor"
)

const (
	// sweepPause is how long to wait for ENIs that are not wired yet, and after a failure.
	sweepPause   = 5 * time.Second
	sweepTimeout = 30 * time.Second
)

// TakeOver sweeps what a predecessor left on the node, once every managed ENI is wired: what it left carries packets
// until then. It returns when that is done, or when ctx ends.
func TakeOver(ctx context.Context, clock clockwork.Clock, view func() ipamd.View,
	sweep func(ctx context.Context, ours func(netip.Addr) bool) (predecessor.Report, error), log *slog.Logger,
) {
	for {
		if ours, wired := wiredPools(view()); wired {
			try, cancel := context.WithTimeout(ctx, sweepTimeout)
			_, err := sweep(try, ours)
			cancel()
			if err == nil {
				return
			}
			log.Error("state of a predecessor could not be removed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-clock.After(sweepPause):
		}
	}
}

// wiredPools tells addresses of the node's ENIs from others, and whether every managed ENI is known and wired.
func wiredPools(v ipamd.View) (ours func(netip.Addr) bool, wired bool) {
	pools := []netip.Prefix{}
	for _, e := range v.ENIs {
		if e.Managed && (e.Phase == datastore.Discovered || e.NotReady != "") {
			return nil, false
		}
		if e.Phase != datastore.Usable {
			continue
		}
		for _, b := range e.Pool {
			pools = append(pools, b.CIDR)
		}
	}
	return func(a netip.Addr) bool {
		for _, p := range pools {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}, v.Ready && !v.Verified.IsZero()
}
