package ipamd

import (
	"time"

	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
)

// View is everything the daemon knows, copied: for introspection and metrics.
type View struct {
	Time  time.Time
	Ready bool
	// Verified is when the picture was last compared with EC2; zero if EC2 never answered.
	Verified time.Time
	Limits   warmpool.Limits
	Targets  warmpool.Targets
	// Capacity is how many pods the node has addresses for when its pool is at its largest, with those on the host's
	// network: what the kubelet's max-pods (Targets.MaxPods) should not exceed.
	Capacity int
	// Degraded are the features beside the pool that do not work, by name.
	Degraded []Degradation

	ENIs     []ENIView // by card, device, id
	Totals   datastore.Counts
	Unplaced []datastore.Allocation // addresses that pods hold on no ENI known

	Waiting   int
	OldestAdd time.Duration // age of the ADD that waits longest; 0 if none waits
	InFlight  []ActionView  // by start
	Plan      warmpool.Decision
	PlanTime  time.Time
	Refusals  []warmpool.Refusal
	Counters  Counters
}

// Degradation is a feature beside the pool that does not work at present.
type Degradation struct {
	Feature string // one of the Feature constants
	Reason  string
	// Chosen: a setting wants it so, or one is missing; nothing has to be repaired.
	Chosen bool
	Since  time.Time
}

// The features that can be degraded. What EC2 refuses is in View.Refusals.
const (
	// FeatureNode: max-pods and cordon, from the Node object. Without it the pool goes by the instance type alone and
	// keeps its size while the node is cordoned.
	FeatureNode = "node"
	// FeatureEvents: events for people.
	FeatureEvents = "events"
	// FeatureOrphans: removal of the ENIs that ended instances left behind, once this node is the one to do it.
	FeatureOrphans = "orphan-cleaner"
)

// ENIView is an ENI with its addresses and their holders.
type ENIView struct {
	ID         string
	MAC        string
	Device     int
	Card       int
	Table      int
	SubnetID   string
	Attachment string
	Primary    bool
	Managed    bool
	Trunk      bool
	EFA        bool
	Phase      datastore.Phase // empty for an ENI that is not managed, or is being detached
	NotReady   string          // why the host's network is not ready for it; empty if it is
	datastore.Counts
	Pool []datastore.Block // sorted
}

// ActionView is an EC2 change under way.
type ActionView struct {
	Kind   string // create, remove, assign, unassign, protect, link, check
	Stage  string
	ENI    string
	Device int
	N      int
	Since  time.Time
	Tries  int
	Error  string // of the last try
	Reason string
}

// Counters count since the daemon's start.
type Counters struct {
	Adds         uint64 // requests
	AddsServed   uint64
	AddsRefused  map[Code]uint64
	AddsWaited   uint64 // requests that found no address ready
	Dels         uint64 // requests
	DelsUnknown  uint64 // of sandboxes that hold nothing
	Undone       uint64 // addresses taken back because the reply could not be delivered
	CommitErrors uint64
	Applies      uint64 // of the host's network
	ApplyErrors  uint64
	ENIsCreated  uint64
	ENIsRemoved  uint64
	ENIsLost     uint64
	Resyncs      uint64 // full comparisons with EC2
	// What comparisons with EC2 found beside what was known: ENIs and addresses that are there, or not any more.
	ENIsFound, ENIsGone           uint64
	AddressesFound, AddressesGone uint64
	// Repairs are Applies that only the kernel's events asked for and that had something to put right.
	Repairs uint64
	// RepairsOf are the single changes of all repairs, by kind.
	RepairsOf map[hostnet.Kind]uint64
	NotReady  uint64 // times that the host's network was not ready for an ENI
	Failures  map[Failure]uint64
}
