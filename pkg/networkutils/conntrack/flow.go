package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flow is a connection as its first packet was, and as its replies are.
type Flow struct {
	// Source and Destination are those of the packet that opened it, before any translation.
	Source, Destination netip.Addr
	// Peer is whom the packets really go to (a Service's endpoint), SeenAs the address that the peer sees.
	Peer, SeenAs netip.Addr
	// Answered says that there was a packet in the other direction.
	Answered bool
}

// ForgetFlows deletes the IPv4 connections for which stale is true, at most limit of them, and returns how many there
// were.
func ForgetFlows(ctx context.Context, limit int, stale func(Flow) bool) (int, error) {
	c, err := open(ctx)
	if err != nil {
		return 0, err
	}
	defer c.close()
	var found []entry
	err = c.dump(ctx, unix.AF_INET, func(attrs []byte) {
		if f, ok := flowOf(attrs); ok && len(found) < limit && stale(f) {
			found = append(found, newEntry(unix.AF_INET, attrs))
		}
	})
	if err != nil {
		return 0, fmt.Errorf("list connections: %w", err)
	}
	return c.delete(ctx, found)
}

func flowOf(attrs []byte) (Flow, bool) {
	orig, reply := find(find(attrs, attrOrig), tupleIP), find(find(attrs, attrReply), tupleIP)
	var f Flow
	ok := true
	for _, x := range []struct {
		to  *netip.Addr
		raw []byte
	}{
		{&f.Source, find(orig, ipv4Src)}, {&f.Destination, find(orig, ipv4Dst)},
		{&f.Peer, find(reply, ipv4Src)}, {&f.SeenAs, find(reply, ipv4Dst)},
	} {
		a, valid := netip.AddrFromSlice(x.raw)
		*x.to, ok = a, ok && valid
	}
	status := find(attrs, attrStatus)
	if len(status) != 4 {
		return f, false
	}
	f.Answered = binary.BigEndian.Uint32(status)&seenReply != 0
	return f, ok
}
