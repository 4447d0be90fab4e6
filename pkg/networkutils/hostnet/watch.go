package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
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

	pollReason = "a look at everything is due"

	nfnlGroupNFTables = 7 // NFNLGRP_NFTABLES
	nfgenmsgLen       = 4
	nftaTable         = 1 // the attribute with the table's name, in the messages of all nftables objects
	nftaGenProcPID    = 2 // NFTA_GEN_PROC_PID, _NAME: whose transaction a generation is
	nftaGenProcName   = 3
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

// Watch calls changed when something that the last Apply took care of may have changed, be it by Apply itself, and every
// 25 s for what the kernel does not tell. Events within 250 ms make one call; while changed runs, at most one more is
// kept. Watch returns nil when the context ends, and an error when it can no longer hear the kernel.
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
	h.listening(true)
	defer h.listening(false)

	group, ctx := errgroup.WithContext(ctx)
	events := make(chan string, 1)
	group.Go(func() error { return h.listen(ctx, route, h.routeEvent, events) })
	group.Go(func() error { return h.listen(ctx, nft, new(nftEvents).event, events) })
	group.Go(func() error {
		poll := h.clock.NewTicker(pollPeriod)
		defer poll.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-poll.Chan():
				h.doubt(lookAll, "")
				changed(pollReason)
			case reason := <-events:
				if !h.fold(ctx) {
					return nil
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

// fold lets events gather; it returns false when the context ended.
func (h *Host) fold(ctx context.Context) bool {
	timer := h.clock.NewTimer(foldTime)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.Chan():
		return true
	}
}

// event is what a message of the kernel means to us.
type event struct {
	look   look
	reason string // empty: nothing
	by     string // who did it, if that is known
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

// listen turns messages into doubts and reasons until the context ends.
func (h *Host) listen(ctx context.Context, s *nl.NetlinkSocket, eventOf func(syscall.NetlinkMessage) event, events chan<- string) error {
	defer context.AfterFunc(ctx, s.Close)() // ends Receive
	tell := func(e event) {
		if e.look == 0 {
			return
		}
		h.doubt(e.look, e.by)
		if e.reason == "" {
			return
		}
		select {
		case events <- e.reason:
		default: // one is pending already
		}
	}
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			tell(event{look: lookAll, reason: "events were lost"})
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case err != nil:
			return fmt.Errorf("receive netlink events: %w", err)
		}
		for _, m := range msgs {
			tell(eventOf(m))
		}
	}
}

// routeEvent says what an rtnetlink event means to us.
func (h *Host) routeEvent(m syscall.NetlinkMessage) event {
	l, reason := h.routeReason(m)
	if l == 0 {
		return event{}
	}
	return event{l, reason, suspect(m.Header.Pid)}
}

// routeReason says what an rtnetlink event changes for us. It is nothing for what is not our business: pods' links and
// routes come and go all the time, and are another's (Keeper).
func (h *Host) routeReason(m syscall.NetlinkMessage) (look, string) {
	h.scopeMu.Lock()
	s := h.scope
	h.scopeMu.Unlock()
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if l, err := parseLink(m.Data); err == nil && (s.links[l.index] || s.macs[l.mac.String()]) {
			return lookLinks, "link " + l.name
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) >= unix.SizeofIfAddrmsg && s.links[int(binary.NativeEndian.Uint32(m.Data[4:]))] {
			return lookAddresses, "address"
		}
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		if len(m.Data) >= netconfmsgLen && s.links[int(attr32(m.Data[netconfmsgLen:], netconfaIfindex))] {
			return lookLinks, "link setting"
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Data) < unix.SizeofRtMsg {
			return 0, ""
		}
		attrs := m.Data[unix.SizeofRtMsg:]
		switch table := int(attr32(attrs, unix.RTA_TABLE)); {
		case isENITable(table) && s.tables[table], table == names.TableUnassigned:
			return lookRoutes, fmt.Sprintf("route in table %d", table)
		case table == names.TableMain && s.links[int(attr32(attrs, unix.RTA_OIF))]:
			return lookRoutes, "route in table main"
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		if len(m.Data) < unix.SizeofRtMsg {
			return 0, ""
		}
		switch p := int(attr32(m.Data[unix.SizeofRtMsg:], nl.FRA_PRIORITY)); p {
		case names.PriorityPods, names.PriorityUnassigned, names.PriorityPrimaryMark, names.PriorityExternalService,
			names.PriorityENI, names.PriorityENIAddress, names.PriorityLocalMoved, priorityLocal:
			return lookRules, fmt.Sprintf("rule at priority %d", p)
		case names.PriorityVLAN:
			if s.localBehind {
				return lookRules, fmt.Sprintf("rule at priority %d", p)
			}
		case names.PriorityFromPod:
			if s.perPod {
				return lookRules, fmt.Sprintf("rule at priority %d", p)
			}
		}
	}
	return 0, ""
}

// nftEvents tells changes of our nftables table from those of others.
type nftEvents struct {
	ours bool // the transaction that is being told about changed our table
}

// event looks at one message. The kernel tells of a transaction's objects first, and at its end who made it.
func (n *nftEvents) event(m syscall.NetlinkMessage) event {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenmsgLen {
		return event{}
	}
	attrs := m.Data[nfgenmsgLen:]
	if m.Header.Type&0xff == unix.NFT_MSG_NEWGEN {
		ours := n.ours
		n.ours = false
		if !ours {
			return event{}
		}
		return event{look: lookFilter, by: transactor(attrs)}
	}
	var e event
	eachAttr(attrs, func(typ uint16, v []byte) {
		if typ == nftaTable && unix.ByteSliceToString(v) == names.NFTable {
			e = event{look: lookFilter, reason: "nftables table " + names.NFTable}
			n.ours = true
		}
	})
	return e
}

// transactor names the process that made an nftables transaction; empty if it is this one.
func transactor(attrs []byte) string {
	var pid uint32
	var name string
	eachAttr(attrs, func(typ uint16, v []byte) {
		switch {
		case typ == nftaGenProcPID && len(v) == 4:
			pid = binary.BigEndian.Uint32(v)
		case typ == nftaGenProcName:
			name = unix.ByteSliceToString(v)
		}
	})
	own, err := os.ReadFile("/proc/self/comm")
	if name == "" || err == nil && strings.TrimSpace(string(own)) == name {
		return ""
	}
	return fmt.Sprintf("%s (pid %d)", name, pid)
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
