package hostnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// Repair is what a Keeper put right.
type Repair struct {
	Changes map[Kind]int
	By      []string // see Report
}

// keeper looks after what the plugin has made of pods: their routes, and the host ends of their veths. It learns from
// the kernel's events how each is wired, and puts back what is taken away from a pod that lives.
type keeper struct {
	h    *Host
	pods Pods

	mu     sync.Mutex
	memory podMemory
	dirty  podDirt
}

// podDirt is what may have been changed.
type podDirt struct {
	all   bool
	addrs map[netip.Addr]bool
	links map[int]bool
	by    map[string]bool
}

func (d *podDirt) any() bool { return d.all || len(d.addrs)+len(d.links) > 0 }

// KeepPods repairs what pods have on the host until the context ends, and tells what it did. It returns an error when it
// can no longer hear the kernel.
func (h *Host) KeepPods(ctx context.Context, pods Pods, repaired func(Repair)) error {
	k := &keeper{h: h, pods: pods, memory: newPodMemory()}
	sub, err := h.subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_NETCONF)
	if err != nil {
		return err
	}
	defer sub.Close()
	if err := k.learn(); err != nil { // after the subscription: nothing is missed
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	wake := make(chan struct{}, 1)
	group.Go(func() error { return k.listen(ctx, sub, wake) })
	group.Go(func() error {
		poll := h.clock.NewTicker(pollPeriod)
		defer poll.Stop()
		var pace Pace
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-poll.Chan():
				k.doubtAll()
			case <-wake:
				if !h.fold(ctx) || !h.until(ctx, pace.Next()) {
					return nil
				}
			}
			r, err := k.repair(ctx)
			if err != nil && ctx.Err() == nil {
				h.log.Warn("what pods have on the host is not as it should be", "error", err)
				k.doubtAll()
				select {
				case wake <- struct{}{}:
				default:
				}
			}
			pace.Did(h.clock.Now(), len(r.Changes) > 0 || err != nil)
			if len(r.Changes) > 0 {
				repaired(r)
			}
		}
	})
	return group.Wait()
}

// learn takes the present state for the right one.
func (k *keeper) learn() error {
	links, err := k.h.rtnl.links()
	if err != nil {
		return err
	}
	var routes []route
	for _, f := range families {
		part, err := k.h.routesOf(f, names.TablePods, 0)
		if err != nil {
			return err
		}
		routes = append(routes, part...)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range links {
		k.memory.sawLink(l)
	}
	for _, r := range routes {
		if r.isPodRoute() {
			k.memory.sawRoute(r)
		}
	}
	return nil
}

// listen keeps the memory and notes what is to be looked at, until the context ends.
func (k *keeper) listen(ctx context.Context, s *nl.NetlinkSocket, wake chan<- struct{}) error {
	defer context.AfterFunc(ctx, s.Close)() // ends Receive
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			if err := k.learn(); err != nil {
				return err
			}
			k.doubtAll()
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("receive netlink events: %w", err)
		}
		k.mu.Lock()
		for _, m := range msgs {
			k.heard(m)
		}
		dirty := k.dirty.any()
		k.mu.Unlock()
		if dirty {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
	}
}

// heard takes in one event. The caller holds the mutex.
func (k *keeper) heard(m syscall.NetlinkMessage) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK:
		if l, err := parseLink(m.Data); err == nil && k.memory.sawLink(l) {
			k.doubtLink(l.index, m.Header.Pid)
		}
	case unix.RTM_DELLINK:
		if l, err := parseLink(m.Data); err == nil {
			k.memory.linkGone(l.index)
		}
	case unix.RTM_NEWNETCONF:
		if len(m.Data) < netconfmsgLen {
			return
		}
		index := int(attr32(m.Data[netconfmsgLen:], netconfaIfindex))
		if _, ours := k.memory.wired[index]; ours {
			k.doubtLink(index, m.Header.Pid)
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, ok := routeOfMessage(m.Data)
		if !ok || !r.dst.IsSingleIP() || r.table != names.TablePods && r.table != names.TableMain {
			return
		}
		if m.Header.Type == unix.RTM_NEWROUTE && r.isPodRoute() {
			k.memory.sawRoute(r)
			return
		}
		link, known := k.memory.linkOf[r.dst.Addr()]
		if !known || m.Header.Type == unix.RTM_NEWROUTE && r.link == link {
			return
		}
		if k.dirty.addrs == nil {
			k.dirty.addrs = map[netip.Addr]bool{}
		}
		k.dirty.addrs[r.dst.Addr()] = true
		k.blame(m.Header.Pid)
	}
}

func (k *keeper) doubtAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dirty.all = true
}

func (k *keeper) doubtLink(index int, port uint32) {
	if k.dirty.links == nil {
		k.dirty.links = map[int]bool{}
	}
	k.dirty.links[index] = true
	k.blame(port)
}

func (k *keeper) blame(port uint32) {
	by := suspect(port)
	if by == "" || len(k.dirty.by) >= maxSuspects {
		return
	}
	if k.dirty.by == nil {
		k.dirty.by = map[string]bool{}
	}
	k.dirty.by[by] = true
}

// repair looks at what is dirty, and puts it right.
func (k *keeper) repair(ctx context.Context) (Repair, error) {
	k.mu.Lock()
	dirt := k.dirty
	k.dirty = podDirt{}
	k.mu.Unlock()
	done := Repair{Changes: map[Kind]int{}, By: slices.Sorted(maps.Keys(dirt.by))}
	if !dirt.any() {
		return done, nil
	}
	pods := k.pods.Pods()
	var errs []error
	count := func(kind Kind, n int, err error) {
		if n > 0 {
			done.Changes[kind] += n
		}
		if err != nil {
			errs = append(errs, err)
		}
	}

	byName := map[string]int{}
	k.mu.Lock()
	k.memory.forgetPods(pods)
	if dirt.all {
		for _, l := range k.memory.seen {
			byName[l.name] = l.index
		}
	}
	// The routes of a link that was down are gone without an event.
	wanted := make(map[netip.Addr]int)
	suspects := make([]Pod, 0, len(dirt.addrs))
	for _, p := range pods {
		link, known := k.memory.linkOf[p.Address]
		if !known && p.Veth != "" {
			link = byName[p.Veth]
		}
		if link != 0 && (dirt.all || dirt.links[link] || dirt.addrs[p.Address]) {
			wanted[p.Address] = link
			suspects = append(suspects, p)
		}
	}
	var links []link
	for index, l := range k.memory.wired {
		if dirt.all || dirt.links[index] {
			links = append(links, l)
		}
	}
	k.mu.Unlock()

	if dirt.all {
		there, err := k.h.rtnl.links()
		if err != nil {
			return done, err
		}
		now := make(map[int]link, len(there))
		for _, l := range there {
			now[l.index] = l
		}
		links = slices.DeleteFunc(links, func(want link) bool { return want.sameSettings(now[want.index]) })
	}
	for _, l := range links {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		n, err := k.h.repairPodLink(l)
		count(KindPodLink, n, err)
	}
	if len(suspects) == 0 {
		return done, errors.Join(errs...)
	}
	have, err := k.h.podRoutesThere()
	if err != nil {
		return done, errors.Join(append(errs, err)...)
	}
	for _, r := range planPods(suspects, func(p Pod) int { return wanted[p.Address] }, have) {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		n, err := k.h.repairPod(r, k.pods.Lives)
		count(KindPodRoute, n, err)
	}
	return done, errors.Join(errs...)
}
