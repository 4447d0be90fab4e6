package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// Pods says which pods the node has.
type Pods interface {
	// Pods lists the pods that hold an address.
	Pods() []Pod
	// Lives reports whether the pod still holds it: no DEL has been answered, nor will be for what it held before.
	Lives(Pod) bool
}

// Pod is a pod's address on the node.
type Pod struct {
	Address netip.Addr
	// Sandbox and Since tell apart those that had the address one after the other.
	Sandbox Sandbox
	Since   time.Time
	// Veth is the name of its host end, for a pod whose route nobody has seen; empty if another sandbox may have it.
	Veth string
}

// Sandbox is one interface of one pod's sandbox.
type Sandbox struct{ NetworkName, ContainerID, IfName string }

// podMemory is how pods are wired, as the plugin has left it. Only the plugin knows: its routes carry our protocol, and
// a veth's settings are those that it had when it got a route.
type podMemory struct {
	linkOf map[netip.Addr]int // by the routes in names.TablePods
	wired  map[int]link       // the links that routes lead to
	seen   map[int]link       // veths without a route
}

func newPodMemory() podMemory {
	return podMemory{linkOf: map[netip.Addr]int{}, wired: map[int]link{}, seen: map[int]link{}}
}

// sawLink takes note of a link, and reports whether it is a pod's and has not the settings that it should have.
func (m podMemory) sawLink(l link) bool {
	if want, ok := m.wired[l.index]; ok {
		return !want.sameSettings(l)
	}
	if l.kind == "veth" {
		m.seen[l.index] = l
	}
	return false
}

func (m podMemory) linkGone(index int) {
	delete(m.seen, index)
	delete(m.wired, index)
	maps.DeleteFunc(m.linkOf, func(_ netip.Addr, i int) bool { return i == index })
}

// sawRoute takes note of a route that the plugin has written.
func (m podMemory) sawRoute(r route) {
	m.linkOf[r.dst.Addr()] = r.link
	if l, ok := m.seen[r.link]; ok {
		l.up = true
		m.wired[r.link] = l
		delete(m.seen, r.link)
	}
}

// forgetPods drops the addresses that no pod has.
func (m podMemory) forgetPods(pods []Pod) {
	alive := make(map[netip.Addr]bool, len(pods))
	for _, p := range pods {
		alive[p.Address] = true
	}
	maps.DeleteFunc(m.linkOf, func(a netip.Addr, _ int) bool { return !alive[a] })
}

// sameSettings reports whether two states of a veth's host end are the same to its pod, which knows the MAC.
func (l link) sameSettings(o link) bool {
	return l.up == o.up && l.mtu == o.mtu && l.rpFilter == o.rpFilter && l.mac.String() == o.mac.String()
}

// isPodRoute reports whether the route is one to a pod as the plugin writes it.
func (r route) isPodRoute() bool {
	return r.table == names.TablePods && r.protocol == names.RouteProtocol && r.typ == unix.RTN_UNICAST && r.link != 0 &&
		r.dst.IsSingleIP() && !r.gateway.IsValid()
}

// podRoutes are the routes of a pod: the one that the rule for all pods finds, and the one in main for everybody else.
func podRoutes(a netip.Addr, link int) []route {
	f := familyOf(a)
	r := route{
		routeKey: routeKey{table: names.TablePods, dst: host(a), metric: f.metric},
		typ:      unix.RTN_UNICAST, link: link, scope: f.linkScope, protocol: names.RouteProtocol,
	}
	inMain := r
	inMain.table, inMain.protocol = names.TableMain, unix.RTPROT_BOOT
	return []route{r, inMain}
}

// podRepair is what one pod lacks. Each of its writes hits one link only: whatever happens at the same time, it neither
// replaces nor deletes a route of the address's next owner.
type podRepair struct {
	pod  Pod
	link int
	del  []route // that lead elsewhere
	add  []route
}

// planPods compares the routes of pods with those there are. linkOf says by which link a pod is reached, 0 if that is
// not known; only pods for which want is true are looked at.
func planPods(pods []Pod, linkOf func(Pod) int, have []route) []podRepair {
	type key struct {
		table int
		addr  netip.Addr
	}
	there := make(map[key][]route)
	for _, r := range have {
		if r.dst.IsSingleIP() && (r.table == names.TablePods || r.table == names.TableMain) {
			k := key{r.table, r.dst.Addr()}
			there[k] = append(there[k], r)
		}
	}
	var list []podRepair
	for _, p := range pods {
		link := linkOf(p)
		if link == 0 {
			continue
		}
		repair := podRepair{pod: p, link: link}
		for _, want := range podRoutes(p.Address, link) {
			ok := false
			for _, h := range there[key{want.table, p.Address}] {
				switch {
				case h.metric != want.metric || h.tos != 0:
					// Behind or before ours by its own right.
				case h.typ == want.typ && h.link == want.link && !h.gateway.IsValid() && !h.other &&
					(h.protocol == want.protocol || want.table == names.TableMain):
					ok = true
				default:
					repair.del = append(repair.del, h)
				}
			}
			if !ok {
				repair.add = append(repair.add, want)
			}
		}
		if len(repair.add)+len(repair.del) > 0 {
			list = append(list, repair)
		}
	}
	return list
}

// repairPod writes what a pod lacks. It is asked whether the pod lives before the first write and after the last: DEL
// is answered before the plugin takes the routes away, so what was written for a pod that is gone is either taken back
// here or found by the plugin.
func (h *Host) repairPod(r podRepair, lives func(Pod) bool) (writes int, err error) {
	if !lives(r.pod) {
		return 0, nil
	}
	for _, d := range r.del {
		if err := deleteRoute(h.handle, d); err != nil {
			return writes, fmt.Errorf("delete route %s table %d: %w", d.dst, d.table, err)
		}
		writes++
	}
	var added []route
	for _, a := range r.add {
		err := h.handle.RouteAdd(a.toNetlink()) // never replaces
		switch {
		case errors.Is(err, unix.EEXIST): // since the routes were listed
		case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENETDOWN):
			// The link went, or goes down: there will be an event.
		case err != nil:
			return writes, fmt.Errorf("write route %s table %d: %w", a.dst, a.table, err)
		default:
			writes++
			added = append(added, a)
		}
	}
	if lives(r.pod) {
		return writes, nil
	}
	for _, a := range added {
		if err := deleteRoute(h.handle, a); err != nil {
			return 0, fmt.Errorf("take back route %s table %d: %w", a.dst, a.table, err)
		}
	}
	return 0, nil
}

// repairPodLink gives a pod's host end back the settings that it had.
func (h *Host) repairPodLink(want link) (writes int, err error) {
	l, err := h.rtnl.link(want.index)
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at link %s: %w", want.name, err)
	}
	var errs []error
	set := func(differs bool, what string, f func() error) {
		if !differs {
			return
		}
		if err := f(); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("set %s of %s: %w", what, l.name, err))
			return
		}
		writes++
	}
	set(l.mac.String() != want.mac.String(), "MAC", func() error { return h.handle.LinkSetHardwareAddr(linkRef(l), want.mac) })
	set(l.mtu != want.mtu, "MTU", func() error { return h.handle.LinkSetMTU(linkRef(l), want.mtu) })
	set(l.rpFilter != want.rpFilter && want.rpFilter >= 0, "rp_filter", func() error {
		return h.rtnl.setRPFilter(l.index, want.rpFilter)
	})
	set(!l.up, "state", func() error { return h.handle.LinkSetUp(linkRef(l)) })
	return writes, errors.Join(errs...)
}

// podRoutesThere lists the routes to pods of both families and tables.
func (h *Host) podRoutesThere() ([]route, error) {
	var list []route
	for _, f := range families {
		for _, table := range []int{names.TablePods, names.TableMain} {
			part, err := h.routesOf(f, table, 0)
			if err != nil {
				return nil, err
			}
			list = append(list, part...)
		}
	}
	return list, nil
}

// routeOfMessage reads an RTM_NEWROUTE or RTM_DELROUTE message as far as it matters for pods.
func routeOfMessage(m []byte) (route, bool) {
	if len(m) < unix.SizeofRtMsg {
		return route{}, false
	}
	r := route{typ: int(m[7]), protocol: int(m[5]), scope: m[6]}
	r.table = int(m[4])
	bits := int(m[1])
	var dst netip.Addr
	eachAttr(m[unix.SizeofRtMsg:], func(typ uint16, v []byte) {
		switch {
		case typ == unix.RTA_DST:
			dst, _ = netip.AddrFromSlice(v)
		case typ == unix.RTA_GATEWAY:
			r.gateway, _ = netip.AddrFromSlice(v)
		}
	})
	attrs := m[unix.SizeofRtMsg:]
	r.table = cmp.Or(int(attr32(attrs, unix.RTA_TABLE)), r.table)
	r.link = int(attr32(attrs, unix.RTA_OIF))
	r.metric = attr32(attrs, unix.RTA_PRIORITY)
	r.dst = netip.PrefixFrom(dst, bits)
	return r, dst.IsValid()
}
