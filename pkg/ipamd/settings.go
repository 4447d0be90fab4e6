package ipamd

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
)

// Settings are the operator's choices, as far as the daemon knows them.
type Settings struct {
	// Targets are WARM_ENI_TARGET, WARM_IP_TARGET, MINIMUM_IP_TARGET, ENABLE_PREFIX_DELEGATION, WARM_PREFIX_TARGET and
	// max-pods.
	Targets warmpool.Targets
	// MaxENI is MAX_ENI; 0 if not set.
	MaxENI int
	// Cooldown is how long a released address rests (IP_COOLDOWN_PERIOD). 0 hands it out again at once.
	Cooldown time.Duration
	// AddWait bounds how long an ADD waits for an address; DefaultAddWait if 0.
	AddWait time.Duration
	// Queue bounds how many ADDs wait at once; DefaultQueue if 0.
	Queue int
	// ManageWhenCordoned lets the pool grow and shrink also while the node is cordoned
	// (AWS_MANAGE_ENIS_NON_SCHEDULABLE).
	ManageWhenCordoned bool
	// NoProvisioning leaves ENIs and addresses to somebody else: nothing is changed in EC2
	// (DISABLE_NETWORK_RESOURCE_PROVISIONING).
	NoProvisioning bool
	// IMDSOnly takes what the node has from IMDS and never calls EC2, so it implies NoProvisioning
	// (ENABLE_IMDS_ONLY_MODE).
	IMDSOnly bool
	// IgnoreUntagged leaves ENIs alone that carry no tag of this node (MANAGE_UNTAGGED_ENI=false).
	IgnoreUntagged bool
	// SubnetDiscovery makes ENIs in every subnet of the zone that its tags offer (ENABLE_SUBNET_DISCOVERY).
	SubnetDiscovery bool
	// ClusterName is CLUSTER_NAME; ENITags are ADDITIONAL_ENI_TAGS.
	ClusterName string
	ENITags     map[string]string
	// Host is everything in the host's network configuration but the ENIs and the VPC's ranges.
	Host hostnet.Config
}

// Defaults of Settings.
const (
	// DefaultAddWait is below the deadline of the plugin (90 s), so that its caller learns the reason.
	DefaultAddWait = 60 * time.Second
	// DefaultQueue is more than the pods of the largest node that start at once.
	DefaultQueue = 1024
)

// Inventory reads what EC2 knows about ENIs and subnets.
type Inventory interface {
	DescribeENIs(ctx context.Context, instanceID string) ([]awsutils.ENI, error)
	DescribeENIsByID(ctx context.Context, ids ...string) ([]awsutils.ENI, error)
	DescribeENIsByTag(ctx context.Context, key, value string) ([]awsutils.ENI, error)
	DescribeSubnets(ctx context.Context, vpcID, zone string) ([]awsutils.Subnet, error)
}

// Interfaces adds ENIs to the node and takes them away.
type Interfaces interface {
	CreateENI(ctx context.Context, eni awsutils.NewENI) (awsutils.ENI, error)
	AttachENI(ctx context.Context, eniID, instanceID string, device, card int) (attachmentID string, err error)
	DeleteOnTermination(ctx context.Context, eniID, attachmentID string) error
	DetachENI(ctx context.Context, attachmentID string) error
	DeleteENI(ctx context.Context, eniID string) error
}

// Addresses adds addresses and prefixes to an ENI and takes them away.
type Addresses interface {
	AssignIPs(ctx context.Context, eniID string, n int) ([]netip.Addr, error)
	// AssignAddresses assigns these addresses, all of them or none.
	AssignAddresses(ctx context.Context, eniID string, addrs []netip.Addr) ([]netip.Addr, error)
	UnassignIPs(ctx context.Context, eniID string, addrs []netip.Addr) error
	AssignPrefixes(ctx context.Context, eniID string, n int) ([]netip.Prefix, error)
	UnassignPrefixes(ctx context.Context, eniID string, prefixes []netip.Prefix) error
}

// EC2 is what the daemon asks of EC2. *awsutils.EC2 has it all; errors are sorted with awsutils.Classify.
type EC2 interface {
	Inventory
	Interfaces
	Addresses
}

var _ EC2 = (*awsutils.EC2)(nil)

// Metadata is what IMDS says of the node's ENIs. *awsutils.IMDS has it.
type Metadata interface {
	// Pools returns what lies on each ENI: MAC, Primary, Secondary and, only if they are asked for, Prefixes.
	Pools(ctx context.Context, prefixes bool) ([]awsutils.ENI, error)
	// ENIs returns everything that IMDS knows of them.
	ENIs(ctx context.Context) ([]awsutils.ENI, error)
}

var _ Metadata = (*awsutils.IMDS)(nil)

// Network is the host's network.
type Network interface {
	// WaitLink returns once an interface with this MAC address is there, or with the context's error.
	WaitLink(ctx context.Context, mac net.HardwareAddr) error
	// Apply makes the host's network what the Config says. An error means that nothing is known of the result.
	Apply(ctx context.Context, cfg hostnet.Config) (hostnet.Report, error)
}

// Checkpointer makes the daemon's state durable. It takes the state itself, through Daemon.Durable.
type Checkpointer interface {
	// Commit returns once a state taken after the call is durable.
	Commit(ctx context.Context) error
}

// Options are everything a Daemon needs. Identity, Limits, EC2, Network and Checkpointer are required.
type Options struct {
	Settings Settings
	Identity awsutils.Identity
	Limits   awsutils.Limits
	// Groups are the security groups of new ENIs: those of the primary ENI.
	Groups   []string
	VPCCIDRs []netip.Prefix
	// Subnets maps the ids of subnets to their ranges. That of the primary ENI is required; an ENI in a subnet that
	// is not listed cannot be wired and stays unused.
	Subnets  map[string]netip.Prefix
	Restored checkpoint.State

	EC2 EC2
	// Metadata, if set, is read about once a minute for changes that are not this node's. It is required in IMDS-only
	// mode, where EC2 is not.
	Metadata     Metadata
	Network      Network
	Checkpointer Checkpointer
	Clock        clockwork.Clock // the real one if nil
	Log          *slog.Logger    // none if nil
	// Notify, if set, is told what people should see. It must not block.
	Notify func(Notice)
	// Released, if set, is told each address that a sandbox let go of, once that is durable, and since when it cools if
	// not from now on (the zero time). It must not block.
	Released func(addr netip.Addr, since time.Time)
	// Announce, if set, tells the neighbours of an ENI, by its MAC, of addresses and prefixes that are on it now.
	Announce func(ctx context.Context, mac net.HardwareAddr, blocks []netip.Prefix) error
	// Spawn runs f beside the daemon, with a context that ends after timeout: in a goroutine of its own if Spawn is nil.
	// A simulation runs it on its own time. It must not run f before it returns.
	Spawn func(ctx context.Context, timeout time.Duration, f func(context.Context))
	// Rand spreads retries and makes client tokens; a randomly seeded one if nil. Only the Daemon may use it.
	Rand *rand.Rand
}
