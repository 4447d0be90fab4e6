package bootstrap

import (
	"net/netip"
	"time"

	"vpccni/pkg/ipamd/checkpoint"
)

// Unassigned lists the addresses of the node that no sandbox held when the last run ended, and until when each of them
// cools: the zero time if it does not.
func Unassigned(state checkpoint.State) map[netip.Addr]time.Time {
	free := map[netip.Addr]time.Time{}
	for _, e := range state.Journal.ENIs {
		for _, p := range e.Pool {
			if p.Addr().Is6() {
				continue // a prefix of IPv6 has more addresses than were ever used
			}
			for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
				free[a] = time.Time{}
			}
		}
	}
	for _, c := range state.Journal.Cooling {
		free[c.Address] = c.Until
	}
	for _, a := range state.Allocations {
		delete(free, a.Address)
	}
	return free
}
