package slice

import (
	"slices"
	"testing"
	"time"

	"vpccni/lab/ec2"
)

// TestBurstWithFaults: EC2 throttles, fails and loses answers while 15 pods start. All of them get there by their first
// ADD, every address is EC2's, and no ENI is left that nobody knows of.
func TestBurstWithFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		faults []ec2.Fault
	}{
		{"throttled", []ec2.Fault{
			{Action: "AssignPrivateIpAddresses", Error: "RequestLimitExceeded", Count: 2},
			{Action: "CreateNetworkInterface", Error: "RequestLimitExceeded", Count: 2},
			{Action: "AttachNetworkInterface", Error: "RequestLimitExceeded", Count: 1},
		}},
		{"answers lost after the effect", []ec2.Fault{
			{Action: "AssignPrivateIpAddresses", LostResponse: true, Count: 1},
			{Action: "CreateNetworkInterface", LostResponse: true, Count: 1},
			{Action: "AttachNetworkInterface", LostResponse: true, Count: 1},
			{Action: "ModifyNetworkInterfaceAttribute", LostResponse: true, Count: 1},
		}},
		{"an attachment fails", []ec2.Fault{
			{Action: "AttachNetworkInterface", Error: "InternalError", Count: 1},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := lab(t, one(200*time.Millisecond, map[string]string{"WARM_ENI_TARGET": "0"}))
			n := l.Nodes()[0]
			for _, f := range c.faults {
				if err := f.Validate(); err != nil {
					t.Fatal(err)
				}
				l.Cloud().AddFault(f)
			}
			started := time.Now()
			for i, err := range burst(t.Context(), l, 15) {
				if err != nil {
					t.Errorf("%s: %v", podName(i), err)
				}
			}
			t.Logf("15 ADDs took %s; EC2 calls: %v", time.Since(started).Round(time.Millisecond), calls(l, n))
			for _, f := range l.Cloud().Faults() {
				if f.Hits == 0 {
					t.Errorf("the fault of %s never struck", f.Action)
				}
			}
			checkHolders(t, l, n)
			checkReachable(t, l)
			checkDrops(t, l)
			eventually(t, time.Minute, "no ENI is attached to nothing, or would outlive its instance", func() bool {
				return !slices.ContainsFunc(l.Cloud().ENIs(), func(e ec2.ENI) bool {
					return e.Attachment == nil || !e.Attachment.DeleteOnTermination
				})
			})
		})
	}
}
