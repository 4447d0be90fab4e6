package ipamd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/checkpoint"
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
	t.d.Snapshot()
	return nil
}

// BenchmarkAddDel is what an ADD and a DEL cost in the daemon, without the files and without the socket, with all but 64
// of the node's addresses held.
func BenchmarkAddDel(b *testing.B) {
	benchAddDel(b, func(b *testing.B, o *Options) (start func(*Daemon)) {
		save := &takeState{}
		o.Checkpointer = save
		return func(d *Daemon) { save.d = d }
	})
}

// BenchmarkAddDelCommit is the same with the real files on a tmpfs, where they are on a node: each ADD and each DEL
// waits for a commit of its own, or shares one with those that come at the same time.
func BenchmarkAddDelCommit(b *testing.B) {
	benchAddDel(b, func(b *testing.B, o *Options) (start func(*Daemon)) {
		dir, err := os.MkdirTemp("/dev/shm", "bench-")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = os.RemoveAll(dir) })
		var d *Daemon
		store := checkpoint.New(checkpoint.Options{Path: filepath.Join(dir, "ipam.json"), JournalPath: filepath.Join(dir, "journal.json"),
			Source: func() checkpoint.Snapshot { return d.Snapshot() }, Log: slog.New(slog.DiscardHandler)})
		o.Checkpointer = store
		return func(made *Daemon) {
			d = made
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- store.Run(ctx) }()
			b.Cleanup(func() {
				cancel()
				if err := <-ended; err != nil {
					b.Error(err)
				}
			})
		}
	})
}

func benchAddDel(b *testing.B, checkpointer func(*testing.B, *Options) (start func(*Daemon))) {
	for _, n := range []int{1000, 4000} {
		for _, inFlight := range []int{1, 32} {
			b.Run(fmt.Sprintf("addresses=%d/inflight=%d", n, inFlight), func(b *testing.B) {
				o := fullNode(n)
				start := checkpointer(b, &o)
				d, err := New(o)
				if err != nil {
					b.Fatal(err)
				}
				start(d)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- d.Run(ctx) }()
				<-d.Ready()
				var group errgroup.Group
				group.SetLimit(64)
				for i := range n - 64 {
					group.Go(func() error {
						_, err := d.Add(ctx, pod(i))
						return err
					})
				}
				if err := group.Wait(); err != nil {
					b.Fatal(err)
				}
				var next atomic.Int64
				next.Store(int64(n))
				b.SetParallelism(max(inFlight/runtime.GOMAXPROCS(0), 1))
				before := cpuTime()
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
				// What neighbours on the machine do to the wall time they do not do to this.
				b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
				cancel()
				if err := <-done; err != nil {
					b.Error(err)
				}
			})
		}
	}
}

// fullNode is a node with n addresses on 16 ENIs.
func fullNode(n int) Options {
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
	o := testOptions(newCloud(enis, n/enis+1), warmpool.Targets{MinimumIP: n})
	o.Identity.PrimaryENI, o.Settings.Cooldown = "eni-00", 0
	o.EC2, o.Network = cloud, steadyHost{}
	return o
}

// cpuTime is the time that this process has spent on CPUs.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
