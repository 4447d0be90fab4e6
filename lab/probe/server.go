package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxDatagram = 1 << 16
	// idle ends a connection on which nothing moves any more.
	idle = time.Minute
	// maxConns bounds the connections that a server serves at once.
	maxConns = 1024
)

// Server answers probes until it is closed.
type Server struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
}

// Serve opens TCP and UDP listeners on all addresses of the namespace of do, and serves them until ctx ends or the
// server is closed. When it returns, the server can be reached. The name must have no white space, and a port is a
// number, not 0 for any free one.
func Serve(ctx context.Context, name string, do Do, ports ...uint16) (*Server, error) {
	if name == "" || strings.ContainsAny(name, " \t\r\n") {
		return nil, fmt.Errorf("probe server needs a name without white space, not %q", name)
	}
	if slices.Contains(ports, 0) {
		return nil, fmt.Errorf("probe server %s: port 0", name)
	}
	var tcps []net.Listener
	var udps []*net.UDPConn
	err := do(func() error {
		for _, port := range ports {
			tcp, err := net.Listen("tcp", ":"+strconv.Itoa(int(port)))
			if err != nil {
				return err
			}
			tcps = append(tcps, tcp)
			udp, err := listenUDP(ctx, port)
			if err != nil {
				return err
			}
			udps = append(udps, udp)
		}
		return nil
	})
	closeAll := func() {
		for _, l := range tcps {
			_ = l.Close()
		}
		for _, c := range udps {
			_ = c.Close()
		}
	}
	if err != nil {
		closeAll()
		return nil, fmt.Errorf("probe server %s: %w", name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Server{name: name, cancel: cancel, done: make(chan struct{})}
	var serving sync.WaitGroup
	serving.Go(func() {
		<-ctx.Done()
		closeAll()
	})
	for i := range tcps {
		serving.Go(func() { s.serveTCP(ctx, tcps[i]) })
		serving.Go(func() { s.serveUDP(ctx, udps[i]) })
	}
	go func() {
		defer close(s.done)
		serving.Wait()
	}()
	return s, nil
}

// Close stops the server, ends its connections and waits until its ports are free.
func (s *Server) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// listenUDP opens a socket that tells which of its addresses a datagram was for.
func listenUDP(ctx context.Context, port uint16) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(network, _ string, raw syscallConn) error {
		return control(raw, func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
				return err
			}
			if network == "udp4" {
				return nil
			}
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		})
	}}
	conn, err := config.ListenPacket(ctx, "udp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// serveUDP answers from the address that was asked. Left to the kernel, the source would be that of the route back,
// which is another one on a host with several.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) {
	question := make([]byte, maxDatagram)
	info := make([]byte, 128)
	for {
		n, m, _, from, err := conn.ReadMsgUDPAddrPort(question, info)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !pause(ctx) {
				return
			}
			continue
		}
		answer := []byte(greeting(s.name, from.Addr(), n))
		if n > len(answer) {
			answer = append(answer, question[len(answer):n]...)
		}
		// An answer that cannot be sent is lost like any datagram; the client's deadline tells.
		_, _, _ = conn.WriteMsgUDPAddrPort(answer, replyFrom(info[:m]), from)
	}
}

// replyFrom turns the packet info of a datagram received into that of its answer: same local address, whatever
// interface the route takes.
func replyFrom(info []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(info)
	if err != nil {
		return nil
	}
	// A datagram for an IPv4 address of a socket of both families brings both kinds; sent back, the later one would
	// win, so only one is.
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			to := netip.AddrFrom16([16]byte(m.Data[:16]))
			if to.Is4In6() {
				return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: to.Unmap().As4()})
			}
			return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: to.As16()})
		}
	}
	return nil
}

func (s *Server) serveTCP(ctx context.Context, l net.Listener) {
	var serving sync.WaitGroup
	defer serving.Wait()
	slots := make(chan struct{}, maxConns)
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if !pause(ctx) {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return
		}
		serving.Go(func() {
			defer func() { <-slots }()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer conn.Close()
			// A broken connection is the client's finding, not the server's.
			_ = s.serveConn(deadlined{conn})
		})
	}
}

// pause lets a shortage (of descriptors, of memory) pass; it is false when the server is to end.
func pause(ctx context.Context) bool {
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Server) serveConn(conn deadlined) error {
	from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return err
	}
	if _, err := io.WriteString(conn, greeting(s.name, from.Addr(), -1)); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(conn, maxCommand))
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	body := io.MultiReader(io.LimitReader(in, int64(in.Buffered())), conn)
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch verb {
	case "echo":
		_, err = io.Copy(conn, body)
	case "discard":
		_, err = io.Copy(io.Discard, body)
	case "bulk":
		var size int64
		if size, err = strconv.ParseInt(arg, 10, 64); err != nil {
			return err
		}
		sum := crc32.New(castagnoli)
		n, copyErr := io.Copy(sum, io.LimitReader(body, size))
		if copyErr != nil {
			return copyErr
		}
		_, err = fmt.Fprintf(conn, "%d %08x\n", n, sum.Sum32())
	default:
		_, err = fmt.Fprintf(conn, "unknown command %q\n", verb)
	}
	return err
}

// maxCommand bounds what is read ahead of a client's command.
const maxCommand = 256

// deadlined is a connection whose every read and write must move within the idle time.
type deadlined struct{ net.Conn }

func (d deadlined) Read(b []byte) (int, error) {
	if err := d.SetReadDeadline(time.Now().Add(idle)); err != nil {
		return 0, err
	}
	return d.Conn.Read(b)
}

func (d deadlined) Write(b []byte) (int, error) {
	if err := d.SetWriteDeadline(time.Now().Add(idle)); err != nil {
		return 0, err
	}
	return d.Conn.Write(b)
}
