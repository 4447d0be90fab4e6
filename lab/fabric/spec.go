package fabric

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"vpccni/lab/ec2"
)

// socket is where and as what an ENI is plugged in. If any of it changes the interface is made anew, as it is on
// EC2, where none of it can change while the ENI is attached.
type socket struct {
	instance     string
	device, card int
	mac          string
	primary      netip.Addr
	subnet       netip.Prefix
	vpc          uint32 // link group, the number of its VPC
}

// portSpec is everything that the fabric does for one attached ENI.
type portSpec struct {
	socket
	routes    []netip.Prefix // what is forwarded to it and accepted from it; sorted
	resolver  netip.Addr
	ipv6      []netip.Addr // what an instance configures at boot
	unchecked bool         // source/destination check is off
	public    bool         // the internet gateway maps its primary address
}

func attached(e ec2.ENI) bool { return e.Attachment != nil && e.Attachment.State == "attached" }

// specOf says what an attached ENI wants of the fabric.
func specOf(e ec2.ENI, vpcs map[string]*vpcState) (portSpec, error) {
	vpc := vpcs[e.VPCID]
	if vpc == nil {
		return portSpec{}, fmt.Errorf("eni %s: unknown vpc %q", e.ID, e.VPCID)
	}
	subnet, ok := vpc.subnet(e.SubnetID)
	if !ok {
		return portSpec{}, fmt.Errorf("eni %s: unknown subnet %q", e.ID, e.SubnetID)
	}
	if !subnet.CIDR.Contains(e.Primary) {
		return portSpec{}, fmt.Errorf("eni %s: primary address %s is not in subnet %s", e.ID, e.Primary, subnet.CIDR)
	}
	spec := portSpec{
		socket: socket{
			instance: e.Attachment.InstanceID,
			device:   e.Attachment.Device,
			card:     e.Attachment.Card,
			mac:      e.MAC.String(),
			primary:  e.Primary,
			subnet:   subnet.CIDR.Masked(),
			vpc:      vpc.number,
		},
		routes:    addressesOf(e),
		resolver:  VPCResolverAddr(vpc.CIDRs[0]),
		ipv6:      slices.Clone(e.IPv6),
		unchecked: !e.SourceDestCheck,
		public:    subnet.Public && e.PublicIP.IsValid(),
	}
	return spec, nil
}

// addressesOf lists all that is assigned to an ENI, without its duplicates.
func addressesOf(e ec2.ENI) []netip.Prefix {
	all := []netip.Prefix{single(e.Primary)}
	for _, a := range slices.Concat(e.Secondary, e.IPv6) {
		all = append(all, single(a))
	}
	for _, p := range slices.Concat(e.Prefixes, e.IPv6Prefixes) {
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, comparePrefix)
	return slices.Compact(all)
}

// linkName is the i-th choice for the name of an ENI's interface in its node: eth<device> on the first network card
// and, further up so that they do not take those names, the same on the others.
func linkName(card, device, i int) string { return fmt.Sprintf("eth%d", 100*card+device+i) }

// linkLocal is the EUI-64 link-local address of an ENI: the next hop of its IPv6 routes.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(a[8:11], mac[:3])
	copy(a[13:], mac[3:6])
	a[8] ^= 0x02
	return netip.AddrFrom16(a)
}

// vpcState is a VPC as the fabric carries it.
type vpcState struct {
	ec2.VPC
	number  uint32
	subnets []ec2.Subnet
}

func (v *vpcState) subnet(id string) (ec2.Subnet, bool) {
	i := slices.IndexFunc(v.subnets, func(s ec2.Subnet) bool { return s.ID == id })
	if i < 0 {
		return ec2.Subnet{}, false
	}
	return v.subnets[i], true
}

// ranges are the VPC's address ranges: what has no route inside of them leads nowhere.
func (v *vpcState) ranges() []netip.Prefix {
	var all []netip.Prefix
	for _, c := range v.CIDRs {
		all = append(all, c.Masked())
	}
	for _, s := range v.subnets {
		if s.IPv6.IsValid() {
			all = append(all, s.IPv6.Masked())
		}
	}
	return all
}

// routerAddrs are the addresses that the router itself has in the VPC.
func (v *vpcState) routerAddrs() []netip.Addr {
	all := []netip.Addr{VPCResolverAddr(v.CIDRs[0])}
	for _, s := range v.subnets {
		all = append(all, GatewayAddr(s.CIDR))
	}
	return all
}

// checkVPC refuses what the fabric cannot carry. One router serves all VPCs, so their ranges must differ.
func checkVPC(v ec2.VPC, others map[string]*vpcState) error {
	if len(v.CIDRs) == 0 {
		return fmt.Errorf("vpc %s has no range", v.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(others)) {
		for _, theirs := range others[id].CIDRs {
			for _, ours := range v.CIDRs {
				if id != v.ID && ours.Overlaps(theirs) {
					return fmt.Errorf("vpc %s: range %s overlaps %s of vpc %s", v.ID, ours, theirs, id)
				}
			}
		}
	}
	return nil
}

// diff returns what is to be added to have to get want, and what is to be removed, both in order.
func diff[T comparable](have, want map[T]bool, order func(a, b T) int) (add, remove []T) {
	for k := range want {
		if !have[k] {
			add = append(add, k)
		}
	}
	for k := range have {
		if !want[k] {
			remove = append(remove, k)
		}
	}
	slices.SortFunc(add, order)
	slices.SortFunc(remove, order)
	return add, remove
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func setOf[T comparable](items []T) map[T]bool {
	set := make(map[T]bool, len(items))
	for _, item := range items {
		set[item] = true
	}
	return set
}
