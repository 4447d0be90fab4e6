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

// allocation is what ipamd gives for one interface of a pod.
type allocation struct {
	address netip.Prefix
	// address6 is the IPv6 address beside an IPv4 address; zero for pods of one family.
	address6 netip.Prefix
	device   int
	table    int
}

// addresses are the allocation's, IPv4 first.
func (a allocation) addresses() []netip.Prefix { return addresses(a.address, a.address6) }

func addresses(first, second netip.Prefix) []netip.Prefix {
	if second.IsValid() {
		return []netip.Prefix{first, second}
	}
	return []netip.Prefix{first}
}

// allocations reads the addresses of a reply; at least one, or an error.
func allocations(metadata []metadata) ([]allocation, error) {
	var list []allocation
	for _, m := range metadata {
		a := allocation{device: int(m.device), table: int(m.table)}
		first, second := m.ipv4, m.ipv6
		if first == "" {
			first, second = second, ""
		}
		var err error
		if a.address, err = single(first); err == nil && second != "" {
			a.address6, err = single(second)
			if err == nil && (!a.address.Addr().Is4() || !a.address6.Addr().Is6()) {
				err = fmt.Errorf("%s and %s are not of two families", first, second)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("ipamd's answer has no usable address: %w", err)
		}
		list = append(list, a)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("ipamd's answer has no address")
	}
	return list, nil
}

func single(text string) (netip.Prefix, error) {
	addr, err := netip.ParseAddr(text)
	return netip.PrefixFrom(addr, addr.BitLen()), err
}

// remains are what the pod leaves on the host.
func remains(list []allocation) podnet.Remains {
	var r podnet.Remains
	for _, a := range list {
		for _, p := range a.addresses() {
			r.Addresses = append(r.Addresses, p.Addr())
		}
	}
	return r
}

// interfaces names both ends of each of the pod's interfaces, and says whether the pod has rules of its own.
func (c *call) interfaces(list []allocation, perPodRules bool) []podnet.Interface {
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
			Address6: a.address6,
			MTU:      c.conf.mtu(a.address.Addr().Is6() || a.address6.IsValid()),

			SourceCheck: c.conf.sourceCheck(),
		})
		if perPodRules {
			// As the predecessor, which takes the tables 0 and 1 for main.
			interfaces[i].RuleTable = names.TableMain
			if a.table > 1 {
				interfaces[i].RuleTable = a.table
			}
		}
	}
	return interfaces
}

// result describes the pod in CNI's terms. For each interface there is its host end and its container end, whose "mac"
// is the number of the ENI's route table; a last "dummy" interface has VLAN 0 as its "mac" and the first ENI's device
// index as its "sandbox". With a branch ENI, the table is 0, the dummy has its VLAN and no device index, and the address
// a gateway. Versions before this one read them back at DEL, also after a downgrade.
func (c *call) result(list []allocation, interfaces []podnet.Interface) *current.Result {
	result := &current.Result{CNIVersion: current.ImplementedSpecVersion}
	dummy := &current.Interface{Name: c.dummy(), Mac: "0", Sandbox: strconv.Itoa(list[0].device)}
	for i, iface := range interfaces {
		table := list[i].table
		if iface.Branch != nil {
			table, dummy.Mac, dummy.Sandbox = 0, strconv.Itoa(iface.Branch.VLAN), ""
		}
		result.Interfaces = append(result.Interfaces,
			&current.Interface{Name: iface.HostVeth},
			&current.Interface{Name: iface.Name, Sandbox: c.args.Netns, Mac: strconv.Itoa(table)})
		for _, address := range list[i].addresses() {
			ip := &current.IPConfig{
				Interface: current.Int(len(result.Interfaces) - 1),
				Address:   net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Bits())},
			}
			if iface.Branch != nil {
				ip.Gateway = iface.Branch.Gateway.AsSlice()
			}
			result.IPs = append(result.IPs, ip)
		}
	}
	result.Interfaces = append(result.Interfaces, dummy)
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

type previousInterface struct {
	hostVeth string
	name     string
	address  netip.Prefix
	address6 netip.Prefix // beside an IPv4 address; zero for pods of one family
	gateway  netip.Addr   // of a branch ENI, if the result has it
}

func (i previousInterface) addrs() []netip.Addr {
	var list []netip.Addr
	for _, p := range addresses(i.address, i.address6) {
		list = append(list, p.Addr())
	}
	return list
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
			if err != nil || vlan < 0 || vlan > names.MaxVLAN {
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
		ours := previousInterface{hostVeth: list[i-1].Name, name: iface.Name}
		var ok bool
		if ours.address, ours.address6, ok = ownAddresses(c.conf.prev.IPs, i); ok {
			ours.gateway = ownGateway(c.conf.prev.IPs, i)
			prev.interfaces = append(prev.interfaces, ours)
		}
	}
	if len(prev.interfaces) == 0 {
		return nil
	}
	return prev
}

// ownGateway is the gateway of the index-th interface's address, which only pods on branch ENIs have.
func ownGateway(ips []*current.IPConfig, index int) netip.Addr {
	for _, ip := range ips {
		if ip.Interface != nil && *ip.Interface == index && ip.Gateway != nil {
			gateway, _ := netip.AddrFromSlice(ip.Gateway)
			return gateway.Unmap()
		}
	}
	return netip.Addr{}
}

// ownAddresses are the single addresses of the index-th interface that came first, ours: one, or one of each family.
func ownAddresses(ips []*current.IPConfig, index int) (first, second netip.Prefix, ok bool) {
	var v4, v6 netip.Prefix
	for _, ip := range ips {
		if ip.Interface == nil || *ip.Interface != index {
			continue
		}
		addr, valid := netip.AddrFromSlice(ip.Address.IP)
		if ones, bits := ip.Address.Mask.Size(); !valid || ones != bits {
			continue
		}
		addr = addr.Unmap()
		family := &v6
		if addr.Is4() {
			family = &v4
		}
		if !family.IsValid() {
			*family = netip.PrefixFrom(addr, addr.BitLen())
		}
	}
	if v4.IsValid() {
		return v4, v6, true
	}
	return v6, netip.Prefix{}, v6.IsValid()
}
