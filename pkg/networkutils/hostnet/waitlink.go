package hostnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// WaitLink returns when the kernel has a link with the MAC: at once if it is there, else as soon as the kernel says
// so. It returns the context's error when that ends first.
func (h *Host) WaitLink(ctx context.Context, mac net.HardwareAddr) error {
	// Events first, then the look: a link that comes in between is seen by both.
	sub, err := nl.SubscribeAt(h.nsHandle(), netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return fmt.Errorf("subscribe to links: %w", err)
	}
	defer sub.Close()
	stop := context.AfterFunc(ctx, sub.Close) // ends Receive
	defer stop()

	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for link %s: %w", mac, err)
		}
		links, err := h.rtnl.links()
		if err != nil {
			return fmt.Errorf("wait for link %s: %w", mac, err)
		}
		if _, ok := byMAC(links)[mac.String()]; ok {
			return nil
		}
		if err := awaitLinkEvent(ctx, sub, mac); err != nil {
			return fmt.Errorf("wait for link %s: %w", mac, err)
		}
	}
}

// awaitLinkEvent returns when there was an event about a link with the MAC, or when events were lost.
func awaitLinkEvent(ctx context.Context, sub *nl.NetlinkSocket, mac net.HardwareAddr) error {
	for {
		msgs, _, err := sub.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			return nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.RTM_NEWLINK {
				continue
			}
			if l, err := parseLink(m.Data); err == nil && bytes.Equal(l.mac, mac) {
				return nil
			}
		}
	}
}
