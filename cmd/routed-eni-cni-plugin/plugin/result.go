package plugin

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/podnet"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// allocation is one address of a pod as ipamd gives it.
type allocation struct {
	address netip.Prefix
	device  int
	table   int
}

// allocations reads the addresses of a reply; at least one, or an error.
func allocations(metadata []metadata) ([]allocation, error) {
	var list []allocation
	for _, m := range metadata {
		text := m.ipv4
		if text == "" {
			text = m.ipv6
		}
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("ipamd's answer has no usable address: %w", err)
		}
		list = append(list, allocation{
			address: netip.PrefixFrom(addr, addr.BitLen()),
			device:  int(m.device),
			table:   int(m.table),
		})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("ipamd's answer has no address")
	}
	return list, nil
}

// interfaces names both ends of each of the pod's interfaces.
func (c *call) interfaces(list []allocation) []podnet.Interface {
	var interfaces []podnet.Interface
	for i, a := range list {
		name := c.args.IfName
		if i > 0 {
			name = fmt.Sprintf("mNicIf%d", i)
		}
		interfaces = append(interfaces, podnet.Interface{
			Name:     name,
			HostVeth: names.HostVeth(c.conf.prefix(), c.pod.namespace(), c.pod.name(), i),
			Address:  a.address,
			MTU:      c.conf.mtu(a.address.Addr().Is6()),

			SourceCheck: c.conf.sourceCheck(),
		})
	}
	return interfaces
}

// result describes the pod in CNI's terms. For each interface there is its host end and its container end, whose "mac"
// is the number of the ENI's route table; a last "dummy" interface has VLAN 0 as its "mac" and the first ENI's device
// index as its "sandbox". Versions before this one read them back at DEL, also after a downgrade.
func (c *call) result(list []allocation, interfaces []podnet.Interface) *current.Result {
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	for i, iface := range interfaces {
		result.Interfaces = append(result.Interfaces,
			&current.Interface{Name: iface.HostVeth},
			&current.Interface{Name: iface.Name, Sandbox: c.args.Netns, Mac: strconv.Itoa(list[i].table)})
		bits := iface.Address.Bits()
		result.IPs = append(result.IPs, &current.IPConfig{
			Interface: current.Int(len(result.Interfaces) - 1),
			Address:   net.IPNet{IP: iface.Address.Addr().AsSlice(), Mask: net.CIDRMask(bits, bits)},
		})
	}
	result.Interfaces = append(result.Interfaces, &current.Interface{
		Name: c.dummy(), Mac: "0", Sandbox: strconv.Itoa(list[0].device),
	})
	return result
}

func (c *call) dummy() string {
	return "dummy" + names.VethSuffix(c.pod.namespace(), c.pod.name(), 0)
}

// previous is what an earlier ADD of this or another version reported about the pod.
type previous struct {
	interfaces []previousInterface
	// vlan is the VLAN of a branch ENI's pod, 0 for others.
	vlan int
}

// maxVLAN is the highest number of a VLAN.
const maxVLAN = 4094

type previousInterface struct {
	hostVeth string
	name     string
	address  netip.Prefix
}

// previous reads prevResult; nil if there is none, or nothing of the pod in it. Plugins behind this one in the chain
// may have appended interfaces and addresses of their own, and results of versions before 1.12 have no dummy.
func (c *call) previous() *previous {
	if c.conf.prev == nil {
		return nil
	}
	prev := &previous{}
	list := c.conf.prev.Interfaces
	for i, iface := range list {
		if iface.Name == c.dummy() {
			vlan, err := strconv.Atoi(iface.Mac)
			if err != nil || vlan < 0 || vlan > maxVLAN {
				// ipamd knows better, and a DEL that can never succeed helps nobody.
				c.log.Warn("the VLAN in prevResult is none", "vlan", iface.Mac)
				vlan = 0
			}
			prev.vlan = vlan
			list = list[:i]
			break
		}
	}
	for i, iface := range list {
		if iface.Sandbox == "" || i == 0 {
			continue
		}
		addr, ok := firstAddress(c.conf.prev.IPs, i)
		if !ok {
			continue
		}
		prev.interfaces = append(prev.interfaces, previousInterface{hostVeth: list[i-1].Name, name: iface.Name, address: addr})
	}
	if len(prev.interfaces) == 0 {
		return nil
	}
	return prev
}

// firstAddress is the single address of the index-th interface that came first, ours.
func firstAddress(ips []*current.IPConfig, index int) (netip.Prefix, bool) {
	for _, ip := range ips {
		if ip.Interface == nil || *ip.Interface != index {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		addr = addr.Unmap()
		if ones, bits := ip.Address.Mask.Size(); ones != bits {
			continue
		}
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	return netip.Prefix{}, false
}
