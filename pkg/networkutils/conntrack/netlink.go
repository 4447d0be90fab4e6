package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Attributes of linux/netfilter/nfnetlink_conntrack.h.
const (
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE

	attrOrig, attrReply, attrID, attrZone = 1, 2, 12, 18 // CTA_TUPLE_ORIG, …
	attrStatus                            = 3            // CTA_STATUS
	seenReply                             = 1 << 1       // IPS_SEEN_REPLY
	tupleIP                               = 1            // CTA_TUPLE_IP
	ipv4Src, ipv4Dst, ipv6Src, ipv6Dst    = 1, 2, 3, 4   // CTA_IP_V4_SRC, …

	sizeofNfgenmsg = 4
	attrTypeMask   = 0x3fff // NLA_TYPE_MASK
)

var order = binary.NativeEndian

// conn is a netfilter netlink socket of the network namespace it was opened in.
type conn struct {
	fd  int
	seq uint32
	buf []byte
}

// open gives the socket until ctx's deadline for every answer.
func open(ctx context.Context) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	c := &conn{fd: fd, buf: make([]byte, 64<<10)}
	err = os.NewSyscallError("netlink bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err == nil {
		err = os.NewSyscallError("netlink setsockopt", unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1))
	}
	if deadline, ok := ctx.Deadline(); ok && err == nil {
		tv := unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
		err = os.NewSyscallError("netlink setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *conn) close() { _ = unix.Close(c.fd) }

// request appends a message with the attributes that fill appends.
func (c *conn) request(b []byte, typ, flags uint16, family uint8, fill func([]byte) []byte) []byte {
	c.seq++
	start := len(b)
	b = order.AppendUint32(b, 0)
	b = order.AppendUint16(b, typ)
	b = order.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = order.AppendUint32(b, c.seq)
	b = order.AppendUint32(b, 0)
	b = fill(append(b, family, 0, 0, 0))
	order.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

func (c *conn) send(b []byte) error {
	return os.NewSyscallError("netlink send", unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

// receive passes the messages of one datagram to f until f has seen the last one it wants, or an error.
func (c *conn) receive(ctx context.Context, f func(typ uint16, payload []byte) (last bool, err error)) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return fmt.Errorf("no answer from the kernel: %w", context.DeadlineExceeded)
		case err != nil:
			return os.NewSyscallError("netlink receive", err)
		}
		for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(order.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("malformed answer from the kernel")
			}
			last, err := f(order.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size])
			if last || err != nil {
				return err
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// verdict reads an NLMSG_ERROR or the end of a dump.
func verdict(payload []byte) error {
	if len(payload) < 4 {
		return nil
	}
	if errno := unix.Errno(-int32(order.Uint32(payload))); errno != 0 {
		return errno
	}
	return nil
}

// attr appends an attribute; its value is what fill appends.
func attr(b []byte, typ uint16, fill func([]byte) []byte) []byte {
	start := len(b)
	b = order.AppendUint16(b, 0)
	b = order.AppendUint16(b, typ)
	b = fill(b)
	order.PutUint16(b[start:], uint16(len(b)-start))
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func bytesAttr(b []byte, typ uint16, value []byte) []byte {
	return attr(b, typ, func(b []byte) []byte { return append(b, value...) })
}

// find returns the value of the first attribute of a type.
func find(b []byte, typ uint16) []byte {
	for len(b) >= unix.SizeofNlAttr {
		size := int(order.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if order.Uint16(b[2:])&attrTypeMask == typ {
			return b[unix.SizeofNlAttr:size]
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return nil
}
