package podnet

import (
	"errors"
	"fmt"
	"net/netip"

	"vpccni/pkg/networkutils/names"

	"golang.org/x/sys/unix"
)

// routeMetricV6 is the metric that the kernel gives IPv6 routes by default. It is spelled out because a deletion
// without metric takes any route to the destination, also the unreachable one that waits behind the pod's.
const routeMetricV6 = 1024

// newVeth makes a veth pair whose host end is here and whose other end is in the namespace, both down. The container
// end cannot be made up at once: the kernel opens it before the two are linked, which fails with ENOTCONN.
// Indexes are both given or both left to the kernel, which ignores one alone.
func newVeth(iface Interface, macs macPair, netns int, want vethIndexes) message {
	m := newMessage("create veth "+iface.HostVeth, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m.ifinfo(want.host, 0, 0)
	m.str(unix.IFLA_IFNAME, iface.HostVeth)
	m.u32(unix.IFLA_MTU, uint32(iface.MTU))
	m.bytes(unix.IFLA_ADDRESS, macs.host[:])
	switch {
	case iface.Branch.strict():
		// Without the source check's group: its rule asks which link leads to a source in tables that do not know these
		// pods. What they send has to pass the VPC's own check of their branch ENI.
		m.u32(unix.IFLA_GROUP, names.GroupStrictPod)
	case iface.SourceCheck:
		m.u32(unix.IFLA_GROUP, names.GroupSourceCheck)
	}
	m.nested(unix.IFLA_LINKINFO, func() {
		m.str(unix.IFLA_INFO_KIND, "veth")
		m.nested(unix.IFLA_INFO_DATA, func() {
			m.nested(vethInfoPeer, func() {
				m.ifinfo(want.pod, 0, 0)
				m.str(unix.IFLA_IFNAME, iface.Name)
				m.u32(unix.IFLA_MTU, uint32(iface.MTU))
				m.bytes(unix.IFLA_ADDRESS, macs.pod[:])
				m.u32(unix.IFLA_NET_NS_FD, uint32(netns))
			})
		})
	})
	return m
}

// podState is what a pod's interface needs inside the pod. Interface i > 0 lives in table i of the pod, which is asked
// for packets that carry its address only.
func podState(iface Interface, i int, index int32, gatewayMAC mac) []message {
	table := names.TableMain
	if i > 0 {
		table = i
	}
	state := []message{linkUp(iface.Name, index)}
	for _, addr := range iface.addrs() {
		gateway := names.PodGateway(addr.Is6(), i)
		state = append(state,
			newAddress(addr, iface.Name, index),
			newRoute(route{dst: single(gateway), link: index, table: table, protocol: unix.RTPROT_BOOT}),
			newRoute(route{dst: netip.PrefixFrom(unspecified(addr), 0), via: gateway, link: index, table: table, protocol: unix.RTPROT_BOOT}),
			newNeighbour(gateway, gatewayMAC, index),
		)
		if i > 0 {
			state = append(state, newRuleFrom(addr, table, 1))
		}
	}
	return state
}

// hostState is what the pod needs on the host besides the veth: the route in the table of pods, and the one in main
// for those who look there. Nothing here depends on how many pods there are, unless the layout asks for rules per pod.
func hostState(iface Interface, index int32) []message {
	state := []message{vethUp(iface, index)}
	for _, addr := range iface.addrs() {
		state = append(state,
			newRoute(route{dst: single(addr), link: index, table: names.TablePods, protocol: names.RouteProtocol}),
			newRoute(route{dst: single(addr), link: index, table: names.TableMain, protocol: unix.RTPROT_BOOT}),
		)
		state = append(state, hostRules(addr, iface.RuleTable)...)
	}
	return state
}

// vethUp brings the host's end up, with the check of what the pod sends.
func vethUp(iface Interface, index int32) message {
	up := linkUp(iface.HostVeth, index)
	if iface.SourceCheck && iface.Address.Addr().Is4() {
		up.sourceCheck(sourceStrict)
	}
	return up
}

// hostRules are the rules of the pod's own, if a table is given. One that sends its packets to another ENI is of an
// earlier pod whose DEL was cut short. The rules come after the routes, so that whoever sees a rule sees its pod as well.
func hostRules(addr netip.Addr, table int) []message {
	if table == 0 {
		return nil
	}
	rules := []message{takeBack(deleteRuleFrom(addr)), newRuleTo(addr)}
	if table != names.TableMain {
		rules = append(rules, newRuleFrom(addr, table, names.PriorityFromPod))
	}
	return rules
}

// takeBack is a deletion of what may be gone.
func takeBack(m message) message {
	m.ignore = []unix.Errno{unix.ENOENT}
	return m
}

// deleteHostRoutes undoes the routes of hostState; link 0 stands for any.
func deleteHostRoutes(addr netip.Addr, link int32) []message {
	return []message{
		deleteRoute(route{dst: single(addr), link: link, table: names.TablePods}),
		deleteRoute(route{dst: single(addr), link: link, table: names.TableMain}),
	}
}

func getLink(name string) message {
	m := newMessage("get link "+name, unix.RTM_GETLINK, 0)
	m.ifinfo(0, 0, 0)
	m.str(unix.IFLA_IFNAME, name)
	m.u32(unix.IFLA_EXT_MASK, skipStats)
	return m
}

func linkUp(name string, index int32) message {
	m := newMessage("set link "+name+" up", unix.RTM_NEWLINK, 0)
	m.ifinfo(index, unix.IFF_UP, unix.IFF_UP)
	return m
}

// Values of rp_filter. Strict drops IPv4 packets that come in by a link from an address that would not be sent there;
// loose those from an address that would not be sent anywhere. The host's end of a veth has no address, which makes loose
// checking (conf.all.rp_filter=2) as strict there.
const (
	sourceStrict = 1
	sourceLoose  = 2
)

// sourceCheck sets rp_filter in a message that changes a link.
func (m *message) sourceCheck(mode uint32) {
	const (
		inetConf = 1 // IFLA_INET_CONF of linux/if_link.h
		rpFilter = 8 // IPV4_DEVCONF_RP_FILTER of linux/ip.h
	)
	m.nested(unix.IFLA_AF_SPEC, func() {
		m.nested(unix.AF_INET, func() {
			m.nested(inetConf, func() { m.u32(rpFilter, mode) })
		})
	})
}

func deleteLinkByName(name string) message {
	m := newMessage("delete link "+name, unix.RTM_DELLINK, 0)
	m.ifinfo(0, 0, 0)
	m.str(unix.IFLA_IFNAME, name)
	return m
}

func deleteLinkByIndex(index int32) message {
	m := newMessage(fmt.Sprintf("delete link %d", index), unix.RTM_DELLINK, 0)
	m.ifinfo(index, 0, 0)
	m.ignore = []unix.Errno{unix.ENODEV}
	return m
}

func newAddress(addr netip.Addr, name string, index int32) message {
	m := newMessage(fmt.Sprintf("add address %s to %s", addr, name), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	var flags uint8
	if addr.Is6() {
		// The VPC gave this address to this pod alone; waiting a second to ask the link says nothing.
		flags = unix.IFA_F_NODAD
	}
	m.data = append(m.data, family(addr), uint8(addr.BitLen()), flags, unix.RT_SCOPE_UNIVERSE)
	m.data = order.AppendUint32(m.data, uint32(index))
	m.bytes(unix.IFA_LOCAL, addr.AsSlice())
	m.bytes(unix.IFA_ADDRESS, addr.AsSlice())
	return m
}

// newNeighbour pins the gateway, an address that nobody owns, to the host end of the veth.
func newNeighbour(addr netip.Addr, lladdr mac, index int32) message {
	m := newMessage(fmt.Sprintf("add neighbour %s", addr), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	m.data = append(m.data, family(addr), 0, 0, 0)
	m.data = order.AppendUint32(m.data, uint32(index))
	m.data = order.AppendUint16(m.data, unix.NUD_PERMANENT)
	m.data = append(m.data, 0, 0)
	m.bytes(unix.NDA_DST, addr.AsSlice())
	m.bytes(unix.NDA_LLADDR, lladdr[:])
	return m
}

// newRuleTo has the pod's route looked up in main before anything else.
func newRuleTo(addr netip.Addr) message {
	m := newMessage(fmt.Sprintf("add rule to %s lookup main", addr), unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m.data = append(m.data, family(addr), uint8(addr.BitLen()), 0, 0, unix.RT_TABLE_MAIN, 0, 0, unix.FR_ACT_TO_TBL)
	m.data = order.AppendUint32(m.data, 0)
	m.bytes(unix.FRA_DST, addr.AsSlice())
	m.u32(unix.FRA_PRIORITY, names.PriorityToPod)
	m.u32(unix.FRA_TABLE, names.TableMain)
	m.ignore = []unix.Errno{unix.EEXIST}
	return m
}

func newRuleFrom(addr netip.Addr, table int, priority uint32) message {
	m := newMessage(fmt.Sprintf("add rule from %s lookup %d", addr, table), unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m.data = append(m.data, family(addr), 0, uint8(addr.BitLen()), 0, tableByte(table), 0, 0, unix.FR_ACT_TO_TBL)
	m.data = order.AppendUint32(m.data, 0)
	m.bytes(unix.FRA_SRC, addr.AsSlice())
	m.u32(unix.FRA_PRIORITY, priority)
	m.u32(unix.FRA_TABLE, uint32(table))
	m.ignore = []unix.Errno{unix.EEXIST}
	return m
}

// route is a unicast route out of a link, with a next hop or to the link itself.
type route struct {
	dst      netip.Prefix
	via      netip.Addr // invalid: dst is on the link
	link     int32      // 0, in a deletion: any
	table    int
	protocol uint8
}

func (r route) String() string { return fmt.Sprintf("%s in table %d", r.dst, r.table) }

func newRoute(r route) message {
	m := newMessage("set route "+r.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	m.route(r)
	return m
}

func deleteRoute(r route) message {
	m := newMessage("delete route "+r.String(), unix.RTM_DELROUTE, 0)
	m.route(r)
	m.ignore = []unix.Errno{unix.ESRCH, unix.ENOENT}
	return m
}

func (m *message) route(r route) {
	scope := uint8(unix.RT_SCOPE_LINK)
	if r.via.IsValid() {
		scope = unix.RT_SCOPE_UNIVERSE
	}
	m.data = append(m.data, family(r.dst.Addr()), uint8(r.dst.Bits()), 0, 0, tableByte(r.table), r.protocol, scope, unix.RTN_UNICAST)
	m.data = order.AppendUint32(m.data, 0)
	if r.dst.Bits() > 0 {
		m.bytes(unix.RTA_DST, r.dst.Addr().AsSlice())
	}
	if r.via.IsValid() {
		m.bytes(unix.RTA_GATEWAY, r.via.AsSlice())
	}
	if r.link != 0 {
		m.u32(unix.RTA_OIF, uint32(r.link))
	}
	if r.dst.Addr().Is6() {
		m.u32(unix.RTA_PRIORITY, routeMetricV6)
	}
	m.u32(unix.RTA_TABLE, uint32(r.table))
}

// vethIndexes are the interface indexes of a pair, each valid in its own namespace.
type vethIndexes struct{ host, pod int32 }

// parseVeth reads a link's index and its peer's from the answer to getLink.
func parseVeth(payload []byte) (vethIndexes, error) {
	if len(payload) < unix.SizeofIfInfomsg {
		return vethIndexes{}, errors.New("short answer about a link")
	}
	veth := vethIndexes{host: int32(order.Uint32(payload[4:]))}
	for typ, value := range attributes(payload[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_LINK && len(value) == 4 {
			veth.pod = int32(order.Uint32(value))
		}
	}
	if veth.pod == 0 {
		return vethIndexes{}, fmt.Errorf("link %d has no peer", veth.host)
	}
	return veth, nil
}

func single(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

func unspecified(addr netip.Addr) netip.Addr {
	if addr.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func family(addr netip.Addr) uint8 {
	if addr.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// tableByte is the table as the fixed part of a message has it; numbers that do not fit are in an attribute only.
func tableByte(table int) uint8 {
	if table > 255 {
		return unix.RT_TABLE_UNSPEC
	}
	return uint8(table)
}
