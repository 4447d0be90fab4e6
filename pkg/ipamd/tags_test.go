package ipamd

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

// Cleaners of clusters and IAM policies in the field key on these; they are in the call that creates the ENI.
func TestTagsOfNewENIs(t *testing.T) {
	t.Parallel()
	for cluster, want := range map[string]string{
		"": `aws-K8S-i-0123456789abcdef0
node.k8s.amazonaws.com/createdAt=<RFC 3339>
node.k8s.amazonaws.com/instance_id=i-0123456789abcdef0
team=network
`,
		"prod": `aws-K8S-i-0123456789abcdef0
cluster.k8s.amazonaws.com/name=prod
eks:eni:owner=amazon-vpc-cni
node.k8s.amazonaws.com/createdAt=<RFC 3339>
node.k8s.amazonaws.com/instance_id=i-0123456789abcdef0
team=network
`,
	} {
		w := newWorld(1, warmpool.Targets{WarmIP: 2})
		w.opts.Settings.ClusterName, w.opts.Settings.ENITags = cluster, map[string]string{"team": "network"}
		w.boot()
		w.run(12 * time.Second)
		for range 6 {
			w.add()
		}
		w.run(time.Minute)
		e := w.cloud.enis["eni-001"]
		if e == nil {
			t.Fatal("no ENI was created")
		}
		var got strings.Builder
		fmt.Fprintln(&got, e.Description)
		for _, key := range slices.Sorted(maps.Keys(e.Tags)) {
			value := e.Tags[key]
			if at, err := time.Parse(time.RFC3339, value); err == nil && w.now.Sub(at) < 2*time.Minute {
				value = "<RFC 3339>"
			}
			fmt.Fprintf(&got, "%s=%s\n", key, value)
		}
		if got.String() != want {
			t.Errorf("cluster %q:\n%swant\n%s", cluster, got.String(), want)
		}
		w.report(t, cluster)
	}
}
