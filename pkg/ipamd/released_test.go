package ipamd

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

// Who wants to know which addresses were let go of hears of each once, and of nothing that was not.
func TestReleasedAddressesAreTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var released []netip.Addr
		r := newRig(t, warmpool.Targets{WarmIP: 1}, func(o *Options, _ *rig) {
			o.Released = func(a netip.Addr, _ time.Time) { released = append(released, a) }
		})
		<-r.Ready()
		if _, errs, _ := r.burst(0, 3); errs != nil {
			t.Fatal(errs)
		}
		var held []netip.Addr
		for _, a := range r.Durable().Allocations {
			held = append(held, a.Address)
		}
		if len(released) != 0 || len(held) != 3 {
			t.Fatalf("released %v, held %v", released, held)
		}
		for n := range 3 {
			r.mustDel(n)
		}
		slices.SortFunc(held, netip.Addr.Compare)
		slices.SortFunc(released, netip.Addr.Compare)
		if !slices.Equal(released, held) {
			t.Errorf("released %v, want %v", released, held)
		}
		r.stop()
	})
}
