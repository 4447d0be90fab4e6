package hostnet

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// changes counts what the kernel says has changed in the namespace: every write to its rules, routes, addresses, links
// and nftables makes at least one event, also one that changes nothing (a replaced route, an empty transaction).
func (n *node) changes(during func()) (count int) {
	n.t.Helper()
	for protocol, groups := range map[int][]uint{
		unix.NETLINK_ROUTE: {unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
			unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_NETCONF},
		unix.NETLINK_NETFILTER: {nfnlGroupNFTables},
	} {
		s, err := nl.SubscribeAt(netns.NsHandle(n.FD()), netns.None(), protocol, groups...)
		if err != nil {
			n.t.Fatal(err)
		}
		// Whatever was sent while during ran is in the buffer by then: netlink delivers before the writer goes on.
		defer func() {
			tv := unix.NsecToTimeval((10 * time.Millisecond).Nanoseconds())
			if err := s.SetReceiveTimeout(&tv); err != nil {
				n.t.Error(err)
			}
			for {
				msgs, _, err := s.Receive()
				if errors.Is(err, unix.EAGAIN) {
					break
				}
				if err != nil {
					n.t.Error(err)
					break
				}
				count += len(msgs)
			}
			s.Close()
		}()
	}
	during()
	return count
}

// A look at a host on which nothing has changed writes nothing, whoever looks: the daemon that runs, and one that has
// just started.
func TestNothingIsWrittenWithoutNeed(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 4)
			n.apply(s.cfg)
			started := n.open()
			quiet := func() (count int) {
				return n.changes(func() {
					for range 10 {
						if r := n.apply(s.cfg); r.Writes != 0 {
							t.Errorf("%d writes, want none: %v", r.Writes, r.Changes)
						}
					}
					if r, err := started.Apply(context.Background(), s.cfg); err != nil || r.Writes != 0 {
						t.Errorf("after a restart: %d writes (%v), want none", r.Writes, err)
					}
				})
			}
			// The kernel itself still has something to say about links that came up just now.
			eventually(t, "no event during a look", func() bool { return quiet() == 0 })
			if n.changes(func() { n.Run("ip", "rule", "add", "priority", "700", "lookup", "77") }) == 0 {
				t.Error("a change makes no event: the count is worth nothing")
			}
		})
	}
}
