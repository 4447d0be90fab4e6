package slice

import (
	"net/netip"
	"testing"
	"time"

	"vpccni/lab/cluster"
)

// TestSecondSubnet: the primary ENI's subnet has room for 10 addresses, another one of the zone is tagged for pods. The
// pods that the first has no address for get one of the other's, and all reach each other and the internet.
func TestSecondSubnet(t *testing.T) {
	t.Parallel()
	other := netip.MustParsePrefix("10.0.2.0/24")
	l := lab(t, cluster.Spec{
		Subnets: []cluster.Subnet{
			{Name: "subnet-a", CIDR: netip.MustParsePrefix("10.0.1.0/28"), Zone: "us-west-2a"},
			{Name: "subnet-b", CIDR: other, Zone: "us-west-2a", Tags: map[string]string{"kubernetes.io/role/cni": "1"}},
			{Name: "subnet-c", CIDR: netip.MustParsePrefix("10.0.4.0/22"), Zone: "us-west-2a"}, // without the tag
		},
		Nodes:       []cluster.NodeSpec{{Name: "n1", Type: "m5.xlarge", Subnet: "subnet-a"}},
		AttachDelay: 500 * time.Millisecond, DetachDelay: 500 * time.Millisecond,
		Env: map[string]string{"WARM_ENI_TARGET": "0"},
	})
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 20) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	got := map[bool]int{}
	for _, p := range l.Pods("n1") {
		got[other.Contains(p.Address)]++
	}
	if got[true] < 10 || got[true]+got[false] != 20 {
		t.Errorf("%d pods in the second subnet, %d in the first, which has room for 10", got[true], got[false])
	}
	for _, e := range attachedENIs(l, n) {
		if s, _ := l.Cloud().Subnet(e.SubnetID); s.Tags["kubernetes.io/role/cni"] == "" && e.Attachment.Device != 0 {
			t.Errorf("%s was made in %s", e.ID, s.CIDR)
		}
	}
	if c := calls(l, n); c["DescribeSubnets"] != 1 {
		t.Errorf("calls %v", c)
	}
	checkReachable(t, l)
	checkDrops(t, l)
}
