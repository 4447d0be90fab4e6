package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A node has a link, a route or two and an address per pod. What is read here is filtered by the kernel, which needs
// sockets with strict checking (kernels from 4.20): older ones ignore the filter and send everything, so each answer is
// looked at once more.

// routesOf dumps the family's routes of one table, or, if link is not 0, those of them that leave by the link.
func (h *Host) routesOf(f *family, table, link int) ([]route, error) {
	filter, mask := &netlink.Route{Table: table, LinkIndex: link}, uint64(netlink.RT_FILTER_TABLE)
	if link != 0 {
		mask |= netlink.RT_FILTER_OIF
	}
	list, err := dump(func() ([]route, error) {
		var list []route
		err := h.strict.RouteListFilteredIter(f.number, filter, mask, func(r netlink.Route) bool {
			list = append(list, routeOf(r))
			return true
		})
		return list, err
	})
	// The kernel makes a table with its first route.
	if err != nil && !absent(err) && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("list routes of table %d: %w", table, err)
	}
	return list, nil
}

// addressesOf dumps the addresses of one link.
func (h *Host) addressesOf(index int) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, f := range families {
		list, err := h.addresses(f, index)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// addresses dumps a family's addresses of a link, or of all if its index is 0.
func (h *Host) addresses(f *family, index int) ([]netip.Prefix, error) {
	list, err := dump(func() ([]netip.Prefix, error) {
		req := h.rtnl.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		msg := nl.NewIfAddrmsg(f.number)
		msg.Index = uint32(index)
		req.AddData(msg)
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		if err != nil {
			return nil, err
		}
		var list []netip.Prefix
		for _, m := range msgs {
			p, link := parseAddress(m)
			if (index == 0 || link == index) && p.IsValid() && familyOf(p.Addr()) == f {
				list = append(list, p)
			}
		}
		return list, nil
	})
	switch {
	case errors.Is(err, unix.ENODEV): // the link is gone, and its addresses with it
		return nil, nil
	case err != nil && !absent(err):
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return list, nil
}

// parseAddress reads an RTM_NEWADDR message.
func parseAddress(m []byte) (p netip.Prefix, link int) {
	if len(m) < unix.SizeofIfAddrmsg {
		return p, 0
	}
	var local, address netip.Addr
	eachAttr(m[unix.SizeofIfAddrmsg:], func(typ uint16, v []byte) {
		switch typ {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(v)
		}
	})
	if !local.IsValid() {
		local = address
	}
	return netip.PrefixFrom(local, int(m[1])), int(binary.NativeEndian.Uint32(m[4:]))
}

// link asks for one link; the error is ENODEV if there is none.
func (r *rtnl) link(index int) (link, error) {
	req := r.request(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(rtextSkipStats)))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return link{}, err
	}
	if len(msgs) != 1 {
		return link{}, fmt.Errorf("%d answers about link %d", len(msgs), index)
	}
	return parseLink(msgs[0])
}

// knownLinks asks for the links that were last found for the ENIs, one by one. It returns nil, and everything has to be
// listed, unless each is there still under its MAC.
func (h *Host) knownLinks(want []Link) (map[string]link, error) {
	out := make(map[string]link, len(want))
	for _, w := range want {
		last, ok := h.last.linkOf[w.ENI]
		if !ok {
			return nil, nil
		}
		l, err := h.rtnl.link(last.index)
		switch {
		case errors.Is(err, unix.ENODEV):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("look at link %s: %w", last.name, err)
		case l.mac.String() != w.MAC || !l.isNIC():
			return nil, nil
		}
		out[w.ENI] = l
	}
	return out, nil
}
