// Package checkpoint keeps what ipamd must not forget across its own restarts: the allocations, in the file that
// every version of the field's CNI reads (ipam.json, vpc-cni-ipam/1), and beside it a private journal for what that
// format has no room for.
package checkpoint

import (
	"net/netip"
	"time"
)

// State is everything that is made durable together.
type State struct {
	Allocations []Allocation
	Journal     Journal
}

// Snapshot is a State as its owner hands it over to be written, which it does for every group of ADDs: what did not
// change is handed over as the same pointers and slices again, and is neither copied nor formatted anew.
type Snapshot struct {
	Allocations []*Allocation // what they point to never changes
	Journal     Journal       // nor do the pools of its ENIs
}

// Snapshot is the state in that form.
func (s *State) Snapshot() Snapshot {
	out := Snapshot{Allocations: make([]*Allocation, len(s.Allocations)), Journal: s.Journal}
	for i := range s.Allocations {
		out.Allocations[i] = &s.Allocations[i]
	}
	return out
}

// Allocation is one address held by one sandbox interface, as ipam.json has it.
type Allocation struct {
	NetworkName string
	ContainerID string
	IfName      string
	Address     netip.Addr
	Time        time.Time
	Namespace   string
	Pod         string
	// Interfaces is the number of interfaces the pod asked for; old files have none, read as 1.
	Interfaces int
}

// Journal is what ipam.json has no room for. Readers that do not know it lose nothing but speed.
type Journal struct {
	InstanceID string
	ENIs       []HeldENI
	Cooling    []Cooling
	Intents    []Intent
	// Stale journals, as Load finds them, are older than the state file: another version, which keeps no journal, ran
	// in between and may have given addresses back.
	Stale bool
}

// HeldENI is an ENI that this node held when the journal was written.
type HeldENI struct {
	ID     string
	MAC    string
	Device int
	Card   int
	Pool   []netip.Prefix // addresses as /32, prefixes as /28
	// Address is the ENI's own, SubnetID and SubnetCIDR its subnet: what wiring it needs while EC2 cannot be asked.
	Address    netip.Addr
	SubnetID   string
	SubnetCIDR netip.Prefix
	// Doubted are the blocks of Pool that may not be on the ENI: they serve nobody before EC2 was asked.
	Doubted []netip.Prefix
}

// Cooling is an address that was released and may not be handed out again before Until.
type Cooling struct {
	Address netip.Addr
	Until   time.Time
}

// IntentUnreadable is the kind of an intent of which nothing else could be read: any change may be under way.
const IntentUnreadable = "unreadable"

// Intent is an EC2 change that was begun: what a restart has to look up before it trusts its picture.
type Intent struct {
	Kind  string // create, attach, detach, delete, assign, unassign, or IntentUnreadable
	ENI   string // empty while a creation is unanswered
	Token string // ClientToken of a creation
	Since time.Time
}
