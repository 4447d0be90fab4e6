package probe

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Time-outs of one try, unless Timeout says otherwise. A lab's round trip takes microseconds; on a machine that has
// too much to do it takes longer, and a lost SYN is sent again after a second.
const (
	udpTimeout = 3 * time.Second
	tcpTimeout = 20 * time.Second
)

// Option changes how a client asks.
type Option func(*options)

type options struct {
	timeout time.Duration
	retries int
	from    netip.Addr
	df      bool
}

// Timeout bounds one try.
func Timeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// Retries asks up to n times more after a try that failed. Without it a client asks once: a check of a network
// should see a lost packet.
func Retries(n int) Option { return func(o *options) { o.retries = n } }

// From binds the client to one of its host's addresses.
func From(a netip.Addr) Option { return func(o *options) { o.from = a } }

// DontFragment refuses, or has lost, UDP datagrams that do not fit in one packet all the way.
func DontFragment() Option { return func(o *options) { o.df = true } }

// UDP sends one datagram of a size in bytes to a server and checks its answer.
func UDP(ctx context.Context, do Do, target netip.AddrPort, size int, opts ...Option) (Answer, error) {
	return ask(ctx, do, "udp", target, size, udpTimeout, exchangeUDP, opts)
}

// TCP connects to a server, sends it so many bytes and checks that it got them.
func TCP(ctx context.Context, do Do, target netip.AddrPort, size int, opts ...Option) (Answer, error) {
	return ask(ctx, do, "tcp", target, size, tcpTimeout, exchangeTCP, opts)
}

type exchange func(conn net.Conn, size int, started time.Time) (Answer, error)

func ask(ctx context.Context, do Do, network string, target netip.AddrPort, size int, timeout time.Duration, talk exchange, opts []Option) (Answer, error) {
	o := options{timeout: timeout}
	for _, opt := range opts {
		opt(&o)
	}
	var errs []error
	for range o.retries + 1 {
		answer, err := try(ctx, do, network, target, size, talk, o)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return Answer{}, fmt.Errorf("%s to %s: %w", network, target, errors.Join(errs...))
}

func try(ctx context.Context, do Do, network string, target netip.AddrPort, size int, talk exchange, o options) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	dialer := net.Dialer{Control: func(_, _ string, raw syscallConn) error { return o.prepare(raw, target.Addr()) }}
	if o.from.IsValid() {
		if network == "udp" {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.from, 0))
		} else {
			dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.from, 0))
		}
	}
	started := time.Now()
	var conn net.Conn
	err := do(func() error {
		var err error
		conn, err = dialer.DialContext(ctx, network, target.String())
		return err
	})
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	return talk(conn, size, started)
}

func exchangeUDP(conn net.Conn, size int, started time.Time) (Answer, error) {
	question := make([]byte, size)
	pattern(question, 0)
	if _, err := conn.Write(question); err != nil {
		return Answer{}, err
	}
	buffer := make([]byte, maxDatagram)
	n, err := conn.Read(buffer)
	if err != nil {
		return Answer{}, err
	}
	took := time.Since(started)
	line, rest, _ := bytes.Cut(buffer[:n], []byte("\n"))
	server, source, got, err := parseGreeting(string(line))
	if err != nil {
		return Answer{}, err
	}
	if got != size {
		return Answer{}, fmt.Errorf("%s got %d bytes of %d", server, got, size)
	}
	if want := question[min(size, len(line)+1):]; !bytes.Equal(rest, want) {
		return Answer{}, fmt.Errorf("%s sent back %d bytes that differ from what was sent", server, len(rest))
	}
	return Answer{Server: server, Source: source, RTT: took, Bytes: size}, nil
}

func exchangeTCP(conn net.Conn, size int, started time.Time) (Answer, error) {
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil {
		return Answer{}, fmt.Errorf("read the server's name: %w", err)
	}
	took := time.Since(started)
	server, source, _, err := parseGreeting(line)
	if err != nil {
		return Answer{}, err
	}
	sum := crc32.New(castagnoli)
	if err := sendBulk(io.MultiWriter(conn, sum), conn, size); err != nil {
		return Answer{}, fmt.Errorf("send %d bytes: %w", size, err)
	}
	receipt, err := in.ReadString('\n')
	if err != nil {
		return Answer{}, fmt.Errorf("read the receipt for %d bytes: %w", size, err)
	}
	if want := fmt.Sprintf("%d %08x", size, sum.Sum32()); strings.TrimSpace(receipt) != want {
		return Answer{}, fmt.Errorf("%s got %q instead of %q", server, strings.TrimSpace(receipt), want)
	}
	return Answer{Server: server, Source: source, RTT: took, Bytes: size}, nil
}

// sendBulk writes the command to conn and the bytes to out.
func sendBulk(out, conn io.Writer, size int) error {
	if _, err := io.WriteString(conn, "bulk "+strconv.Itoa(size)+"\n"); err != nil {
		return err
	}
	chunk := make([]byte, 64<<10)
	for sent := 0; sent < size; {
		part := chunk[:min(len(chunk), size-sent)]
		pattern(part, sent)
		if _, err := out.Write(part); err != nil {
			return err
		}
		sent += len(part)
	}
	return nil
}

type syscallConn = syscall.RawConn

func (o options) prepare(raw syscallConn, target netip.Addr) error {
	if !o.df {
		return nil
	}
	return control(raw, func(fd int) error {
		if target.Is4() {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
	})
}

func control(raw syscallConn, set func(fd int) error) error {
	var err error
	if ctrlErr := raw.Control(func(fd uintptr) { err = set(int(fd)) }); ctrlErr != nil {
		return ctrlErr
	}
	return err
}
