package slice

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
)

var repairRounds = flag.Int("repair", 0, "measure repairs: how often each damage is done")

// TestHostStateComesBack: what somebody takes away of the node's network is put back, to the letter and without touching
// what others have, and connections that pods began meanwhile come about.
func TestHostStateComesBack(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, nil))
	for i, err := range burst(t.Context(), l, 8) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	p := patch{t, l, l.Nodes()[0]}
	eventually(t, 30*time.Second, "three ENIs are wired", func() bool { return strings.Contains(p.sh("ip rule"), "lookup 3") })
	p.sh(foreignRoutes + foreignRules + foreignTable)
	want, foreign := p.atRest(), p.sh(readForeign)
	internet := p.internet()
	for i, d := range damages() {
		victims := p.victims()
		v := victims[i%len(victims)]
		p.sh(d.script(v))
		gap := make(chan error, 1)
		go func() { gap <- p.connect(v.pod, internet, time.Minute) }()
		p.comesBack(d.kind, want)
		if err := <-gap; err != nil {
			t.Errorf("%s: a connection that began right after: %v", d.kind, err)
		}
		if now := p.sh(readForeign); now != foreign {
			t.Errorf("%s: what others have was\n%s\nand is\n%s", d.kind, foreign, now)
		}
	}
	checkReachable(t, l)
}

// TestRepairTimes measures: 100 pods on four ENIs, each damage -repair times. It asserts that everything comes back; how
// fast is printed (make repair).
func TestRepairTimes(t *testing.T) {
	if *repairRounds == 0 {
		t.Log("measured by make repair; TestHostStateComesBack has every damage once")
		return
	}
	const pods = 100
	l := lab(t, cluster.Spec{
		Nodes:       []cluster.NodeSpec{{Name: "n1", Type: "m5.4xlarge"}},
		AttachDelay: 100 * time.Millisecond, DetachDelay: 100 * time.Millisecond, Env: map[string]string{"MAX_ENI": "4"},
	})
	var group errgroup.Group
	group.SetLimit(8)
	for i := range pods {
		group.Go(func() error {
			_, err := l.PodAdd(t.Context(), "n1", namespace, podName(i))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	p := patch{t, l, l.Nodes()[0]}
	eventually(t, time.Minute, "four ENIs are wired", func() bool { return strings.Contains(p.sh("ip rule"), "lookup 4") })
	p.sh(foreignRoutes + foreignRules + foreignTable)
	want, foreign := p.atRest(), p.sh(readForeign)
	internet, victims := p.internet(), p.victims()
	t.Logf("%d pods on %d ENIs", len(l.Pods("n1")), len(attachedENIs(l, p.n)))

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "damage\tstate p50\tp99\tmax\tnew connection p50\tp99\tmax\tSYN in the gap p50\tp99\tmax\t")
	var states, connects, gaps []time.Duration
	for _, d := range damages() {
		var state, connect, gap []time.Duration
		for round := range *repairRounds {
			v := victims[round%len(victims)]
			p.sh(d.script(v))
			start := time.Now()
			var waiting errgroup.Group
			var newConn, gapConn time.Duration
			waiting.Go(func() error {
				err := p.connect(v.pod, internet, time.Minute)
				gapConn = time.Since(start)
				return err
			})
			waiting.Go(func() error {
				for time.Since(start) < time.Minute {
					if p.connect(v.pod, internet, 150*time.Millisecond) == nil {
						newConn = time.Since(start)
						return nil
					}
				}
				return fmt.Errorf("no new connection within a minute")
			})
			p.comesBack(d.kind, want)
			state = append(state, time.Since(start))
			if err := waiting.Wait(); err != nil {
				t.Errorf("%s: %v", d.kind, err)
			}
			connect, gap = append(connect, newConn), append(gap, gapConn)
			if now := p.sh(readForeign); now != foreign {
				t.Fatalf("%s: what others have was\n%s\nand is\n%s", d.kind, foreign, now)
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\n", d.kind, figures(state), figures(connect), figures(gap))
		states, connects, gaps = append(states, state...), append(connects, connect...), append(gaps, gap...)
	}
	fmt.Fprintf(w, "all\t%s\t%s\t%s\t\n", figures(states), figures(connects), figures(gaps))
	_ = w.Flush()
	t.Logf("%d kinds of damage, %d times each; times since the damage was done\n%s", len(damages()), *repairRounds, table.String())
	checkReachable(t, l)
}

// figures are the median, the 99th percentile and the largest.
func figures(list []time.Duration) string {
	sorted := slices.Sorted(slices.Values(list))
	at := func(q float64) string {
		return fmt.Sprintf("%.2f s", sorted[min(int(q*float64(len(sorted))), len(sorted)-1)].Seconds())
	}
	return at(.5) + "\t" + at(.99) + "\t" + at(1)
}
