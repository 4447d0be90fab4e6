package bootstrap

import (
	"maps"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/ipamd/checkpoint"
)

func TestUnassigned(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	until := time.Unix(100, 0)
	got := Unassigned(checkpoint.State{
		Allocations: []checkpoint.Allocation{{Address: addr("10.0.0.5")}, {Address: addr("10.0.0.17")}},
		Journal: checkpoint.Journal{
			ENIs: []checkpoint.HeldENI{
				{Pool: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/32"), netip.MustParsePrefix("10.0.0.6/32")}},
				{Pool: []netip.Prefix{netip.MustParsePrefix("10.0.0.16/30"), netip.MustParsePrefix("2001:db8::/80")}},
			},
			Cooling: []checkpoint.Cooling{{Address: addr("10.0.0.18"), Until: until}, {Address: addr("2001:db8::9"), Until: until}},
		},
	})
	want := map[netip.Addr]time.Time{addr("10.0.0.6"): {}, addr("10.0.0.16"): {}, addr("10.0.0.18"): until, addr("10.0.0.19"): {},
		addr("2001:db8::9"): until}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
