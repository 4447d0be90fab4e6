package hostnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// announceBurst addresses are announced at once, and the next ones after announcePause: what a node with thousands of
	// addresses says after it was wired must not flood its neighbours.
	announceBurst = 32
	announcePause = 20 * time.Millisecond
	// maxAnnounced is the size of the largest block that is announced: a /28. Of an IPv6 prefix no neighbour knows more
	// than the addresses of a few pods, and nobody can tell which.
	maxAnnounced = 16
)

// Announce tells the neighbours of an ENI, by its MAC, that addresses are on it: by gratuitous ARP and unsolicited
// neighbour advertisements. Who still has an entry for an address from where it was before sends there otherwise, until the
// entry is verified. Nobody learns an address that he has not asked for. It needs CAP_NET_RAW; without it the error is
// unix.EPERM, and neighbours learn in their own time.
func (h *Host) Announce(ctx context.Context, mac net.HardwareAddr, blocks []netip.Prefix) error {
	links, err := h.rtnl.links()
	if err != nil {
		return err
	}
	l, ok := byMAC(links)[mac.String()]
	if !ok {
		return fmt.Errorf("announce addresses: %w: %s", ErrNoLink, mac)
	}
	fd, err := h.packetSocket()
	if err != nil {
		return fmt.Errorf("announce addresses: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	to := &unix.SockaddrLinklayer{Ifindex: l.index}
	for i, a := range announced(blocks) {
		if i > 0 && i%announceBurst == 0 {
			timer := h.clock.NewTimer(announcePause)
			select {
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			case <-timer.Chan():
			}
		}
		if err := unix.Sendto(fd, announcement(mac, a), 0, to); err != nil {
			return fmt.Errorf("announce %s on %s: %w", a, l.name, err)
		}
	}
	return nil
}

// announced lists the addresses of blocks that are small enough.
func announced(blocks []netip.Prefix) []netip.Addr {
	var all []netip.Addr
	for _, p := range blocks {
		if host := p.Addr().BitLen() - p.Bits(); host > 0 && 1<<min(host, 30) > maxAnnounced {
			continue
		}
		for a := p.Masked().Addr(); p.Contains(a); a = a.Next() {
			all = append(all, a)
		}
	}
	return all
}

// packetSocket opens a socket that sends whole frames and receives none, in the Host's network namespace.
func (h *Host) packetSocket() (int, error) {
	open := func() (int, error) {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return fd, os.NewSyscallError("packet socket", err)
	}
	if h.netns == 0 {
		return open()
	}
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var r result
		if r.err = os.NewSyscallError("setns", unix.Setns(h.netns, unix.CLONE_NEWNET)); r.err == nil {
			r.fd, r.err = open()
		}
		done <- r
	}()
	r := <-done
	return r.fd, r.err
}

// announcement is the frame that says that an address is at a MAC.
func announcement(mac net.HardwareAddr, a netip.Addr) []byte {
	if a.Is4() {
		return gratuitousARP(mac, a)
	}
	return unsolicitedNA(mac, a)
}

// gratuitousARP is an ARP announcement (RFC 5227): a request for the address by its owner.
func gratuitousARP(mac net.HardwareAddr, a netip.Addr) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = append(b, 0, 1, 0x08, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request
	b = append(append(b, mac...), a.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), a.AsSlice()...)
}

// unsolicitedNA is a neighbour advertisement to all nodes (RFC 4861) that overrides what they have.
func unsolicitedNA(mac net.HardwareAddr, a netip.Addr) []byte {
	const (
		typ      = 136
		override = 0x20
		hopLimit = 255
	)
	allNodes := netip.MustParseAddr("ff02::1").AsSlice()
	icmp := append([]byte{typ, 0, 0, 0, override, 0, 0, 0}, a.AsSlice()...)
	icmp = append(append(icmp, 2, 1), mac...) // option: target link-layer address, in units of 8 bytes
	pseudo := append(append([]byte(nil), a.AsSlice()...), allNodes...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(icmp)))
	pseudo = append(append(pseudo, 0, 0, 0, unix.IPPROTO_ICMPV6), icmp...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(pseudo))

	b := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(icmp)))
	b = append(append(b, unix.IPPROTO_ICMPV6, hopLimit), a.AsSlice()...)
	return append(append(b, allNodes...), icmp...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
