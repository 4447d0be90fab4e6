package hostnet

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
)

// family is what one of the two address families has of its own. Everything else here is the same in both.
type family struct {
	name   string // as nft calls its tables
	v6     bool
	number int // as netlink has it
	nft    nfttable.Family
	key    nfttable.KeyType // of sets of addresses
	// src and dst are the fields of a packet's header.
	src, dst field
	// everything is the destination of default routes.
	everything netip.Prefix
	// metric is what the kernel makes of routes that have none, and linkScope that of destinations on a link.
	metric    uint32
	linkScope uint8
	// addressFlags are those of an ENI's own address. It has no connected route: that would be in table main. EC2 gives
	// no address twice, so there is nothing to detect, and for seconds to wait for, in IPv6.
	addressFlags int
	// snat: pods' addresses are rewritten to the node's where the VPC ends.
	snat bool
	// groupCheck: what pods may not send is dropped here. IPv4 has rp_filter for that, on the pod's veth.
	groupCheck bool
}

var ipv4 = &family{
	name: "ip", number: netlink.FAMILY_V4, nft: nfttable.IPv4, key: nfttable.KeyIPv4, src: saddr, dst: daddr,
	everything: netip.PrefixFrom(netip.IPv4Unspecified(), 0), linkScope: unix.RT_SCOPE_LINK,
	addressFlags: unix.IFA_F_NOPREFIXROUTE, snat: true,
}

var ipv6 = &family{
	name: "ip6", v6: true, number: netlink.FAMILY_V6, nft: nfttable.IPv6, key: nfttable.KeyIPv6, src: saddr6, dst: daddr6,
	everything: netip.PrefixFrom(netip.IPv6Unspecified(), 0), metric: 1024,
	addressFlags: unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_NODAD, groupCheck: true,
}

// families are looked at whatever the Config says: what is left of one that pods have no more is removed.
var families = []*family{ipv4, ipv6}

// router6 is the VPC's router on every link.
var router6 = netip.MustParseAddr("fe80:ec2::1")

// families are those that the node's pods have.
func (c Config) families() []*family {
	switch {
	case c.IPv4 && c.IPv6:
		return families
	case c.IPv6:
		return []*family{ipv6}
	default:
		return []*family{ipv4}
	}
}

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (r Rule) family() *family {
	if r.V6 {
		return ipv6
	}
	return ipv4
}

// of returns the prefixes that are of the family.
func (f *family) of(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		if p.IsValid() && familyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	return out
}

// address is the ENI's own address with the length of its subnet; invalid if it has none.
func (f *family) address(e ENI) netip.Prefix {
	if f.v6 {
		return netip.PrefixFrom(e.Address6, e.SubnetCIDR6.Bits())
	}
	return netip.PrefixFrom(e.Address, e.SubnetCIDR.Bits())
}

// on reports whether the ENI has anything of the family. A subnet may be without IPv6.
func (f *family) on(e ENI) bool { return f.address(e).IsValid() || len(f.of(e.Pool)) > 0 }

// router is the VPC's router as the ENI sees it.
func (f *family) router(e ENI) netip.Addr {
	if f.v6 {
		return router6
	}
	return e.SubnetCIDR.Masked().Addr().Next()
}

// absent reports whether the error says that the kernel has no such address family: then there is nothing of it.
func absent(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}
