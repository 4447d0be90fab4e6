package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

const (
	// foldTime is how long Watch collects events before it reports them: whoever changes one thing usually changes
	// several (networkd flushes and rewrites), and a repair in between would be undone.
	foldTime = 250 * time.Millisecond
	// watchBuffer lets a burst of events (a thousand routes) wait until it is read.
	watchBuffer = 1 << 20

	nfnlGroupNFTables = 7 // NFNLGRP_NFTABLES
	nfgenmsgLen       = 4
	nftaTable         = 1 // the attribute with the table's name, in the messages of all nftables objects
	netconfmsgLen     = 4
	netconfaIfindex   = 1
)

// scope is what of the host's network an Apply took care of.
type scope struct {
	macs   map[string]bool
	links  map[int]bool
	tables map[int]bool
	// localBehind tells that rules of branch ENIs' pods decide where the rule for the host's own addresses is.
	localBehind bool
	perPod      bool // pods have rules of their own
}

func (h *Host) setScope(d Desired, linkOf map[string]link, localBehind bool) {
	s := scope{macs: map[string]bool{}, links: map[int]bool{}, tables: map[int]bool{}, localBehind: localBehind,
		perPod: d.RuleLayout == LayoutPerPod}
	for _, l := range d.Links {
		s.macs[l.MAC] = true
		if l, ok := linkOf[l.ENI]; ok {
			s.links[l.index] = true
		}
	}
	for _, r := range d.Routes {
		s.tables[r.Table] = true
	}
	h.scopeMu.Lock()
	defer h.scopeMu.Unlock()
	h.scope = s
}

// Watch calls changed when something that the last Apply took care of may have changed, be it by Apply itself. Events
// within 250 ms make one call; while changed runs, at most one more is kept. Watch returns nil when the context ends,
// and an error when it can no longer hear the kernel.
func (h *Host) Watch(ctx context.Context, changed func(reason string)) error {
	route, err := h.subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE)
	if err != nil {
		return err
	}
	defer route.Close()
	nft, err := h.subscribe(unix.NETLINK_NETFILTER, nfnlGroupNFTables)
	if err != nil {
		return err
	}
	defer nft.Close()

	group, ctx := errgroup.WithContext(ctx)
	events := make(chan string, 1)
	group.Go(func() error { return h.listen(ctx, route, h.routeReason, events) })
	group.Go(func() error { return h.listen(ctx, nft, nftReason, events) })
	group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case reason := <-events:
				timer := h.clock.NewTimer(foldTime)
				select {
				case <-ctx.Done():
					timer.Stop()
					return nil
				case <-timer.Chan():
				}
				select {
				case <-events: // covered by the call that follows
				default:
				}
				changed(reason)
			}
		}
	})
	return group.Wait()
}

func (h *Host) subscribe(protocol int, groups ...uint) (*nl.NetlinkSocket, error) {
	s, err := nl.SubscribeAt(h.nsHandle(), netns.None(), protocol, groups...)
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink events: %w", err)
	}
	// Without the right to exceed the system's limit the buffer stays smaller; lost events are noticed.
	if s.SetReceiveBufferSize(watchBuffer, true) != nil {
		_ = s.SetReceiveBufferSize(watchBuffer, false)
	}
	return s, nil
}

// listen turns messages into reasons until the context ends.
func (h *Host) listen(ctx context.Context, s *nl.NetlinkSocket, reasonOf func(syscall.NetlinkMessage) string,
	events chan<- string) error {
	defer context.AfterFunc(ctx, s.Close)() // ends Receive
	tell := func(reason string) {
		if reason == "" {
			return
		}
		select {
		case events <- reason:
		default: // one is pending already
		}
	}
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			tell("events were lost")
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case err != nil:
			return fmt.Errorf("receive netlink events: %w", err)
		}
		for _, m := range msgs {
			tell(reasonOf(m))
		}
	}
}

// routeReason says what an rtnetlink event changes for us; it is empty for what is not our business: pods' links and
// routes come and go all the time.
func (h *Host) routeReason(m syscall.NetlinkMessage) string {
	h.scopeMu.Lock()
	s := h.scope
	h.scopeMu.Unlock()
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if l, err := parseLink(m.Data); err == nil && (s.links[l.index] || s.macs[l.mac.String()]) {
			return "link " + l.name
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) >= unix.SizeofIfAddrmsg && s.links[int(binary.NativeEndian.Uint32(m.Data[4:]))] {
			return "address"
		}
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		if len(m.Data) >= netconfmsgLen && s.links[int(attr32(m.Data[netconfmsgLen:], netconfaIfindex))] {
			return "link setting"
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Data) < unix.SizeofRtMsg {
			return ""
		}
		attrs := m.Data[unix.SizeofRtMsg:]
		switch table := int(attr32(attrs, unix.RTA_TABLE)); {
		case isENITable(table) && s.tables[table], table == names.TableUnassigned:
			return fmt.Sprintf("route in table %d", table)
		case table == names.TableMain && s.links[int(attr32(attrs, unix.RTA_OIF))]:
			return "route in table main"
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if len(m.Data) < unix.SizeofRtMsg {
			return ""
		}
		switch p := int(attr32(m.Data[unix.SizeofRtMsg:], nl.FRA_PRIORITY)); p {
		case names.PriorityPods, names.PriorityUnassigned, names.PriorityPrimaryMark, names.PriorityExternalService,
			names.PriorityENI, names.PriorityENIAddress, names.PriorityLocalMoved, priorityLocal:
			return fmt.Sprintf("rule at priority %d", p)
		case names.PriorityVLAN:
			if s.localBehind {
				return fmt.Sprintf("rule at priority %d", p)
			}
		case names.PriorityFromPod:
			if s.perPod {
				return fmt.Sprintf("rule at priority %d", p)
			}
		}
	}
	return ""
}

// nftReason tells changes of our nftables table from those of others.
func nftReason(m syscall.NetlinkMessage) string {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenmsgLen {
		return ""
	}
	if kind := m.Header.Type & 0xff; kind == unix.NFT_MSG_NEWGEN {
		return "" // the end of every transaction, and its attribute 1 is a number
	}
	reason := ""
	eachAttr(m.Data[nfgenmsgLen:], func(typ uint16, v []byte) {
		if typ == nftaTable && unix.ByteSliceToString(v) == names.NFTable {
			reason = "nftables table " + names.NFTable
		}
	})
	return reason
}

func attr32(b []byte, want uint16) uint32 {
	var out uint32
	eachAttr(b, func(typ uint16, v []byte) {
		if typ == want && len(v) >= 4 {
			out = binary.NativeEndian.Uint32(v)
		}
	})
	return out
}
