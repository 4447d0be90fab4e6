// Package orphans removes the ENIs that instances of this cluster left behind when they ended: a node that dies between
// two calls cannot clean up after itself, and no other node may touch its ENIs. One node of the cluster does it for all.
package orphans

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"vpccni/pkg/awsutils"
)

// Verdict is what becomes of an ENI that is attached to nothing, and why.
type Verdict struct {
	ENI      string
	Instance string // that its tag names
	Age      time.Duration
	Delete   bool
	Reason   string
}

// Criteria say what an orphan is.
type Criteria struct {
	Cluster string // value of its tag
	MinAge  time.Duration
}

const (
	available  = "available"
	terminated = "terminated"
)

// instanceID is the form of an instance's id. Anything else was not written by a node, and would be gone by definition.
var instanceID = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)

// Decide says of each ENI whether it is an orphan. Instances are the states of the instances that the ENIs' tags name,
// as far as EC2 knows them. It is a pure function; what is returned is in the order of the ENIs' ids.
func Decide(enis []awsutils.ENI, instances map[string]string, c Criteria, now time.Time) []Verdict {
	verdicts := make([]Verdict, 0, len(enis))
	for _, e := range enis {
		v := Verdict{ENI: e.ID, Instance: e.Tags[awsutils.TagInstance]}
		if created, err := time.Parse(time.RFC3339, e.Tags[awsutils.TagCreatedAt]); err == nil {
			v.Age = now.Sub(created)
		}
		v.Reason = keep(e, c, now)
		if v.Reason == "" {
			v.Delete, v.Reason = gone(v.Instance, instances)
		}
		verdicts = append(verdicts, v)
	}
	slices.SortFunc(verdicts, func(a, b Verdict) int { return strings.Compare(a.ENI, b.ENI) })
	return verdicts
}

// keep says why an ENI is none of this cluster's nodes' that can be left behind; empty if it can, and its instance is
// what decides.
func keep(e awsutils.ENI, c Criteria, now time.Time) string {
	created, err := time.Parse(time.RFC3339, e.Tags[awsutils.TagCreatedAt])
	switch {
	case e.Status != available || e.AttachmentID != "":
		return "attached: " + e.Status
	case c.Cluster == "":
		return "the name of this cluster is not known"
	case e.Tags[awsutils.TagCluster] != c.Cluster:
		return fmt.Sprintf("of another cluster: %q", e.Tags[awsutils.TagCluster])
	case !strings.HasPrefix(e.Description, awsutils.DescriptionPrefix):
		return fmt.Sprintf("not made by a node: its description is %q", e.Description)
	case e.Tags[awsutils.TagNoManage] == "true":
		return "tagged " + awsutils.TagNoManage
	case !instanceID.MatchString(e.Tags[awsutils.TagInstance]):
		return "its tag names no instance"
	case err != nil:
		return "its age is not known: no good tag " + awsutils.TagCreatedAt
	case now.Sub(created) < c.MinAge:
		return fmt.Sprintf("younger than %s", c.MinAge)
	}
	return ""
}

// gone tells whether an instance has ended, and how that is known, or what it is instead.
func gone(instance string, instances map[string]string) (bool, string) {
	switch state, known := instances[instance]; {
	case !known:
		return true, "EC2 does not know its instance"
	case state == terminated:
		return true, "its instance is terminated"
	default:
		return false, "its instance is " + state
	}
}
