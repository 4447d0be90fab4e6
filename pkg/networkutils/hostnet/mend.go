package hostnet

import (
	"context"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/conntrack"
)

const (
	// mendTimeout and mendLimit bound a mending: what is left gets its chance at the next one, or times out.
	mendTimeout = 5 * time.Second
	mendLimit   = 20000
)

// mend has connections begin anew that began while source NAT, or the way to it, was missing: the kernel decides on
// NAT at the first packet, and a client that repeats itself would go on without. Only those are forgotten that nobody
// has answered: what works without NAT stays.
func (a *apply) mend(ctx context.Context, cfg Config) {
	damaged := a.bare
	for _, kind := range []Kind{KindNFTables, KindRule, KindRoute, KindLink, KindAddress} {
		damaged = damaged || a.repair && a.report.Changes[kind] > 0
	}
	if !damaged || cfg.ExternalSNAT {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, mendTimeout)
	defer cancel()
	own, err := a.h.ownAddresses()
	if err != nil {
		a.h.log.Warn("connections without source NAT not forgotten", "error", err)
		return
	}
	stale := withoutNAT(cfg, own)
	n := 0
	err = inNetNS(a.h.netns, func() error {
		n, err = conntrack.ForgetFlows(ctx, mendLimit, stale)
		return err
	})
	if n > 0 {
		a.report.Changes[KindConntrack] += n
		a.h.log.Info("connections without source NAT forgotten", "connections", n)
	}
	if err != nil {
		a.h.log.Warn("connections without source NAT not forgotten", "connections", n, "error", err)
	}
}

// withoutNAT tells the connections that lack the source NAT that they would get now.
func withoutNAT(cfg Config, own map[netip.Addr]bool) func(conntrack.Flow) bool {
	var pods []netip.Prefix
	for _, e := range cfg.ENIs {
		pods = append(pods, ipv4.of(e.Pool)...)
	}
	pods = merge(pods)
	exempt := merge(append(ipv4.of(cfg.VPCCIDRs), ipv4.of(cfg.ExcludeSNATCIDRs)...))
	return func(f conntrack.Flow) bool {
		return !f.Answered && f.SeenAs == f.Source && contains(pods, f.Source) && !contains(exempt, f.Peer) &&
			!own[f.Peer] && !f.Peer.IsMulticast() && !f.Peer.IsLoopback()
	}
}

// ownAddresses are the host's IPv4 addresses.
func (h *Host) ownAddresses() (map[netip.Addr]bool, error) {
	list, err := h.addresses(ipv4, 0)
	own := make(map[netip.Addr]bool, len(list))
	for _, p := range list {
		own[p.Addr()] = true
	}
	return own, err
}

// inNetNS runs f in the network namespace of a file descriptor; 0 is the process's own.
func inNetNS(fd int, f func() error) error {
	if fd == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with it
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
