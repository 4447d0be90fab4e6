package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// The measures: what is sent through the node, and what one unit of it is.
const (
	udpPacket = "UDP packet" // sent and received
	tcpRR     = "TCP_RR"     // a byte and a byte back, on one connection
	tcpCRR    = "TCP_CRR"    // a connection, a byte, a byte back, the end of the connection
)

var measures = []string{udpPacket, tcpRR, tcpCRR}

// flow is one kind of traffic between two namespaces.
type flow struct {
	// home is the namespace of the thread that drives both ends.
	home namespace
	// unit does so many of the measure's units and fails if anything of one is lost.
	unit func(n int) error
	fds  []int
}

func (f flow) close() {
	for _, fd := range f.fds {
		_ = unix.Close(fd)
	}
}

// cost returns the CPU time of a unit, in nanoseconds. One thread on one processor is both ends: the kernel forwards in
// the sender's context, so the thread's CPU time holds all of the way.
func (f flow) cost(units int) (float64, error) {
	var cost float64
	err := f.home.do(func() error {
		var allowed unix.CPUSet
		if err := unix.SchedGetaffinity(0, &allowed); err != nil {
			return err
		}
		var one unix.CPUSet
		one.Set(firstCPU(allowed))
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("pin the sender: %w", err)
		}
		// Neighbours, neighbour entries and caches.
		if err := f.unit(batch); err != nil {
			return err
		}
		before, err := threadTime()
		if err != nil {
			return err
		}
		if err := f.unit(units); err != nil {
			return err
		}
		after, err := threadTime()
		cost = float64(after-before) / float64(units)
		return err
	})
	return cost, err
}

// packetSize is the payload, in bytes: what counts is the cost of a packet, not of its bytes.
const packetSize = 16

// batch is how many packets are sent before they are received; it fits any socket's buffer.
const batch = 64

// newFlow opens what a measure needs: a server at one end and a client at the other.
func newFlow(measure string, client, server namespace, from, to netip.Addr) (flow, error) {
	switch measure {
	case udpPacket:
		return newUDP(client, server, from, to)
	case tcpRR:
		return newRR(client, server, from, to)
	default:
		return newCRR(client, server, from, to)
	}
}

// Ports of the measured flows.
const (
	clientPort = 4000
	serverPort = 4001
)

func newUDP(client, server namespace, from, to netip.Addr) (flow, error) {
	local, remote := netip.AddrPortFrom(from, clientPort), netip.AddrPortFrom(to, serverPort)
	in, err := open(client, unix.SOCK_DGRAM, local)
	if err != nil {
		return flow{}, err
	}
	f := flow{home: client, fds: []int{in}}
	out, err := open(server, unix.SOCK_DGRAM, remote)
	if err != nil {
		return f, err
	}
	f.fds = append(f.fds, out)
	if err := unix.Connect(in, sockaddr(remote)); err != nil {
		return f, err
	}
	if err := unix.Connect(out, sockaddr(local)); err != nil {
		return f, err
	}
	f.unit = func(n int) error {
		for ; n > 0; n -= batch {
			if err := datagrams(in, out, min(n, batch)); err != nil {
				return err
			}
		}
		return nil
	}
	return f, nil
}

// datagrams sends n packets and receives them.
func datagrams(from, to, n int) error {
	var packet, buf [packetSize]byte
	for range n {
		if _, err := unix.Write(from, packet[:]); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	for range n {
		// The socket's time-out is for packets that wait for a neighbour's address; the others are there already.
		if _, err := unix.Read(to, buf[:]); err != nil {
			return fmt.Errorf("a packet is lost: %w", err)
		}
	}
	return nil
}

func newRR(client, server namespace, from, to netip.Addr) (flow, error) {
	listener, err := listen(server, to)
	if err != nil {
		return flow{}, err
	}
	defer unix.Close(listener)
	f := flow{home: client}
	var in, out int
	err = client.do(func() (err error) {
		in, out, err = connect(from, to, listener)
		return err
	})
	if err != nil {
		return f, err
	}
	f.fds = []int{in, out}
	f.unit = func(n int) error {
		for range n {
			if err := roundTrip(in, out); err != nil {
				return err
			}
		}
		return nil
	}
	return f, nil
}

func newCRR(client, server namespace, from, to netip.Addr) (flow, error) {
	// As many connections as are made here in the minute that a closed one keeps its port.
	for _, ns := range []namespace{client, server} {
		if err := ns.sysctl(map[string]string{"ipv4/ip_local_port_range": "10240 65535"}); err != nil {
			return flow{}, err
		}
	}
	listener, err := listen(server, to)
	if err != nil {
		return flow{}, err
	}
	f := flow{home: client, fds: []int{listener}}
	f.unit = func(n int) error {
		for range n {
			in, out, err := connect(from, to, listener)
			if err != nil {
				return err
			}
			err = roundTrip(in, out)
			_, _ = unix.Close(in), unix.Close(out)
			if err != nil {
				return err
			}
		}
		return nil
	}
	return f, nil
}

// connect makes a connection and returns its two ends; the caller's thread is in the client's namespace.
func connect(from, to netip.Addr, listener int) (in, out int, err error) {
	if in, err = socket(unix.SOCK_STREAM, from); err != nil {
		return 0, 0, err
	}
	if err = unix.SetsockoptInt(in, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err == nil {
		err = unix.Bind(in, sockaddr(netip.AddrPortFrom(from, 0)))
	}
	if err == nil {
		err = unix.Connect(in, sockaddr(netip.AddrPortFrom(to, serverPort)))
	}
	if err == nil {
		out, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	if err != nil {
		_ = unix.Close(in)
		return 0, 0, fmt.Errorf("connect %s to %s: %w", from, to, err)
	}
	return in, out, nil
}

// roundTrip sends a byte there and one back.
func roundTrip(in, out int) error {
	var b [1]byte
	for _, way := range [2][2]int{{in, out}, {out, in}} {
		if _, err := unix.Write(way[0], b[:]); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if n, err := unix.Read(way[1], b[:]); err != nil || n != 1 {
			return fmt.Errorf("a byte is lost: %d, %w", n, err)
		}
	}
	return nil
}

func listen(server namespace, at netip.Addr) (int, error) {
	fd, err := open(server, unix.SOCK_STREAM, netip.AddrPortFrom(at, serverPort))
	if err != nil {
		return 0, err
	}
	if err := unix.Listen(fd, 16); err != nil {
		_ = unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// open makes a socket that is bound to an address, inside a namespace.
func open(ns namespace, kind int, local netip.AddrPort) (fd int, err error) {
	err = ns.do(func() error {
		if fd, err = socket(kind, local.Addr()); err != nil {
			return err
		}
		// The connections of another measure may still occupy the port.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, sockaddr(local)); err != nil {
			return fmt.Errorf("bind %s: %w", local, err)
		}
		return nil
	})
	return fd, err
}

// lossTimeout is how long a packet may be on its way before it counts as lost.
const lossTimeout = 3 * time.Second

// socket makes a socket of the address's family in the thread's namespace.
func socket(kind int, addr netip.Addr) (int, error) {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	timeout := unix.NsecToTimeval(lossTimeout.Nanoseconds())
	return fd, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func firstCPU(set unix.CPUSet) int {
	for cpu := range runtime.NumCPU() + 1024 {
		if set.IsSet(cpu) {
			return cpu
		}
	}
	return 0
}

func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano()), err
}
