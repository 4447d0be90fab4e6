package slice

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
)

// TestKillDuringBurstChaos kills ipamd at a random moment of a burst of 15 ADDs and starts it again. The lab does what
// a kubelet does: a failed sandbox is deleted and a new one made. In the end no address is held by two pods, none is
// leaked, and all pods reach each other. CHAOS=1 tries 50 seeds.
func TestKillDuringBurstChaos(t *testing.T) {
	t.Parallel()
	seeds := 5
	if os.Getenv("CHAOS") != "" {
		seeds = 50
	}
	base := rand.Uint64N(1 << 32)
	for i := range seeds {
		seed := base + uint64(i)
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			killDuringBurst(t, seed)
		})
	}
}

func killDuringBurst(t *testing.T, seed uint64) {
	const (
		pods   = 15
		attach = 700 * time.Millisecond
		// A burst takes about the time of one attachment.
		latest = attach + 400*time.Millisecond
	)
	random := rand.New(rand.NewPCG(seed, 0))
	moment := time.Duration(random.Int64N(int64(latest)))
	t.Logf("ipamd is killed %s after the burst begins", moment)

	l := lab(t, one(attach, nil))
	n := l.Nodes()[0]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var kubelet sync.WaitGroup
	for i := range pods {
		kubelet.Go(func() {
			if err := addUntilRunning(ctx, l, podName(i)); err != nil {
				t.Errorf("%s: %v", podName(i), err)
			}
		})
	}
	timer := time.NewTimer(moment)
	defer timer.Stop()
	<-timer.C
	n.KillIPAMD()
	running := len(l.Pods("n1"))
	if err := n.StartIPAMD(ctx); err != nil {
		t.Fatal(err)
	}
	kubelet.Wait()
	t.Logf("%d pods ran when ipamd was killed, %d do now", running, len(l.Pods("n1")))
	if err := l.CollectGarbage(ctx); err != nil {
		t.Errorf("sandboxes are left: %v", err)
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
	for _, p := range l.Pods("n1") {
		if err := l.PodDel(ctx, p.Node, p.Namespace, p.Name); err != nil {
			t.Error(err)
		}
	}
	if held := allocations(t, n); len(held) > 0 {
		t.Errorf("no pod is left, but these addresses are held: %v", held)
	}
	// A Create that was under way when ipamd died may take effect after the first look of its next life, which looks
	// again after 30 s, for EC2's readers lag as well.
	eventually(t, time.Minute, "no ENI is attached to nothing", func() bool {
		return !slices.ContainsFunc(l.Cloud().ENIs(), func(e ec2.ENI) bool { return e.Status == "available" })
	})
}

// addUntilRunning does what a kubelet does for a pod: PodAdd deletes a sandbox that failed, and the next one is new.
func addUntilRunning(ctx context.Context, l *cluster.Cluster, name string) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := l.PodAdd(ctx, "n1", namespace, name)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}
