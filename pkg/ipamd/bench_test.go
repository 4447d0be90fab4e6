package ipamd

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/networkutils/hostnet"
)

// steadyCloud is an EC2 with one instance whose ENIs hold everything it may hold.
type steadyCloud struct {
	EC2
	enis []awsutils.ENI
}

func (s steadyCloud) DescribeENIs(context.Context, string) ([]awsutils.ENI, error) {
	return s.enis, nil
}
func (s steadyCloud) DescribeENIsByTag(context.Context, string, string) ([]awsutils.ENI, error) {
	return nil, nil
}

type steadyHost struct{ Network }

func (steadyHost) Apply(context.Context, hostnet.Config) (hostnet.Report, error) {
	return hostnet.Report{}, nil
}

// takeState is a Checkpointer that costs what taking the state costs.
type takeState struct{ d *Daemon }

func (t *takeState) Commit(context.Context) error {
	t.d.Durable()
	return nil
}

// BenchmarkAddDel is what an ADD and a DEL cost in the daemon, without the file and without the socket, with half of
// the node's addresses held.
func BenchmarkAddDel(b *testing.B) {
	for _, n := range []int{1000, 4000} {
		for _, inFlight := range []int{1, 32} {
			b.Run(fmt.Sprintf("%d/inflight=%d", n, inFlight), func(b *testing.B) {
				const enis = 16
				cloud := steadyCloud{}
				for e := range enis {
					eni := awsutils.ENI{ID: fmt.Sprintf("eni-%02d", e), Device: e, SubnetID: testSubnet, MAC: macOf(e), Type: "interface",
						Primary: netip.AddrFrom4([4]byte{10, 1, byte(e), 1}), InstanceID: testInstance, DeleteOnTermination: true}
					for i := range n / enis {
						eni.Secondary = append(eni.Secondary, netip.AddrFrom4([4]byte{10, 2 + byte(e), byte(i >> 8), byte(i)}))
					}
					cloud.enis = append(cloud.enis, eni)
				}
				o := testOptions(newCloud(enis, n/enis+1), warmpool.Targets{WarmENI: 1})
				o.Identity.PrimaryENI, o.Settings.Cooldown = "eni-00", 0
				save := &takeState{}
				o.EC2, o.Network, o.Checkpointer = cloud, steadyHost{}, save
				d, err := New(o)
				if err != nil {
					b.Fatal(err)
				}
				save.d = d
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- d.Run(ctx) }()
				<-d.Ready()
				for i := range n / 2 {
					if _, err := d.Add(ctx, pod(i)); err != nil {
						b.Fatal(err)
					}
				}
				var next atomic.Int64
				next.Store(int64(n))
				b.SetParallelism(max(inFlight/runtime.GOMAXPROCS(0), 1))
				b.ResetTimer()
				work := func() {
					req := pod(int(next.Add(1)))
					if _, err := d.Add(ctx, req); err != nil {
						b.Error(err)
					}
					if _, err := d.Del(ctx, DelRequest{Sandbox: req.Sandbox}); err != nil {
						b.Error(err)
					}
				}
				if inFlight == 1 {
					for range b.N {
						work()
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							work()
						}
					})
				}
				b.StopTimer()
				cancel()
				if err := <-done; err != nil {
					b.Error(err)
				}
			})
		}
	}
}
