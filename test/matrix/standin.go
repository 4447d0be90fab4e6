package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/rpc"
)

// standInTimeout is how long ENIs may take to appear on a node.
const standInTimeout = 30 * time.Second

// standIn does what ipamd does not do yet, IPv6: every node has ENIs with an IPv6 prefix each, hostnet carries them, and
// the plugin gets addresses of them from a server that knows nothing else. The plugin and hostnet are the product's own.
func (b *bed) standIn(ctx context.Context) error {
	for _, n := range b.cluster.Nodes() {
		count := podsOnOthers
		if n == b.n1 {
			count = podsOnN1
		}
		enis := (count + perENI - 1) / perENI
		if err := b.growIPv6(ctx, n, enis); err != nil {
			return fmt.Errorf("ENIs of %s: %w", n.Name, err)
		}
		prefixes, err := b.applyIPv6(ctx, n, enis)
		if err != nil {
			return fmt.Errorf("host network of %s: %w", n.Name, err)
		}
		if err := b.serveIPv6(n, prefixes); err != nil {
			return fmt.Errorf("addresses for %s: %w", n.Name, err)
		}
		if err := n.InstallCNI(nil); err != nil {
			return err
		}
	}
	return nil
}

// growIPv6 gives the node's primary ENI a prefix, and the node further ENIs with an address and a prefix each.
func (b *bed) growIPv6(ctx context.Context, n *cluster.Node, enis int) error {
	cloud := b.cluster.Cloud()
	key := cloud.OperatorCredentials()
	client := sdk.New(sdk.Options{
		Region: cloud.Region(), HTTPClient: &http.Client{Transport: cloud.Transport()},
		Credentials: credentials.NewStaticCredentialsProvider(key.AccessKeyID, key.SecretAccessKey, key.SessionToken),
	})
	primary := cloud.ENIsOf(n.InstanceID)[0]
	if _, err := client.AssignIpv6Addresses(ctx, &sdk.AssignIpv6AddressesInput{
		NetworkInterfaceId: &primary.ID, Ipv6PrefixCount: aws.Int32(1)}); err != nil {
		return err
	}
	for device := 1; device < enis; device++ {
		created, err := client.CreateNetworkInterface(ctx, &sdk.CreateNetworkInterfaceInput{SubnetId: &primary.SubnetID, Ipv6PrefixCount: aws.Int32(1)})
		if err != nil {
			return err
		}
		id := created.NetworkInterface.NetworkInterfaceId
		if _, err := client.AssignIpv6Addresses(ctx, &sdk.AssignIpv6AddressesInput{NetworkInterfaceId: id, Ipv6AddressCount: aws.Int32(1)}); err != nil {
			return err
		}
		if _, err := client.AttachNetworkInterface(ctx, &sdk.AttachNetworkInterfaceInput{
			NetworkInterfaceId: id, InstanceId: &n.InstanceID, DeviceIndex: aws.Int32(int32(device))}); err != nil {
			return err
		}
	}
	return nil
}

// applyIPv6 lays the node's host network and returns the prefix of each ENI, by device.
func (b *bed) applyIPv6(ctx context.Context, n *cluster.Node, enis int) ([]netip.Prefix, error) {
	netns, err := n.OS().NetNS()
	if err != nil {
		return nil, err
	}
	b.stop = append(b.stop, func() { _ = netns.Close() })
	host, err := hostnet.New(hostnet.Options{NetNS: int(netns.Fd()), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	b.stop = append(b.stop, host.Close)
	ctx, cancel := context.WithTimeoutCause(ctx, standInTimeout, errors.New("not all ENIs are there"))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		cfg, prefixes := b.configIPv6(n)
		if len(prefixes) == enis {
			report, err := host.Apply(ctx, cfg)
			if err == nil && len(report.NotReady) == 0 {
				return prefixes, nil
			}
			if err != nil {
				return nil, err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// configIPv6 is what ipamd would ask of hostnet with the ENIs that are attached.
func (b *bed) configIPv6(n *cluster.Node) (hostnet.Config, []netip.Prefix) {
	cfg := hostnet.Config{IPv6: true, NodePort: true, PrimaryMark: 0x80, ENIMask: 0x7f, VethPrefix: "eni", VPCCIDRs: b.cluster.Spec().CIDRs}
	var prefixes []netip.Prefix
	enis := b.cluster.Cloud().ENIsOf(n.InstanceID)
	slices.SortFunc(enis, func(a, b ec2.ENI) int { return a.Attachment.Device - b.Attachment.Device })
	for _, e := range enis {
		if e.Attachment.State != "attached" || len(e.IPv6) == 0 {
			continue
		}
		subnet, _ := b.cluster.Cloud().Subnet(e.SubnetID)
		cfg.ENIs = append(cfg.ENIs, hostnet.ENI{
			ID: e.ID, MAC: e.MAC, Device: e.Attachment.Device, Primary: e.Attachment.Device == 0,
			Address: e.Primary, SubnetCIDR: subnet.CIDR, Address6: e.IPv6[0], SubnetCIDR6: subnet.IPv6, Pool: e.IPv6Prefixes,
		})
		prefixes = append(prefixes, e.IPv6Prefixes...)
	}
	return cfg, prefixes
}

// serveIPv6 answers the plugin's ADDs: so many pods on each ENI as the IPv4 set-ups have there.
func (b *bed) serveIPv6(n *cluster.Node, prefixes []netip.Prefix) error {
	next := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		next[i] = p.Addr()
	}
	given := 0
	return n.OS().Do(func() error {
		server, err := ipamdtest.Start(ipamdtest.Config{Edit: func(reply *rpc.AddNetworkReply) {
			device := given / perENI
			given++
			next[device] = next[device].Next()
			table := names.TableMain
			if device > 0 {
				table = names.RouteTable(0, device)
			}
			reply.IPAllocationMetadata = []*rpc.IPAllocationMetadata{
				{IPv6Addr: next[device].String(), DeviceNumber: int32(device), RouteTableId: int32(table)}}
		}})
		if err == nil {
			b.stop = append(b.stop, server.Stop)
		}
		return err
	})
}
