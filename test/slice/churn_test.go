package slice

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
)

// TestChurnChaos starts and deletes pods at random on two nodes while ipamd is killed and EC2 stumbles. In the end what
// the pods hold, what ipamd has written down and what EC2 says are the same, and everybody reaches everybody.
// CHAOS=1 goes on for five minutes.
func TestChurnChaos(t *testing.T) {
	t.Parallel()
	length := 8 * time.Second
	if os.Getenv("CHAOS") != "" {
		length = 5 * time.Minute
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	l := lab(t, cluster.Spec{
		Nodes:       []cluster.NodeSpec{{Name: "n1", Type: "t3.medium"}, {Name: "n2", Type: "t3.medium"}},
		AttachDelay: 300 * time.Millisecond, DetachDelay: 100 * time.Millisecond,
		Env: map[string]string{"IP_COOLDOWN_PERIOD": "1", "POOL_SHRINK_DELAY": "2"},
	})
	l.Cloud().AddFault(ec2.Fault{Action: "*", LostResponse: true, Probability: 0.03})
	l.Cloud().AddFault(ec2.Fault{Action: "*", Error: "RequestLimitExceeded", Probability: 0.1})

	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var work sync.WaitGroup
	adds, dels := make([]int, len(l.Nodes())*workers), make([]int, len(l.Nodes())*workers)
	for i, n := range l.Nodes() {
		for w := range workers {
			slot := i*workers + w
			random := rand.New(rand.NewPCG(seed, uint64(slot)))
			work.Go(func() { adds[slot], dels[slot] = churn(ctx, t, l, n.Name, w, random) })
		}
		work.Go(func() { killNowAndThen(ctx, t, n, rand.New(rand.NewPCG(seed, 100+uint64(i)))) })
	}
	work.Wait()
	t.Logf("ADDs by worker: %v; DELs: %v", adds, dels)

	for _, f := range l.Cloud().Faults() {
		l.Cloud().RemoveFault(f.ID)
	}
	eventually(t, 30*time.Second, "sandboxes of failed attempts are cleaned up", func() bool {
		return l.CollectGarbage(t.Context()) == nil && len(l.Broken()) == 0
	})
	for _, n := range l.Nodes() {
		checkHolders(t, l, n)
	}
	checkReachable(t, l)
	checkDrops(t, l)
}

const workers = 6

// churn adds and deletes one worker's pods, three at most.
func churn(ctx context.Context, t *testing.T, l *cluster.Cluster, node string, worker int, random *rand.Rand) (adds, dels int) {
	running := map[string]bool{}
	for ctx.Err() == nil {
		name := fmt.Sprintf("%s-%d-%d", node, worker, random.IntN(3))
		if running[name] {
			// A DEL is carried through: what is half deleted when the time is up would be a leak.
			if err := l.PodDel(context.WithoutCancel(ctx), node, namespace, name); err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
			delete(running, name)
			dels++
			continue
		}
		// The node has room for 15 pods; the 16th is refused, and its sandbox deleted.
		if _, err := l.PodAdd(context.WithoutCancel(ctx), node, namespace, name); err == nil {
			running[name] = true
			adds++
		}
	}
	return adds, dels
}

// killNowAndThen kills ipamd every other second and starts it again.
func killNowAndThen(ctx context.Context, t *testing.T, n *cluster.Node, random *rand.Rand) {
	for {
		select {
		case <-time.After(time.Second + time.Duration(random.Int64N(int64(2*time.Second)))):
		case <-ctx.Done():
			return
		}
		n.KillIPAMD()
		if err := n.StartIPAMD(context.WithoutCancel(ctx)); err != nil {
			t.Errorf("start ipamd: %v", err)
			return
		}
	}
}
