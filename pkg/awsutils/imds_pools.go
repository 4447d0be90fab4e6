package awsutils

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// Pools returns what lies on each attached ENI, by MAC address: its own address, the secondary ones and, only if they
// are asked for, the prefixes. Nothing else of the ENIs is known then. It costs one small read per ENI, or two.
//
// An ENI without IPv4 addresses, and one that goes away in the middle, has none.
func (i *IMDS) Pools(ctx context.Context, prefixes bool) ([]ENI, error) {
	list, err := i.required(ctx, "network/interfaces/macs/")
	if err != nil {
		return nil, err
	}
	macs := strings.Fields(list)
	enis := make([]ENI, len(macs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(imdsParallel)
	for n, mac := range macs {
		mac = strings.TrimSuffix(mac, "/")
		if enis[n].MAC, err = net.ParseMAC(mac); err != nil {
			return nil, fmt.Errorf("imds macs: %w", err)
		}
		group.Go(func() error {
			r := reader{ctx: ctx, imds: i, mac: mac}
			addrs := all(&r, "local-ipv4s", netip.ParseAddr)
			if prefixes {
				enis[n].Prefixes = all(&r, "ipv4-prefix", netip.ParsePrefix)
			}
			if len(addrs) > 0 {
				enis[n].Primary, enis[n].Secondary = addrs[0], addrs[1:]
			}
			slices.SortFunc(enis[n].Secondary, netip.Addr.Compare)
			slices.SortFunc(enis[n].Prefixes, netip.Prefix.Compare)
			return r.err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return enis, nil
}

// Leaving tells why the instance is about to end: EC2 takes a spot instance back (two minutes before it does), its Auto
// Scaling group terminates it, or EC2 recommends to move away from it. It is empty when nobody said so.
func (i *IMDS) Leaving(ctx context.Context) (string, error) {
	spot, err := i.optional(ctx, "spot/instance-action")
	if err != nil {
		return "", err
	}
	if spot != "" {
		var notice struct{ Action, Time string }
		if err := json.Unmarshal([]byte(spot), &notice); err != nil || notice.Action == "" {
			return "spot interruption", nil
		}
		return fmt.Sprintf("spot interruption: %s at %s", notice.Action, notice.Time), nil
	}
	state, err := i.optional(ctx, "autoscaling/target-lifecycle-state")
	if err != nil {
		return "", err
	}
	if state == "Terminated" {
		return "its Auto Scaling group terminates it", nil
	}
	rebalance, err := i.optional(ctx, "events/recommendations/rebalance")
	if rebalance == "" {
		return "", err
	}
	return "EC2 recommends to rebalance", nil
}
