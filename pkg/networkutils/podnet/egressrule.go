package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// ErrNoEgressRule says that the host does no source NAT for an address.
var ErrNoEgressRule = errors.New("no rule for egress")

// EgressRule asks whether the host does source NAT for an address of an egress range: whether the address is in the set
// that hostnet's rules look into, which stands and falls with them. The error is ErrNoEgressRule if it is not.
func EgressRule(ctx context.Context, addr netip.Addr) error {
	c, err := dialer{}.openProtocol(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.ask(ctx, getElement(names.NFTable, names.NFEgressSet, addr))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("%w of %s", ErrNoEgressRule, addr)
	}
	return err
}

// getElement asks nf_tables for one element of a set (linux/netfilter/nf_tables.h); in a set of ranges, for the one that
// the address is in.
func getElement(table, set string, addr netip.Addr) message {
	const nested = unix.NLA_F_NESTED
	m := newMessage(fmt.Sprintf("look %s up in set %s", addr, set), unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, 0)
	family := byte(unix.NFPROTO_IPV4)
	if addr.Is6() {
		family = unix.NFPROTO_IPV6
	}
	m.data = append(m.data, family, unix.NFNETLINK_V0, 0, 0)
	m.str(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	m.str(unix.NFTA_SET_ELEM_LIST_SET, set)
	m.nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS|nested, func() {
		m.nested(unix.NFTA_LIST_ELEM|nested, func() {
			m.nested(unix.NFTA_SET_ELEM_KEY|nested, func() {
				m.bytes(unix.NFTA_DATA_VALUE, addr.AsSlice())
			})
		})
	})
	return m
}
