package audit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/networkutils/names"
)

// dumpTries bounds repetitions of a dump that the kernel marks as interrupted: links come and go while pods do.
const dumpTries = 10

// Links lists the host's links.
func Links(ctx context.Context) ([]Link, error) {
	links, err := dump(ctx, netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make([]Link, 0, len(links))
	for _, l := range links {
		out = append(out, Link{l.Attrs().Name, l.Attrs().HardwareAddr.String()})
	}
	return out, nil
}

// Rebuild returns an allocation for each pod that the kernel has a route to. Their sandboxes are not known, so no DEL
// finds them: what they do is keep their addresses from being handed out while their pods live. An Audit lets go of
// them when the pods are gone.
func Rebuild(ctx context.Context, now time.Time) ([]checkpoint.Allocation, error) {
	routes, err := dump(ctx, func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL,
			&netlink.Route{Table: names.TablePods, Type: unix.RTN_UNICAST}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return nil, fmt.Errorf("list pod routes: %w", err)
	}
	links, err := dump(ctx, netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	nameOf := make(map[int]string, len(links))
	for _, l := range links {
		nameOf[l.Attrs().Index] = l.Attrs().Name
	}
	var out []checkpoint.Allocation
	for _, r := range routes {
		name := nameOf[r.LinkIndex]
		if r.Dst == nil || name == "" {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		addr = addr.Unmap()
		if ones, bits := r.Dst.Mask.Size(); !ok || ones != bits {
			continue
		}
		out = append(out, checkpoint.Allocation{
			NetworkName: names.NetworkName, ContainerID: rebuiltPrefix + name, IfName: addr.String(), Address: addr,
			Time: now, Interfaces: 1,
		})
	}
	slices.SortFunc(out, func(x, y checkpoint.Allocation) int { return x.Address.Compare(y.Address) })
	return out, nil
}

// dump repeats a dump that was interrupted by a change: it may lack what was there all the time.
func dump[T any](ctx context.Context, list func() ([]T, error)) ([]T, error) {
	for range dumpTries {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("interrupted %d times: %w", dumpTries, netlink.ErrDumpInterrupted)
}
