package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// route is a route of the kernel, or one wanted once its link is known. Two that are equal are the same route.
type route struct {
	routeKey
	typ      int // unix.RTN_*
	link     int // 0 for unreachable ones
	gateway  netip.Addr
	scope    uint8
	protocol int
	// other is set if the route has anything that routes of ours never have: several next hops, a source, metrics.
	other bool
}

// routeKey is what tells routes apart in the kernel: a new one with the same key replaces the old one.
type routeKey struct {
	table  int
	dst    netip.Prefix
	metric uint32
	tos    int
}

// bind fills in the link that the route leaves by, if it does.
func (r Route) bind(link int) route {
	b := route{
		routeKey: routeKey{table: r.Table, dst: r.Dst, metric: r.Metric},
		typ:      unix.RTN_UNICAST,
		gateway:  r.Gateway,
		protocol: names.RouteProtocol,
	}
	switch {
	case r.Unreachable:
		b.typ = unix.RTN_UNREACHABLE
		return b
	case !r.Gateway.IsValid():
		b.scope = familyOf(r.Dst.Addr()).linkScope
	}
	b.link = link
	return b
}

// isENITable reports whether the table belongs to an ENI by its number (names.RouteTable). Tables from 100 on are
// those of branch ENIs.
func isENITable(t int) bool { return t >= 2 && t < 100 || t >= 10100 && t < 100000 }

// ours reports whether a route that is not wanted may be deleted: one of our protocol in an ENI's table, or among the
// unassigned addresses. Pods' own routes are the business of those who wire pods.
func (r route) ours() bool {
	if r.protocol != names.RouteProtocol {
		return false
	}
	return isENITable(r.table) || r.table == names.TableUnassigned
}

// diffRoutes returns the routes to write (replacing what has the same key) and to delete.
func diffRoutes(have, want []route) (add, del []route) {
	present := make(map[route]bool, len(have))
	for _, r := range have {
		present[r] = true
	}
	wanted := make(map[routeKey]bool, len(want))
	for _, r := range want {
		wanted[r.routeKey] = true
		if !present[r] {
			add = append(add, r)
		}
	}
	for _, r := range have {
		if r.ours() && !wanted[r.routeKey] {
			del = append(del, r)
		}
	}
	return add, del
}

// listRoutes dumps the family's routes of all tables.
func listRoutes(h *netlink.Handle, f *family) ([]route, error) {
	list, err := dump(func() ([]route, error) {
		var list []route
		filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		err := h.RouteListFilteredIter(f.number, filter, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			list = append(list, routeOf(r))
			return true
		})
		return list, err
	})
	if err != nil && !absent(err) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

func routeOf(r netlink.Route) route {
	out := route{
		routeKey: routeKey{table: r.Table, dst: prefixOf(r.Dst), metric: uint32(r.Priority), tos: r.Tos},
		typ:      r.Type,
		link:     r.LinkIndex,
		scope:    uint8(r.Scope),
		protocol: int(r.Protocol),
		other:    len(r.MultiPath) > 0 || r.Src != nil || r.Via != nil || r.Encap != nil || r.MTU != 0,
	}
	if out.typ == unix.RTN_UNREACHABLE {
		out.link = 0 // IPv6 says loopback
	}
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		out.gateway = a.Unmap()
	}
	return out
}

func (r route) toNetlink() *netlink.Route {
	out := &netlink.Route{
		Table:     r.table,
		Dst:       ipNet(r.dst),
		Priority:  int(r.metric),
		Type:      r.typ,
		LinkIndex: r.link,
		Scope:     netlink.Scope(r.scope),
		Protocol:  netlink.RouteProtocol(r.protocol),
		Tos:       r.tos,
	}
	if r.gateway.IsValid() {
		out.Gw = r.gateway.AsSlice()
	}
	return out
}

// deleteRoute deletes the route; one that is gone already went with its link.
func deleteRoute(h *netlink.Handle, r route) error {
	if err := h.RouteDel(r.toNetlink()); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	if !p.IsValid() {
		return nil
	}
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}
