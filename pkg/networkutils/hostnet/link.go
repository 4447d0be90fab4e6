package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Attributes that x/sys does not name.
const (
	iflaInetConf    = 1 // IFLA_INET_CONF: all of net.ipv4.conf.<link>, in a request one attribute per setting
	devconfRPFilter = 8 // IPV4_DEVCONF_RP_FILTER
	rtextSkipStats  = 1 << 3
	rpFilterLoose   = 2
	maxDumpAttempts = 5
	ifinfomsgLen    = unix.SizeofIfInfomsg
	attrHeaderLen   = unix.SizeofRtAttr
	attrTypeMask    = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
)

// link is a link of the kernel, as far as this package looks.
type link struct {
	index    int
	name     string
	mac      net.HardwareAddr
	kind     string
	mtu      int
	up       bool
	rpFilter int // -1 if the kernel did not say
}

// stackedKinds are links that show the MAC of another link below them, or of no ENI at all.
var stackedKinds = []string{"vlan", "ipvlan", "ipvtap", "bond", "bridge", "team", "vrf"}

// isNIC reports whether the link can be an ENI itself.
func (l link) isNIC() bool { return !slices.Contains(stackedKinds, l.kind) && len(l.mac) == 6 }

// same reports whether two are the same link under the same name.
func (l link) same(o link) bool { return l.index == o.index && l.name == o.name }

// rtnl makes the rtnetlink requests that vishvananda/netlink has no call for.
type rtnl struct {
	sockets map[int]*nl.SocketHandle
}

func openRtnl(ns netns.NsHandle) (*rtnl, error) {
	s, err := nl.GetNetlinkSocketAt(ns, netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	tv := unix.NsecToTimeval(requestTimeout.Nanoseconds())
	if err := errors.Join(s.SetReceiveTimeout(&tv), s.SetSendTimeout(&tv)); err != nil {
		s.Close()
		return nil, fmt.Errorf("set rtnetlink time-out: %w", err)
	}
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1) // see routesOf
	return &rtnl{sockets: map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (r *rtnl) close() {
	for _, s := range r.sockets {
		s.Close()
	}
}

func (r *rtnl) request(typ, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(typ, flags)
	req.Sockets = r.sockets
	return req
}

// links dumps all links.
func (r *rtnl) links() ([]link, error) {
	list, err := dump(func() ([]link, error) {
		req := r.request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(rtextSkipStats)))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
		if err != nil {
			return nil, err
		}
		list := make([]link, 0, len(msgs))
		for _, m := range msgs {
			l, err := parseLink(m)
			if err != nil {
				return nil, err
			}
			list = append(list, l)
		}
		return list, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return list, nil
}

// setRPFilter sets net.ipv4.conf.<link>.rp_filter. It goes through rtnetlink because /proc/sys is read-only in the
// daemon's container.
func (r *rtnl) setRPFilter(index, value int) error {
	req := r.request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	inet := spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil)
	conf := inet.AddRtAttr(iflaInetConf|unix.NLA_F_NESTED, nil)
	conf.AddRtAttr(devconfRPFilter, nl.Uint32Attr(uint32(value)))
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// parseLink reads an RTM_NEWLINK message.
func parseLink(m []byte) (link, error) {
	if len(m) < ifinfomsgLen {
		return link{}, fmt.Errorf("link message of %d bytes", len(m))
	}
	info := nl.DeserializeIfInfomsg(m)
	l := link{index: int(info.Index), up: info.Flags&unix.IFF_UP != 0, rpFilter: -1}
	eachAttr(m[ifinfomsgLen:], func(typ uint16, v []byte) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(v)
		case unix.IFLA_ADDRESS:
			l.mac = slices.Clone(v)
		case unix.IFLA_MTU:
			if len(v) >= 4 {
				l.mtu = int(binary.NativeEndian.Uint32(v))
			}
		case unix.IFLA_LINKINFO:
			eachAttr(v, func(typ uint16, v []byte) {
				if typ == unix.IFLA_INFO_KIND {
					l.kind = unix.ByteSliceToString(v)
				}
			})
		case unix.IFLA_AF_SPEC:
			eachAttr(v, func(family uint16, v []byte) {
				if family != unix.AF_INET {
					return
				}
				eachAttr(v, func(typ uint16, v []byte) {
					if at := 4 * (devconfRPFilter - 1); typ == iflaInetConf && len(v) >= at+4 {
						l.rpFilter = int(int32(binary.NativeEndian.Uint32(v[at:])))
					}
				})
			})
		}
	})
	return l, nil
}

// eachAttr walks netlink attributes; a torn one ends the walk.
func eachAttr(b []byte, f func(typ uint16, value []byte)) {
	for len(b) >= attrHeaderLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeaderLen || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[attrHeaderLen:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

// byMAC returns the NICs by MAC. Where several links show the same one the oldest is the NIC.
func byMAC(links []link) map[string]link {
	nics := make(map[string]link)
	for _, l := range links {
		if !l.isNIC() {
			continue
		}
		if have, ok := nics[l.mac.String()]; !ok || l.index < have.index {
			nics[l.mac.String()] = l
		}
	}
	return nics
}

// dump repeats a dump that a concurrent change interrupted: what it returned may lack entries that were there all
// the time.
func dump[T any](f func() ([]T, error)) ([]T, error) {
	var err error
	for range maxDumpAttempts {
		var list []T
		if list, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return nil, fmt.Errorf("interrupted %d times: %w", maxDumpAttempts, err)
}
