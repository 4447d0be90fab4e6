package engine

import (
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/warmpool"
)

// TestFragmentedSubnet: the subnet has hundreds of addresses and no free /28. 50 pods of an m5.xlarge start all the
// same, and when /28s are back, what comes next is prefixes within a minute. EC2 has two errors for it.
func TestFragmentedSubnet(t *testing.T) {
	for _, shape := range []string{"InsufficientCidrBlocks", "InvalidParameterValue"} {
		t.Run(shape, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var fillers []string
				fragment := func(r *rig) {
					api := r.operator()
					for at := r.subnet.CIDR.Addr().Next().Next().Next().Next(); r.subnet.CIDR.Contains(at); {
						out, err := api.CreateNetworkInterface(t.Context(), &sdk.CreateNetworkInterfaceInput{
							SubnetId: &r.subnet.ID, PrivateIpAddress: aws.String(at.String())})
						if err != nil {
							t.Fatal(err)
						}
						fillers = append(fillers, *out.NetworkInterface.NetworkInterfaceId)
						for range 16 {
							at = at.Next()
						}
					}
					if free := r.cloud.FreeAddresses(r.subnet.ID); free < 200 {
						t.Fatalf("%d free addresses", free)
					}
				}
				rewritten := &otherShape{}
				wire := func(to http.RoundTripper) http.RoundTripper {
					if rewritten.RoundTripper = to; shape == "InvalidParameterValue" {
						return rewritten
					}
					return to
				}
				settings := ipamd.Settings{Targets: warmpool.Targets{Prefixes: true, WarmPrefix: 1, MaxPods: 110}, SubnetDiscovery: true}
				r := newRig(t, "m5.xlarge", settings, "10.0.0.0/23", fragment, wire)
				time.Sleep(10 * time.Second)
				took := r.burst(0, 50)
				enis, prefixes, singles := r.held()
				t.Logf("50 pods waited %s at most; %d ENIs, %d prefixes, %d single addresses%s", took.Round(time.Millisecond), enis, prefixes,
					singles, table(r.calls()))
				if prefixes != 0 || singles < 50 || took > 10*time.Second {
					t.Error("want no prefix, 50 single addresses, and no longer than attaching takes")
				}
				if shape == "InvalidParameterValue" && rewritten.hits.Load() == 0 {
					t.Error("EC2 never said so")
				}
				time.Sleep(time.Hour)
				idle := total(r.calls())
				time.Sleep(24 * time.Hour)
				t.Logf("a day without a new pod: %d calls", total(r.calls())-idle)
				if n := total(r.calls()) - idle; n > 100 {
					t.Errorf("%d calls", n)
				}
				api := r.operator()
				for _, id := range fillers {
					if _, err := api.DeleteNetworkInterface(t.Context(), &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id}); err != nil {
						t.Fatal(err)
					}
				}
				back := time.Now()
				took = r.burst(50, 40)
				for prefixes == 0 && time.Since(back) < 2*time.Minute {
					time.Sleep(100 * time.Millisecond)
					_, prefixes, _ = r.held()
				}
				was := singles
				_, prefixes, singles = r.held()
				t.Logf("/28s are back: the first prefix after %s; 40 pods waited %s at most; %d prefixes, %d single addresses",
					time.Since(back).Round(time.Millisecond), took.Round(time.Millisecond), prefixes, singles)
				if prefixes < 3 || singles > was || time.Since(back) > time.Minute {
					t.Error("new capacity is not prefixes within a minute")
				}
				r.stop()
			})
		})
	}
}
