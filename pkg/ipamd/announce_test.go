package ipamd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

// Neighbours are told of what EC2 brings to an ENI, once, and of a new ENI's own address; after a restart only of what
// came since. That nobody can be told makes no difference to pods.
func TestNeighboursAreToldOfNewAddresses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		told := map[string][]netip.Prefix{}
		announce := func(o *Options, _ *rig) {
			o.Announce = func(_ context.Context, mac net.HardwareAddr, blocks []netip.Prefix) error {
				mu.Lock()
				defer mu.Unlock()
				told[mac.String()] = append(told[mac.String()], blocks...)
				return errors.New("operation not permitted")
			}
		}
		r := newRig(t, warmpool.Targets{WarmIP: 2}, announce)
		<-r.Ready()
		if _, errs, _ := r.burst(0, 12); errs != nil {
			t.Fatal(errs)
		}
		time.Sleep(time.Minute)
		check := func() {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			for _, e := range r.Durable().Journal.ENIs {
				want := slices.Clone(e.Pool)
				if e.Device > 0 {
					want = append(want, netip.PrefixFrom(e.Address, 32))
				}
				got := slices.Clone(told[e.MAC])
				slices.SortFunc(want, comparePrefix)
				slices.SortFunc(got, comparePrefix)
				if !slices.Equal(got, want) || len(got) == 0 {
					t.Errorf("%s: told %v, want %v", e.ID, got, want)
				}
			}
			if n := len(told); n != 3 {
				t.Errorf("told on %d ENIs", n)
			}
		}
		check()
		r.stop()
		r.boot(warmpool.Targets{WarmIP: 2}, announce)
		<-r.Ready()
		time.Sleep(time.Minute)
		check()
		r.stop()
	})
}

func comparePrefix(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) }
