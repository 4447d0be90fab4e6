package bootstrap

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
)

// NodeAddress is what is asked of IMDS for the egress plugin. *awsutils.IMDS has it.
type NodeAddress interface {
	NodeIPv6(context.Context) (netip.Addr, error)
}

// Egress is the host's part of what the egress plugin gives pods: source NAT to the node's own address in the family that
// pods have none in. A node without an IPv6 address has nothing to offer; the plugin's configuration says so, too.
func Egress(ctx context.Context, c config.Config, id awsutils.Identity, imds NodeAddress, log *slog.Logger) ([]hostnet.Egress, error) {
	switch {
	case c.IPv6 && c.V4Egress:
		return []hostnet.Egress{{Range: names.EgressRangeV4, To: id.PrimaryIP}}, nil
	case c.IPv6 || !c.V6Egress:
		return nil, nil
	}
	to, err := imds.NodeIPv6(ctx)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the node's address for IPv6 egress: %w", err)
	case !to.IsValid():
		log.Warn("ENABLE_V6_EGRESS has no effect: the node has no IPv6 address")
		return nil, nil
	}
	return []hostnet.Egress{{Range: names.EgressRangeV6, To: to}}, nil
}
