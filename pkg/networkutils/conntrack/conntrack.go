// Package conntrack makes the node's connection tracking forget an address whose pod is gone. An entry lives longer than
// the address's cooldown (a SYN that nobody answered, 120 s; an established TCP connection, days), and while a client of
// a Service keeps trying, the entry takes its packets to whoever has the address by then, past kube-proxy's choice.
//
// The table is handed out once for any number of addresses, and looked at here. The kernel can filter by an address
// (CTA_FILTER), but only by one of the four that an entry has at a time: four walks through all buckets cost more than one
// that copies 10,000 entries (49 and 20 ms of CPU), and still at 40,000. Besides, kernels up to 6.18 at least compare IPv6
// addresses the wrong way round there and hand out exactly the entries that were not asked for.
//
// Entries are deleted by tuple, zone and id: one that has taken the place of another one meanwhile stays.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// deleteBatch is how many deletions go to the kernel in one write. Their answers have to fit the socket's buffer.
const deleteBatch = 128

// Forget deletes every entry that has one of the addresses as source or destination, in the direction in which the
// connection was opened or in that of its replies, and returns how many there were. What fails for one entry keeps none
// of the others.
func Forget(ctx context.Context, addrs []netip.Addr) (int, error) {
	c, err := open(ctx)
	if err != nil {
		return 0, err
	}
	defer c.close()
	var found []entry
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		of := newWanted(addrs, family)
		if len(of.addrs) == 0 {
			continue
		}
		err := c.dump(ctx, family, func(attrs []byte) {
			if of.match(attrs) {
				found = append(found, newEntry(family, attrs))
			}
		})
		if err != nil {
			return 0, fmt.Errorf("list connections: %w", err)
		}
	}
	return c.delete(ctx, found)
}

// wanted are addresses of one family.
type wanted struct {
	src, dst uint16 // attributes of a tuple
	addrs    map[string]bool
}

func newWanted(addrs []netip.Addr, family uint8) wanted {
	w := wanted{src: ipv4Src, dst: ipv4Dst, addrs: map[string]bool{}}
	if family == unix.AF_INET6 {
		w.src, w.dst = ipv6Src, ipv6Dst
	}
	for _, a := range addrs {
		if a = a.Unmap(); a.IsValid() && a.Is4() == (family == unix.AF_INET) {
			w.addrs[string(a.AsSlice())] = true
		}
	}
	return w
}

// match tells whether an entry has one of the addresses.
func (w wanted) match(attrs []byte) bool {
	for _, tuple := range []uint16{attrOrig, attrReply} {
		ip := find(find(attrs, tuple), tupleIP)
		if w.addrs[string(find(ip, w.src))] || w.addrs[string(find(ip, w.dst))] {
			return true
		}
	}
	return false
}

// entry is what it takes to delete a connection: attributes as the kernel wrote them.
type entry struct {
	family         uint8
	orig, zone, id string
}

func newEntry(family uint8, attrs []byte) entry {
	return entry{family, string(find(attrs, attrOrig)), string(find(attrs, attrZone)), string(find(attrs, attrID))}
}

// dump passes the attributes of each entry of a family to f.
func (c *conn) dump(ctx context.Context, family uint8, f func(attrs []byte)) error {
	all := func(b []byte) []byte { return b }
	if err := c.send(c.request(nil, msgGet, unix.NLM_F_DUMP, family, all)); err != nil {
		return err
	}
	return c.receive(ctx, func(typ uint16, payload []byte) (bool, error) {
		switch {
		case typ == unix.NLMSG_DONE || typ == unix.NLMSG_ERROR:
			return true, verdict(payload)
		case len(payload) >= sizeofNfgenmsg:
			f(payload[sizeofNfgenmsg:])
		}
		return false, nil
	})
}

// delete deletes the entries. One that ended by itself is not counted, and no error.
func (c *conn) delete(ctx context.Context, entries []entry) (deleted int, err error) {
	var failed error
	for batch := range slices.Chunk(entries, deleteBatch) {
		var b []byte
		for _, e := range batch {
			b = c.request(b, msgDelete, unix.NLM_F_ACK, e.family, func(b []byte) []byte {
				b = bytesAttr(b, attrOrig|unix.NLA_F_NESTED, []byte(e.orig))
				if e.zone != "" {
					b = bytesAttr(b, attrZone, []byte(e.zone))
				}
				return bytesAttr(b, attrID, []byte(e.id))
			})
		}
		if err := c.send(b); err != nil {
			return deleted, err
		}
		missing := len(batch)
		err := c.receive(ctx, func(typ uint16, payload []byte) (bool, error) {
			if typ != unix.NLMSG_ERROR {
				return false, nil
			}
			missing--
			switch err := verdict(payload); {
			case err == nil:
				deleted++
			case !errors.Is(err, unix.ENOENT):
				failed = err
			}
			return missing == 0, nil
		})
		if err != nil {
			return deleted, fmt.Errorf("delete connections: %w", err)
		}
	}
	if failed != nil {
		return deleted, fmt.Errorf("delete connections: %w", failed)
	}
	return deleted, nil
}
