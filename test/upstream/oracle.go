package upstream

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HostPod is a pod as upstream's tests look for it on its node.
type HostPod struct {
	Address netip.Addr
	Veth    string
	MTU     int // bytes
	// Secondary tells that its address is on a secondary ENI.
	Secondary bool
}

// CheckSetUp is what upstream's end-to-end tests want of a running pod, in the host's network namespace: its veth up with
// the MTU, exactly one rule for the pod into table main and one route there to the veth; for a pod of a secondary ENI
// exactly one rule into another table, in which the first route is a default by a gateway and the second one that
// gateway's, by the same link.
func CheckSetUp(p HostPod) error {
	link, err := netlink.LinkByName(p.Veth)
	if err != nil {
		return fmt.Errorf("link %s: %w", p.Veth, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 || link.Attrs().MTU != p.MTU {
		return fmt.Errorf("link %s: flags %s, MTU %d, want it up with %d", p.Veth, link.Attrs().Flags, link.Attrs().MTU, p.MTU)
	}
	toMain, toOther, err := rulesOf(p.Address)
	if err != nil {
		return err
	}
	if len(toMain) != 1 {
		return fmt.Errorf("%d rules lead %s to main: %v", len(toMain), p.Address, toMain)
	}
	routes, err := netlink.RouteListFiltered(family(p.Address), &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: toMain[0].Dst},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	if err != nil {
		return err
	}
	if len(routes) != 1 || routes[0].LinkIndex != link.Attrs().Index {
		return fmt.Errorf("routes to %s in main: %v, want one by %s (%d)", p.Address, routes, p.Veth, link.Attrs().Index)
	}
	if !p.Secondary {
		return nil
	}
	if len(toOther) != 1 {
		return fmt.Errorf("%d rules lead %s to other tables than main: %v", len(toOther), p.Address, toOther)
	}
	routes, err = netlink.RouteListFiltered(family(p.Address), &netlink.Route{Table: toOther[0].Table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	if len(routes) != 2 || routes[0].Gw == nil || routes[1].Dst == nil || !routes[1].Dst.IP.Equal(routes[0].Gw) ||
		routes[0].LinkIndex != routes[1].LinkIndex {
		return fmt.Errorf("table %d of %s: %v, want a default and the route to its gateway", toOther[0].Table, p.Address, routes)
	}
	return nil
}

// CheckTornDown is what the same tests want of a pod that is gone.
func CheckTornDown(p HostPod) error {
	var gone netlink.LinkNotFoundError
	if _, err := netlink.LinkByName(p.Veth); !errors.As(err, &gone) {
		return fmt.Errorf("link %s is there, or it is not known: %v", p.Veth, err)
	}
	toMain, toOther, err := rulesOf(p.Address)
	if err != nil {
		return err
	}
	if rules := append(toMain, toOther...); len(rules) > 0 {
		return fmt.Errorf("rules of %s are left: %v", p.Address, rules)
	}
	dst := netlink.NewIPNet(p.Address.AsSlice())
	routes, err := netlink.RouteListFiltered(family(p.Address), &netlink.Route{Table: unix.RT_TABLE_MAIN, Dst: dst},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
	if err != nil || len(routes) > 0 {
		return fmt.Errorf("routes to %s are left: %v (%v)", p.Address, routes, err)
	}
	return nil
}

// rulesOf lists the rules whose source or destination is the address, by the table that they lead to.
func rulesOf(a netip.Addr) (toMain, toOther []netlink.Rule, err error) {
	rules, err := netlink.RuleList(family(a))
	if err != nil {
		return nil, nil, err
	}
	is := func(n *net.IPNet) bool { return n != nil && n.IP.Equal(a.AsSlice()) }
	for _, r := range rules {
		switch {
		case !is(r.Src) && !is(r.Dst):
		case r.Table == unix.RT_TABLE_MAIN:
			toMain = append(toMain, r)
		default:
			toOther = append(toOther, r)
		}
	}
	return toMain, toOther, nil
}

func family(a netip.Addr) int {
	if a.Is6() {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}
