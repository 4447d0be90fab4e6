package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/deadline"
)

var order = binary.NativeEndian

const (
	vethInfoPeer = 1      // VETH_INFO_PEER of linux/veth.h
	attrTypeMask = 0x3fff // NLA_TYPE_MASK of linux/netlink.h
	skipStats    = 8      // RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h
)

// message is one rtnetlink request.
type message struct {
	what   string // for errors
	typ    uint16
	flags  uint16
	data   []byte       // everything behind the netlink header
	ignore []unix.Errno // answers that are as good as success
}

func newMessage(what string, typ, flags uint16) message {
	return message{what: what, typ: typ, flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | flags}
}

// ifinfo appends a struct ifinfomsg.
func (m *message) ifinfo(index int32, flags, change uint32) {
	m.data = append(m.data, unix.AF_UNSPEC, 0, 0, 0)
	m.data = order.AppendUint32(m.data, uint32(index))
	m.data = order.AppendUint32(m.data, flags)
	m.data = order.AppendUint32(m.data, change)
}

func (m *message) bytes(typ uint16, value []byte) {
	m.nested(typ, func() { m.data = append(m.data, value...) })
}

func (m *message) str(typ uint16, value string) { m.bytes(typ, append([]byte(value), 0)) }

func (m *message) u32(typ uint16, value uint32) {
	m.nested(typ, func() { m.data = order.AppendUint32(m.data, value) })
}

// nested appends an attribute whose value is whatever fill appends.
func (m *message) nested(typ uint16, fill func()) {
	start := len(m.data)
	m.data = order.AppendUint16(m.data, 0)
	m.data = order.AppendUint16(m.data, typ)
	fill()
	order.PutUint16(m.data[start:], uint16(len(m.data)-start))
	m.data = pad(m.data)
}

func pad(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// attributes walks the attributes of an answer and ends at the first that does not fit.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(order.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) {
				return
			}
			if !yield(order.Uint16(b[2:])&attrTypeMask, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// reply is the kernel's answer to one message: its verdict, and what it was asked for.
type reply struct {
	err     error
	payload []byte
}

// conn is an rtnetlink socket. It stays in the network namespace it was opened in.
type conn struct {
	fd      int
	seq     uint32
	observe func([]message)
}

// dialer opens sockets. Its observe, if set, sees every batch of messages before the kernel does.
type dialer struct{ observe func([]message) }

func (d dialer) open() (*conn, error) { return d.openProtocol(unix.NETLINK_ROUTE) }

func (d dialer) openProtocol(protocol int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	c := &conn{fd: fd, observe: d.observe}
	for _, option := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			c.close()
			return nil, os.NewSyscallError("netlink setsockopt", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		c.close()
		return nil, os.NewSyscallError("netlink bind", err)
	}
	return c, nil
}

func (c *conn) close() { _ = unix.Close(c.fd) }

// all sends the messages and fails if one of them does, with the first failure; the kernel goes on with the rest.
func (c *conn) all(ctx context.Context, messages []message) error {
	replies, err := c.send(ctx, messages)
	if err != nil {
		return err
	}
	for _, r := range replies {
		if r.err != nil {
			return r.err
		}
	}
	return nil
}

// send hands all messages to the kernel in one write and collects an answer to each. The kernel works on them before
// the write returns. The error is about the socket or ctx, not about a message.
func (c *conn) send(ctx context.Context, messages []message) ([]reply, error) {
	if len(messages) == 0 {
		return nil, nil
	}
	if err := c.setTimeout(ctx); err != nil {
		return nil, err
	}
	first := c.seq + 1
	var out []byte
	for _, m := range messages {
		c.seq++
		out = order.AppendUint32(out, uint32(unix.SizeofNlMsghdr+len(m.data)))
		out = order.AppendUint16(out, m.typ)
		out = order.AppendUint16(out, m.flags)
		out = order.AppendUint32(out, c.seq)
		out = order.AppendUint32(out, 0)
		out = pad(append(out, m.data...))
	}
	// Nothing comes between this and the write but what a test wants: the process may be stopped anywhere.
	if err := deadline.Err(ctx); err != nil {
		return nil, fmt.Errorf("%s: %w", messages[0].what, err)
	}
	if c.observe != nil {
		c.observe(messages)
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("netlink send", err)
	}
	replies := make([]reply, len(messages))
	buf := make([]byte, 16<<10)
	for missing := len(messages); missing > 0; {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil, fmt.Errorf("%s: no answer from the kernel: %w", messages[0].what, context.DeadlineExceeded)
		case err != nil:
			return nil, os.NewSyscallError("netlink receive", err)
		}
		missing -= collect(buf[:n], first, messages, replies)
	}
	return replies, nil
}

// setTimeout bounds the wait for answers by ctx's deadline.
func (c *conn) setTimeout(ctx context.Context) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		return nil
	}
	tv := unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
	return os.NewSyscallError("netlink setsockopt", unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
}

// collect files the answers in one datagram under the messages they answer, and returns how many are final.
func collect(b []byte, first uint32, messages []message, replies []reply) int {
	final := 0
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(order.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return final
		}
		typ, flags, i := order.Uint16(b[4:]), order.Uint16(b[6:]), order.Uint32(b[8:])-first
		payload := b[unix.SizeofNlMsghdr:size]
		b = b[min(len(b), (size+3)&^3):]
		if i >= uint32(len(messages)) {
			continue // an answer to an earlier batch that was given up
		}
		if typ != unix.NLMSG_ERROR {
			replies[i].payload = append([]byte(nil), payload...)
			continue
		}
		replies[i].err = verdict(messages[i], flags, payload)
		final++
	}
	return final
}

// verdict reads an NLMSG_ERROR: nil, or the kernel's error with its explanation where it gives one.
func verdict(m message, flags uint16, payload []byte) error {
	if len(payload) < 4 {
		return fmt.Errorf("%s: short answer from the kernel", m.what)
	}
	errno := unix.Errno(-int32(order.Uint32(payload)))
	if errno == 0 {
		return nil
	}
	for _, ignored := range m.ignore {
		if errno == ignored {
			return nil
		}
	}
	const header = 4 + unix.SizeofNlMsghdr
	if flags&unix.NLM_F_ACK_TLVS != 0 && len(payload) > header {
		for typ, value := range attributes(payload[header:]) {
			if typ == unix.NLMSGERR_ATTR_MSG && len(value) > 1 {
				return fmt.Errorf("%s: %w (%s)", m.what, errno, value[:len(value)-1])
			}
		}
	}
	return fmt.Errorf("%s: %w", m.what, errno)
}
