package podnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"vpccni/pkg/networkutils/names"

	"golang.org/x/sys/unix"
)

// Branch is the branch ENI of a pod: an ENI with security groups for this pod alone, which reaches the node as a VLAN of
// its trunk ENI.
type Branch struct {
	// VLAN is its number on the trunk ENI, 1 to names.MaxVLAN.
	VLAN int
	// MAC is the branch ENI's.
	MAC net.HardwareAddr
	// Gateway is the router of its subnet: the base + 1, or fe80:ec2::1.
	Gateway netip.Addr
	// Parent is the index of the trunk ENI's link.
	Parent int
	Mode   BranchMode
}

// BranchMode says which packets of the pod have to pass the branch ENI, and with it the pod's security groups
// (POD_SECURITY_GROUP_ENFORCING_MODE). There is no default.
type BranchMode int

const (
	// BranchStrict leads all of them there, those from and to the pod's own node, too.
	BranchStrict BranchMode = iota + 1
	// BranchStandard leads those there that leave the node or come from elsewhere.
	BranchStandard
)

// strict tells whether there is a branch ENI, and it sees all of the pod's packets.
func (b *Branch) strict() bool { return b != nil && b.Mode == BranchStrict }

func (b *Branch) validate(addr netip.Addr) error {
	switch {
	case b.VLAN < 1 || b.VLAN > names.MaxVLAN:
		return fmt.Errorf("%d is no number of a VLAN", b.VLAN)
	case len(b.MAC) != len(mac{}):
		return fmt.Errorf("branch ENI: %q is no Ethernet address", b.MAC)
	case !b.Gateway.IsValid() || b.Gateway.Is4() != addr.Is4() || b.Gateway.IsUnspecified() || b.Gateway.IsMulticast():
		return fmt.Errorf("branch ENI: %q is no gateway for %s", b.Gateway, addr)
	case b.Parent < 1:
		return fmt.Errorf("branch ENI: %d is no index of a trunk ENI's link", b.Parent)
	case b.Mode != BranchStrict && b.Mode != BranchStandard:
		return fmt.Errorf("branch ENI: unknown enforcing mode %d", b.Mode)
	}
	return nil
}

// branch gives the pod its branch ENI's VLAN link, and leads its packets there.
func (w *wiring) branch(ctx context.Context, pod Pod, iface Interface, veth int32) error {
	b := iface.Branch
	vlan, err := w.makeVLAN(ctx, b, Owner{
		ContainerID: pod.ContainerID, IfName: iface.Name, HostVeth: iface.HostVeth, Address: iface.Address.Addr(), Since: time.Now(),
	})
	if err != nil {
		return err
	}
	// Rules know a link by its name, so those of an older sandbox of this pod are this one's as well, and go first.
	stale := staleBranchRules(iface)
	replies, err := w.host.send(ctx, stale)
	if err != nil {
		return err
	}
	if err := deleteRules(ctx, w.host, stale, replies); err != nil {
		return err
	}
	if err := writeSysctls(ctx, hostSysctls(names.VLANLink(b.VLAN), iface.Address.Addr().Is6())); err != nil {
		return err
	}
	for _, undo := range undoBranchRules(iface) {
		undo.ignore = []unix.Errno{unix.ENOENT}
		w.rules = append(w.rules, undo)
	}
	return w.host.all(ctx, branchState(iface, veth, vlan))
}

// makeVLAN creates the VLAN link in the place of an older one: the branch ENI is this pod's now.
func (w *wiring) makeVLAN(ctx context.Context, b *Branch, owner Owner) (int32, error) {
	name := names.VLANLink(b.VLAN)
	for cleared := false; ; cleared = true {
		replies, err := w.host.send(ctx, []message{newVLAN(b), setAlias(name, owner.String()), getLink(name)})
		if err != nil {
			return 0, err
		}
		switch err := replies[0].err; {
		case errors.Is(err, unix.EEXIST) && !cleared:
			if err := w.clear(ctx, name); err != nil {
				return 0, err
			}
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			return 0, fmt.Errorf("the kernel has no VLANs (module 8021q): %w", err)
		case errors.Is(err, unix.EEXIST):
			return 0, fmt.Errorf("the trunk ENI's VLAN %d has another link: %w", b.VLAN, err)
		case err != nil:
			return 0, err
		}
		index, err := linkIndex(replies[2])
		if err != nil {
			_, undoErr := w.host.send(ctx, []message{deleteLinkByName(name)})
			return 0, errors.Join(err, undoErr)
		}
		w.made = append(w.made, index)
		return index, replies[1].err
	}
}

func linkIndex(link reply) (int32, error) {
	if link.err != nil {
		return 0, link.err
	}
	if len(link.payload) < unix.SizeofIfInfomsg {
		return 0, errors.New("short answer about a link")
	}
	return int32(order.Uint32(link.payload[4:])), nil
}

// newVLAN makes the link of a branch ENI, down. Its MTU is the trunk's.
func newVLAN(b *Branch) message {
	const vlanID = 1 // IFLA_VLAN_ID of linux/if_link.h
	name := names.VLANLink(b.VLAN)
	m := newMessage("create "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m.ifinfo(0, 0, 0)
	m.str(unix.IFLA_IFNAME, name)
	m.u32(unix.IFLA_LINK, uint32(b.Parent))
	m.bytes(unix.IFLA_ADDRESS, b.MAC)
	if b.strict() {
		m.u32(unix.IFLA_GROUP, names.GroupStrictPod)
	}
	m.nested(unix.IFLA_LINKINFO, func() {
		m.str(unix.IFLA_INFO_KIND, "vlan")
		m.nested(unix.IFLA_INFO_DATA, func() {
			m.bytes(vlanID, order.AppendUint16(nil, uint16(b.VLAN)))
		})
	})
	return m
}

// branchState is what a pod on a branch ENI needs on the host besides its two links. Each message comes before those that
// could let packets of the pod out by the way that theirs is to close.
func branchState(iface Interface, veth, vlan int32) []message {
	b := iface.Branch
	name, table, addr := names.VLANLink(b.VLAN), names.VLANTable(b.VLAN), iface.Address.Addr()
	var state []message
	if b.strict() {
		state = append(state,
			newRuleIn(family(addr), iface.HostVeth, table),
			newRuleIn(family(addr), name, table))
	} else {
		state = append(state, newRuleFrom(addr, table, names.PriorityFromPod))
	}
	up := linkUp(name, vlan)
	up.sourceCheck(sourceLoose)
	state = append(state, up,
		newRoute(route{dst: single(b.Gateway), link: vlan, table: table, protocol: unix.RTPROT_BOOT}),
		newRoute(route{dst: netip.PrefixFrom(unspecified(addr), 0), via: b.Gateway, link: vlan, table: table, protocol: unix.RTPROT_BOOT}))
	if b.Mode == BranchStandard {
		return append(state, hostState(iface, veth)...)
	}
	return append(state,
		vethUp(iface, veth),
		newRoute(route{dst: iface.Address, link: veth, table: table, protocol: unix.RTPROT_BOOT}))
}

// staleBranchRules delete what may be left of older pods: of one with this pod's name, on this or another branch ENI,
// or of the one that had this branch ENI or address.
func staleBranchRules(iface Interface) []message {
	addr, table := iface.Address.Addr(), names.VLANTable(iface.Branch.VLAN)
	return []message{
		deleteRuleIn(family(addr), iface.HostVeth),
		deleteRuleLookup(family(addr), table, names.PriorityVLAN),
		deleteRuleLookup(family(addr), table, names.PriorityFromPod),
		deleteRuleFrom(addr),
		deleteRuleTo(addr),
	}
}

// undoBranchRules delete the rules of branchState.
func undoBranchRules(iface Interface) []message {
	f, table := family(iface.Address.Addr()), names.VLANTable(iface.Branch.VLAN)
	return []message{
		deleteRuleIn(f, iface.HostVeth),
		deleteRuleIn(f, names.VLANLink(iface.Branch.VLAN)),
		deleteRuleLookup(f, table, names.PriorityFromPod),
	}
}

// newRuleIn sends what comes in by a link to a table, before the host takes what is for itself.
func newRuleIn(family uint8, link string, table int) message {
	m := newMessage(fmt.Sprintf("add rule iif %s lookup %d", link, table), unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m.ruleIn(family, link, table)
	m.bytes(unix.FRA_PROTOCOL, []byte{names.RuleProtocol})
	m.ignore = []unix.Errno{unix.EEXIST}
	return m
}

// deleteRuleIn deletes such a rule, whatever its table and whoever wrote it.
func deleteRuleIn(family uint8, link string) message {
	m := newMessage("delete rule iif "+link, unix.RTM_DELRULE, 0)
	m.ruleIn(family, link, unix.RT_TABLE_UNSPEC)
	return m
}

func (m *message) ruleIn(family uint8, link string, table int) {
	m.data = append(m.data, family, 0, 0, 0, tableByte(table), 0, 0, unix.FR_ACT_TO_TBL)
	m.data = order.AppendUint32(m.data, 0)
	m.str(unix.FRA_IIFNAME, link)
	m.u32(unix.FRA_PRIORITY, names.PriorityVLAN)
	if table != unix.RT_TABLE_UNSPEC {
		m.u32(unix.FRA_TABLE, uint32(table))
	}
}

// checkBranch asks where packets go that come in by the VLAN link for the pod, and those that the pod sends.
func checkBranch(ctx context.Context, host *conn, iface Interface, veth link) error {
	b, addr := iface.Branch, iface.Address.Addr()
	answer, err := host.ask(ctx, getLink(names.VLANLink(b.VLAN)))
	if err != nil {
		return err
	}
	vlan := parseEther(answer)
	if vlan.flags&unix.IFF_UP == 0 {
		return fmt.Errorf("link %s is down", names.VLANLink(b.VLAN))
	}
	if len(b.MAC) > 0 && !bytes.Equal(vlan.mac[:], b.MAC) {
		return fmt.Errorf("link %s has the address %x, not the branch ENI's %s", names.VLANLink(b.VLAN), vlan.mac, b.MAC)
	}
	in, err := host.passing(ctx, elsewhere(addr), addr, vlan.index)
	if err != nil {
		return err
	}
	if in.link != veth.index {
		return fmt.Errorf("the host sends what comes in by %s for %s to link %d, not to the pod's link %d",
			names.VLANLink(b.VLAN), addr, in.link, veth.index)
	}
	out, err := host.passing(ctx, addr, elsewhere(addr), veth.index)
	if err != nil {
		return err
	}
	if out.link != vlan.index || b.Gateway.IsValid() && out.via != b.Gateway {
		return fmt.Errorf("the pod's packets leave via %s link %d, not via %s link %d", out.via, out.link, b.Gateway, vlan.index)
	}
	return nil
}

// passing asks where a packet would go that comes in by a link.
func (c *conn) passing(ctx context.Context, src, dst netip.Addr, in int32) (decision, error) {
	m := getRoute(dst, src)
	m.u32(unix.RTA_IIF, uint32(in))
	answer, err := c.ask(ctx, m)
	return parseRoute(answer), err
}
