package slice

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/pkg/networkutils/names"
)

// hostState reads a node's network, to find what is there of pods and ENIs that are not.
type hostState struct {
	node *cluster.Node
	ns   *os.File
	h    *netlink.Handle
	nft  *nftables.Conn
}

func newHostState(n *cluster.Node) (*hostState, error) {
	ns, err := n.OS().NetNS()
	if err != nil {
		return nil, err
	}
	s := &hostState{node: n, ns: ns}
	if s.h, err = handleAt(ns); err != nil {
		return nil, err
	}
	if s.nft, err = nftables.New(nftables.WithNetNSFd(int(ns.Fd()))); err != nil {
		return nil, err
	}
	return s, nil
}

// handleAt opens netlink sockets in a namespace.
func handleAt(ns *os.File) (*netlink.Handle, error) {
	return netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
}

func (s *hostState) close() {
	s.h.Close()
	_ = s.ns.Close()
}

// wanted is what a node shall have: pods by address, and ENIs.
type wanted struct {
	pods map[netip.Addr]string // host veths
	enis []ec2.ENI
	// freed are the addresses that pods of this node had.
	freed map[netip.Addr]bool
}

// pool are an ENI's addresses for pods.
func pool(e ec2.ENI) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range e.Secondary {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return append(out, e.Prefixes...)
}

// diff lists what is on the node and should not be, or the other way round.
func (s *hostState) diff(w wanted) ([]string, error) {
	var all []string
	for _, part := range []func(wanted) ([]string, error){s.links, s.routes, s.rules, s.neighbours, s.elements, s.connections} {
		list, err := part(w)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// compare tells the difference of two sets in words.
func compare(what string, have, want map[string]bool) (out []string) {
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if !want[k] {
			out = append(out, "stale "+what+" "+k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if !have[k] {
			out = append(out, "missing "+what+" "+k)
		}
	}
	return out
}

func (s *hostState) links(w wanted) ([]string, error) {
	links, err := s.h.LinkList()
	if err != nil {
		return nil, err
	}
	have, want := map[string]bool{}, map[string]bool{}
	for _, l := range links {
		if name := l.Attrs().Name; strings.HasPrefix(name, "eni") || strings.HasPrefix(name, names.VLANLinkPrefix) {
			have[name] = true
		}
	}
	for _, veth := range w.pods {
		want[veth] = true
	}
	return compare("link", have, want), nil
}

// routes looks at all tables but local and what the operating system has in main.
func (s *hostState) routes(w wanted) ([]string, error) {
	links, err := s.h.LinkList()
	if err != nil {
		return nil, err
	}
	nameOf := map[int]string{}
	for _, l := range links {
		nameOf[l.Attrs().Index] = l.Attrs().Name
	}
	list, err := s.h.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	inPool := map[netip.Prefix]bool{}
	have, want := map[string]bool{}, map[string]bool{}
	for _, e := range w.enis {
		for _, p := range pool(e) {
			inPool[p] = true
			want[fmt.Sprintf("unreachable %s table %d", p, names.TableUnassigned)] = true
		}
		if e.Attachment.Device > 0 {
			table := names.RouteTable(e.Attachment.Card, e.Attachment.Device)
			want[fmt.Sprintf("0.0.0.0/0 table %d", table)] = true
			want[fmt.Sprintf("%s/32 table %d", router(e), table)] = true
		}
	}
	for a, veth := range w.pods {
		for _, table := range []int{names.TableMain, names.TablePods} {
			want[fmt.Sprintf("%s/32 dev %s table %d", a, veth, table)] = true
		}
	}
	for _, r := range list {
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Dst != nil {
			a, _ := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			dst = netip.PrefixFrom(a.Unmap(), ones)
		}
		dev := nameOf[r.LinkIndex]
		switch {
		case r.Table == unix.RT_TABLE_LOCAL:
		case r.Table == names.TableMain && !strings.HasPrefix(dev, "eni") && !inPool[dst] && !w.freed[dst.Addr()]:
		case r.Type == unix.RTN_UNREACHABLE:
			have[fmt.Sprintf("unreachable %s table %d", dst, r.Table)] = true
		case r.Table == names.TableMain || r.Table == names.TablePods:
			have[fmt.Sprintf("%s dev %s table %d", dst, dev, r.Table)] = true
		default:
			have[fmt.Sprintf("%s table %d", dst, r.Table)] = true
		}
	}
	return compare("route", have, want), nil
}

// router is the VPC router of an ENI's subnet; the lab's subnets are /24.
func router(e ec2.ENI) netip.Addr {
	return netip.PrefixFrom(e.Primary, 24).Masked().Addr().Next()
}

func (s *hostState) rules(w wanted) ([]string, error) {
	list, err := s.h.RuleList(unix.AF_INET)
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	want := map[string]bool{"0 table 255": true, "512 table 5120": true, "513 table 5121": true, "1024 mark 80 table 254": true,
		"32766 table 254": true, "32767 table 253": true}
	for _, r := range list {
		text := fmt.Sprint(max(r.Priority, 0))
		if r.Src != nil {
			text += " from " + r.Src.String()
		}
		if r.Dst != nil {
			text += " to " + r.Dst.String()
		}
		if r.Mark != 0 {
			text += fmt.Sprintf(" mark %x", r.Mark)
		}
		text += fmt.Sprintf(" table %d", r.Table)
		if have[text] {
			text += " twice"
		}
		have[text] = true
	}
	for _, e := range w.enis {
		if d := e.Attachment.Device; d > 0 {
			table := names.RouteTable(e.Attachment.Card, d)
			want[fmt.Sprintf("%d mark %x table %d", names.PriorityENI, d, table)] = true
			want[fmt.Sprintf("%d from %s/32 table %d", names.PriorityENIAddress, e.Primary, table)] = true
		}
	}
	return compare("rule", have, want), nil
}

// neighbours wants no entry for an address that no pod has, nor on another link than the pod's.
func (s *hostState) neighbours(w wanted) (out []string, err error) {
	list, err := s.h.NeighList(0, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, n := range list {
		a, _ := netip.AddrFromSlice(n.IP)
		a = a.Unmap()
		name := fmt.Sprint(n.LinkIndex)
		if l, err := s.h.LinkByIndex(n.LinkIndex); err == nil {
			name = l.Attrs().Name
		}
		veth, lives := w.pods[a]
		if lives && veth != name || !lives && (w.freed[a] || strings.HasPrefix(name, "eni")) {
			out = append(out, fmt.Sprintf("stale neighbour %s on %s", a, name))
		}
	}
	return out, nil
}

// elements wants exactly the addresses of secondary ENIs in the map that sends pods' packets to them.
func (s *hostState) elements(w wanted) ([]string, error) {
	table := &nftables.Table{Name: names.NFTable, Family: nftables.TableFamilyIPv4}
	have, want := map[string]bool{}, map[string]bool{}
	links := 0
	for _, e := range w.enis {
		if e.Attachment.Device == 0 {
			continue
		}
		links++
		for _, p := range pool(e) {
			want[p.Addr().String()] = true
		}
	}
	sets, err := s.nft.GetSets(table)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, set := range sets {
		list, err := s.nft.GetSetElements(set)
		if err != nil {
			return nil, err
		}
		switch set.Name {
		case "eni_src":
			for _, e := range list {
				if a, _ := netip.AddrFromSlice(e.Key); !e.IntervalEnd {
					have[a.String()] = true
				}
			}
		case "secondary", "arrived_by", "reply_by":
			if len(list) != links {
				out = append(out, fmt.Sprintf("%d elements in nft set %s for %d secondary ENIs", len(list), set.Name, links))
			}
		}
	}
	return append(out, compare("nft element", have, want)...), nil
}

// connections wants none of an address that a pod of this node had and none has.
func (s *hostState) connections(w wanted) (out []string, err error) {
	flows, err := s.h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, f := range flows {
		for _, ip := range [][]byte{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
			a, _ := netip.AddrFromSlice(ip)
			a = a.Unmap()
			if _, lives := w.pods[a]; w.freed[a] && !lives {
				out = append(out, fmt.Sprintf("stale connection of %s: %s", a, f))
				break
			}
		}
	}
	return out, nil
}
