package ipamd

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/ipamd/warmpool"
)

// Tags by which operators say which subnets are for pods. Of the cluster tags, only the key counts.
const (
	tagRole          = "kubernetes.io/role/cni"
	tagClusterPrefix = "cni.networking.k8s.aws/cluster/"
	roleForbidden    = "0"
)

// zone is what EC2 said of the subnets of the node's zone.
type zone struct {
	found    time.Time // its last answer; zero: none yet
	finding  uint64    // the operation that asks; 0: none
	offered  []string  // subnets that may get new ENIs, the one with the most free addresses first
	excluded map[string]bool
}

// offers tells whether new ENIs may be made in a subnet.
func offers(s awsutils.Subnet, cluster string, primary bool) bool {
	switch s.Tags[tagRole] {
	case roleForbidden:
		return false
	case "":
		return primary
	}
	return forCluster(s, cluster)
}

// excludes tells whether ENIs that are there may serve no more pods.
func excludes(s awsutils.Subnet, cluster string) bool {
	role := s.Tags[tagRole]
	return role == roleForbidden || role != "" && !forCluster(s, cluster)
}

// forCluster tells whether no cluster has a subnet for itself, or this one has.
func forCluster(s awsutils.Subnet, cluster string) bool {
	if _, own := s.Tags[tagClusterPrefix+cluster]; own || cluster == "" {
		return true
	}
	for key := range s.Tags {
		if strings.HasPrefix(key, tagClusterPrefix) {
			return false
		}
	}
	return true
}

// startFind asks EC2 which subnets there are.
func (c *controller) startFind(reason string, now time.Time) {
	if c.zone.finding != 0 {
		return
	}
	op := c.newOp(opSubnets, stageCall, now)
	op.reason = reason
	c.zone.finding = op.id
	c.begin(op, now)
}

func (c *controller) subnetsStep(op *operation, ev evCalled, now time.Time) {
	c.zone.finding = 0
	c.end(op)
	if ev.err != nil {
		// What is known has to do: the last answer, or the primary ENI's subnet.
		c.refused(warmpool.OpFind, "", 0, ev.err, now)
		return
	}
	c.succeeded(warmpool.OpFind, "", now)
	was := c.zone.excluded
	c.zone.found, c.zone.offered, c.zone.excluded = now, nil, map[string]bool{}
	slices.SortStableFunc(ev.subnets, func(a, b awsutils.Subnet) int { return cmp.Compare(b.Free, a.Free) })
	for _, s := range ev.subnets {
		if !s.CIDR.IsValid() {
			continue
		}
		c.subnets[s.ID] = s.CIDR
		if offers(s, c.set.ClusterName, s.ID == c.id.SubnetID) {
			c.zone.offered = append(c.zone.offered, s.ID)
		}
		c.zone.excluded[s.ID] = excludes(s, c.set.ClusterName)
	}
	c.log(slog.LevelInfo, "subnets of the zone", "offered", c.zone.offered, "of", len(ev.subnets))
	for _, st := range c.store.Snapshot(now).ENIs {
		e := c.enis[st.ID]
		if e == nil {
			continue
		}
		if on := c.excludes(e); on != was[e.SubnetID] {
			c.log(slog.LevelWarn, "the tags of an ENI's subnet changed", "eni", e.ID, "subnet", e.SubnetID, "excluded", on)
		}
		if st.Phase == datastore.Usable || st.Phase == datastore.Wired {
			c.serveOrNot(e)
		}
		if !e.cidr.IsValid() && c.subnets[e.SubnetID].IsValid() {
			e.cidr, e.notReady, e.notReadySince = c.subnets[e.SubnetID], "", time.Time{}
			c.startLink(e, now)
		}
	}
}

// excludes tells whether an ENI serves no new pods because its subnet is to be used no more.
func (c *controller) excludes(e *iface) bool { return c.zone.excluded[e.SubnetID] }

// serveOrNot opens an ENI for pods whose network the host is ready for, unless its subnet is excluded.
func (c *controller) serveOrNot(e *iface) {
	for _, phase := range []datastore.Phase{datastore.Wired, datastore.Usable} {
		if phase == datastore.Usable && c.excludes(e) || c.store.SetPhase(e.ID, phase) != nil {
			return
		}
	}
}

// offeredSubnets are the subnets that new ENIs may be made in.
func (c *controller) offeredSubnets() []string {
	if c.zone.found.IsZero() {
		return []string{c.id.SubnetID}
	}
	return c.zone.offered
}
