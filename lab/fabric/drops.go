package fabric

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Drop counts packets of one sender to one destination that the fabric dropped for one cause.
type Drop struct {
	Cause Cause
	// ENI and Instance sent the packets; empty if they came from outside of the VPCs.
	ENI, Instance string
	// Source and Destination are zero in the one entry per cause, if any, that sums up what exceeded the number
	// of senders that are told apart.
	Source, Destination netip.Addr
	Packets, Bytes      uint64
}

// Drops lists what has been dropped since the start or the last ResetDrops, by cause, ENI, source and destination.
func (f *Fabric) Drops() ([]Drop, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vpc == nil {
		return nil, errClosed
	}
	totals, err := f.totals(f.nft.GetNamedObjects)
	if err != nil {
		return nil, err
	}
	var all []Drop
	for _, c := range causes {
		var drops []Drop
		for _, v6 := range []bool{false, true} {
			if v6 && !c.v6 || !v6 && !c.v4 {
				continue
			}
			elements, err := f.nft.GetSetElements(f.rules.setNamed(detailSet(c.cause, v6)))
			if err != nil {
				return nil, fmt.Errorf("read drops by %s: %w", c.cause, err)
			}
			for _, e := range elements {
				if d, ok := f.dropOf(c.cause, e); ok {
					drops = append(drops, d)
				}
			}
		}
		rest := Drop{Cause: c.cause, Packets: totals[c.cause].Packets, Bytes: totals[c.cause].Bytes}
		for _, d := range drops {
			// Packets that came between the two readings are in the second only.
			rest.Packets -= min(rest.Packets, d.Packets)
			rest.Bytes -= min(rest.Bytes, d.Bytes)
		}
		if rest.Packets > 0 {
			drops = append(drops, rest)
		}
		slices.SortFunc(drops, compareDrop)
		all = append(all, drops...)
	}
	return all, nil
}

// ResetDrops starts counting anew.
func (f *Fabric) ResetDrops() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.vpc == nil {
		return errClosed
	}
	for _, c := range causes {
		if c.v4 {
			f.nft.FlushSet(f.rules.setNamed(detailSet(c.cause, false)))
		}
		if c.v6 {
			f.nft.FlushSet(f.rules.setNamed(detailSet(c.cause, true)))
		}
	}
	if err := f.nft.Flush(); err != nil {
		return fmt.Errorf("reset drops: %w", err)
	}
	if _, err := f.totals(f.nft.ResetNamedObjects); err != nil {
		return err
	}
	// Links that are gone were kept for the drops that named them.
	clear(f.links)
	for id, p := range f.ports {
		f.links[p.name] = owner{eni: id, instance: p.spec.instance}
	}
	return nil
}

// totals reads the counter of each cause.
func (f *Fabric) totals(read func(*nftables.Table) ([]nftables.Obj, error)) (map[Cause]expr.Counter, error) {
	objects, err := read(f.rules.table)
	if err != nil {
		return nil, fmt.Errorf("read drop counters: %w", err)
	}
	totals := map[Cause]expr.Counter{}
	for _, o := range objects {
		if named, ok := o.(*nftables.NamedObj); ok {
			if counter, ok := named.Obj.(*expr.Counter); ok {
				totals[Cause(named.Name)] = *counter
			}
		}
	}
	return totals, nil
}

// dropOf reads an element of a detail set: link name, source and destination, and a counter.
func (f *Fabric) dropOf(c Cause, e nftables.SetElement) (Drop, bool) {
	if e.Counter == nil || len(e.Key) < unix.IFNAMSIZ {
		return Drop{}, false
	}
	link, addrs := e.Key[:unix.IFNAMSIZ], e.Key[unix.IFNAMSIZ:]
	from, ok1 := netip.AddrFromSlice(addrs[:len(addrs)/2])
	to, ok2 := netip.AddrFromSlice(addrs[len(addrs)/2:])
	o := f.links[strings.TrimRight(string(link), "\x00")]
	return Drop{Cause: c, ENI: o.eni, Instance: o.instance, Source: from, Destination: to,
		Packets: e.Counter.Packets, Bytes: e.Counter.Bytes}, ok1 && ok2
}

func compareDrop(a, b Drop) int {
	return cmp.Or(cmp.Compare(a.ENI, b.ENI), a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
}
