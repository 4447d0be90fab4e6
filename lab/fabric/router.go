package fabric

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routerSettings are made before the router has any link, so that every link starts out with them and plugging an
// ENI in writes no setting.
var routerSettings = []sysctl{
	{"ipv4/ip_forward", "1"},
	{"ipv4/conf/all/rp_filter", "0"}, // the source check is in the ruleset, where it counts
	{"ipv4/conf/default/rp_filter", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/default/proxy_arp", "1"},
}

var routerSettings6 = []sysctl{
	{"ipv6/conf/all/forwarding", "1"},
	{"ipv6/conf/default/forwarding", "1"},
	{"ipv6/conf/default/disable_ipv6", "0"},
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/autoconf", "0"},
	{"ipv6/conf/default/dad_transmits", "0"},
	{"ipv6/conf/default/addr_gen_mode", "1"},
}

// shared is what the ENIs, subnets and VPCs together make of the router.
type shared struct {
	addrs  map[netip.Addr]bool   // the router's own
	ranges map[netip.Prefix]bool // that lead nowhere but to what is assigned
	sets   map[setElement]bool
}

// setElement is an element of one of the ruleset's sets. key is the address, link name or, in setPeered, the number
// of a VPC; until is set in intervals.
type setElement struct {
	set   string
	key   string
	until string
}

func (f *Fabric) build(more []PeeredHost) error {
	var err error
	if f.vpc, err = newNamespace(); err != nil {
		return err
	}
	f.hosts[HostVPC] = f.vpc
	if err := f.vpc.set(routerSettings); err != nil {
		return err
	}
	switch err := f.vpc.set(routerSettings6); {
	case err == nil:
		f.v6 = true
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if f.nft, err = f.vpc.nftables(); err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if err := f.rules.install(f.nft); err != nil {
		return err
	}
	if err := f.addServiceAddrs(); err != nil {
		return err
	}
	hosts := []outside{
		{HostInternet, []netip.Prefix{netip.PrefixFrom(InternetAddr, 24), netip.PrefixFrom(InternetAddr6, 64)}},
		{HostOnPrem, []netip.Prefix{netip.PrefixFrom(OnPremAddr, 24), netip.PrefixFrom(OnPremAddr6, 64)}},
	}
	for _, h := range more {
		hosts = append(hosts, outside{h.Name, []netip.Prefix{h.Addr}})
	}
	for _, h := range hosts {
		if err := f.addHost(h); err != nil {
			return fmt.Errorf("host %s: %w", h.name, err)
		}
	}
	return f.addDefaultRoutes()
}

// addServiceAddrs gives the router the addresses that are the same in all VPCs. Their scope keeps the kernel from
// choosing one of them as the source of ICMP errors, which come from a subnet's gateway address.
func (f *Fabric) addServiceAddrs() error {
	lo, err := f.vpc.LinkByName("lo")
	if err != nil {
		return err
	}
	addrs := []netip.Addr{IMDSAddr, ResolverAddr, EC2Addr, NATAddr}
	if f.v6 {
		addrs = append(addrs, IMDSAddr6, ResolverAddr6)
	}
	for _, a := range addrs {
		if err := f.vpc.addAddr(lo, single(a), netlink.SCOPE_LINK); err != nil {
			return err
		}
	}
	return nil
}

// outside is a host outside of the VPCs.
type outside struct {
	name  Host
	addrs []netip.Prefix // each with the length of its network, whose first address is the router's
}

func (f *Fabric) addHost(h outside) error {
	if f.hosts[h.name] != nil {
		return errors.New("there is one of that name")
	}
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	f.hosts[h.name] = ns
	attrs := netlink.NewLinkAttrs()
	attrs.Name = string(h.name)
	attrs.MTU = f.mtu
	attrs.Flags = net.FlagUp
	link := netlink.NewVeth(attrs)
	link.PeerName = "eth0"
	link.PeerNamespace = netlink.NsFd(ns.file.Fd())
	if err := f.vpc.LinkAdd(link); err != nil {
		return fmt.Errorf("make its interface: %w", err)
	}
	eth0, err := ns.LinkByName(link.PeerName)
	if err != nil {
		return err
	}
	if err := ns.LinkSetUp(eth0); err != nil {
		return err
	}
	f.vpc.settle(link.Index)
	// Without a link-local address the router could not ask for the host's MAC when it forwards to it.
	if f.v6 {
		if err := f.vpc.addAddr(link, netip.PrefixFrom(RouterAddr6, 64), netlink.SCOPE_LINK); err != nil {
			return err
		}
	}
	for _, addr := range h.addrs {
		if addr.Addr().Is6() && !f.v6 {
			continue
		}
		router := addr.Masked().Addr().Next()
		if err := f.vpc.addAddr(link, netip.PrefixFrom(router, addr.Bits()), netlink.SCOPE_UNIVERSE); err != nil {
			return err
		}
		if err := ns.addAddr(eth0, addr, netlink.SCOPE_UNIVERSE); err != nil {
			return err
		}
		if err := ns.RouteReplace(defaultRoute(eth0.Attrs().Index, router)); err != nil {
			return fmt.Errorf("default route by %s: %w", router, err)
		}
	}
	return nil
}

// addDefaultRoutes makes the internet gateway the way to everything that is neither in a VPC nor peered.
func (f *Fabric) addDefaultRoutes() error {
	link, err := f.vpc.LinkByName(internetLink)
	if err != nil {
		return err
	}
	hops := []netip.Addr{InternetAddr}
	if f.v6 {
		hops = append(hops, InternetAddr6)
	}
	for _, hop := range hops {
		if err := f.vpc.RouteReplace(defaultRoute(link.Attrs().Index, hop)); err != nil {
			return fmt.Errorf("default route by %s: %w", hop, err)
		}
	}
	return nil
}

func defaultRoute(link int, hop netip.Addr) *netlink.Route {
	everything := netip.PrefixFrom(hop, 0).Masked()
	return &netlink.Route{LinkIndex: link, Dst: ipNet(everything), Gw: hop.AsSlice(), Protocol: unix.RTPROT_STATIC}
}

// wantShared computes what the router needs beyond the ports' own routes.
func wantShared(vpcs map[string]*vpcState, ports map[string]*port) shared {
	want := shared{addrs: map[netip.Addr]bool{}, ranges: map[netip.Prefix]bool{}, sets: map[setElement]bool{}}
	for _, v := range vpcs {
		for _, a := range v.routerAddrs() {
			want.addrs[a] = true
		}
		for _, r := range v.ranges() {
			want.ranges[r] = true
		}
		number := binaryutil.NativeEndian.PutUint32(v.number)
		want.sets[setElement{set: setPeered, key: string(slices.Concat(number, number))}] = true
		for _, s := range v.subnets {
			if !s.Public {
				want.sets[interval(setNATted, s.CIDR)] = true
			}
		}
	}
	for _, p := range ports {
		if p.spec.unchecked {
			want.sets[setElement{set: setUnchecked, key: string(ifname(p.name))}] = true
		}
		if p.spec.public {
			want.sets[setElement{set: setMapped, key: string(p.spec.primary.AsSlice())}] = true
		}
	}
	return want
}

// interval is an IPv4 range as a set holds it: from its first address to before the first one behind it.
func interval(set string, p netip.Prefix) setElement {
	first := p.Masked().Addr().As4()
	end := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(first[:])+1<<(32-p.Bits()))
	return setElement{set: set, key: string(first[:]), until: string(end)}
}

// applyShared brings the router's addresses, ranges and sets to what is wanted; what is wanted already costs nothing.
func (f *Fabric) applyShared() error {
	if f.vpc == nil {
		return errClosed
	}
	want := wantShared(f.vpcs, f.ports)
	if f.applied.addrs == nil {
		f.applied = wantShared(nil, nil)
	}
	if err := f.applyAddrs(want.addrs); err != nil {
		return err
	}
	if err := f.applyRanges(want.ranges); err != nil {
		return err
	}
	return f.applySets(want.sets)
}

func (f *Fabric) applyAddrs(want map[netip.Addr]bool) error {
	add, remove := diff(f.applied.addrs, want, netip.Addr.Compare)
	if len(add)+len(remove) == 0 {
		return nil
	}
	lo, err := f.vpc.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, a := range add {
		if err := f.vpc.addAddr(lo, single(a), netlink.SCOPE_UNIVERSE); err != nil {
			return fmt.Errorf("router: %w", err)
		}
		f.applied.addrs[a] = true
	}
	for _, a := range remove {
		if err := f.vpc.AddrDel(lo, &netlink.Addr{IPNet: ipNet(single(a))}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("router: remove address %s: %w", a, err)
		}
		delete(f.applied.addrs, a)
	}
	return nil
}

func (f *Fabric) applyRanges(want map[netip.Prefix]bool) error {
	add, remove := diff(f.applied.ranges, want, comparePrefix)
	nowhere := func(p netip.Prefix) *netlink.Route {
		return &netlink.Route{Dst: ipNet(p), Type: unix.RTN_BLACKHOLE, Protocol: unix.RTPROT_STATIC}
	}
	for _, p := range add {
		if p.Addr().Is6() && !f.v6 {
			continue
		}
		if err := f.vpc.RouteReplace(nowhere(p)); err != nil {
			return fmt.Errorf("range %s: %w", p, err)
		}
		f.applied.ranges[p] = true
	}
	for _, p := range remove {
		if err := f.vpc.RouteDel(nowhere(p)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove range %s: %w", p, err)
		}
		delete(f.applied.ranges, p)
	}
	return nil
}

// applySets changes the sets by elements, in one transaction.
func (f *Fabric) applySets(want map[setElement]bool) error {
	add, remove := diff(f.applied.sets, want, func(a, b setElement) int {
		return strings.Compare(a.set+a.key, b.set+b.key)
	})
	if len(add)+len(remove) == 0 {
		return nil
	}
	for _, e := range remove {
		if err := f.nft.SetDeleteElements(f.rules.setNamed(e.set), e.elements()); err != nil {
			return err
		}
	}
	for _, e := range add {
		if err := f.nft.SetAddElements(f.rules.setNamed(e.set), e.elements()); err != nil {
			return err
		}
	}
	if err := f.nft.Flush(); err != nil {
		return fmt.Errorf("update nftables sets: %w", err)
	}
	f.applied.sets = maps.Clone(want)
	return nil
}

func (e setElement) elements() []nftables.SetElement {
	elements := []nftables.SetElement{{Key: []byte(e.key)}}
	if e.until != "" {
		elements = append(elements, nftables.SetElement{Key: []byte(e.until), IntervalEnd: true})
	}
	return elements
}
