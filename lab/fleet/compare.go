package fleet

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Scenario is a trace with the settings that its users have.
type Scenario struct {
	Trace    string
	Settings map[string]string
	Duration time.Duration
}

// Scenarios are what both algorithms are compared in.
var Scenarios = []Scenario{
	{"web", nil, 2 * day}, // the default: WARM_ENI_TARGET=1
	{"ci", map[string]string{"WARM_IP_TARGET": "5", "MINIMUM_IP_TARGET": "15"}, day},
	{"batch", map[string]string{"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}, 3 * day},
	{"gpu", map[string]string{"WARM_IP_TARGET": "2", "MINIMUM_IP_TARGET": "4"}, 7 * day},
}

// ComparedTypes are the instance types of a comparison, small to large, two with GPUs.
var ComparedTypes = []string{"t3.small", "t3.medium", "m5.large", "m5.xlarge", "c5.4xlarge", "m5.24xlarge", "g4dn.xlarge", "p3dn.24xlarge"}

// Cell is one scenario on one instance type, under both algorithms.
type Cell struct {
	Trace        string `json:"trace"`
	Settings     string `json:"settings"`
	InstanceType string `json:"instanceType"`
	Ours         Result `json:"ours"`
	Upstream     Result `json:"upstream"`
}

// Ratios are ours to upstream's: of unused address-hours, and of calls to EC2.
func (c Cell) Ratios() (unused, calls float64) {
	return ratio(c.Ours.UnusedHours, c.Upstream.UnusedHours), ratio(float64(c.Ours.Calls()), float64(c.Upstream.Calls()))
}

func ratio(a, b float64) float64 {
	if b == 0 {
		return 1
	}
	return a / b
}

// CompareOptions say what to compare. The zero value of each stands for everything, with its own duration.
type CompareOptions struct {
	Scenarios []Scenario
	Types     []string
	Nodes     int           // of each cell
	Duration  time.Duration // instead of the scenarios' own
	Seed      uint64
	// Progress, if set, is called after each cell, by one goroutine at a time.
	Progress func(done, of int)
}

// DefaultCompareNodes is the size of a cell's fleet: the nodes differ in their pods.
const DefaultCompareNodes = 3

// Compare runs every scenario on every type under both algorithms, as many at a time as there are processors. The
// result does not depend on how many that are.
func Compare(ctx context.Context, o CompareOptions) ([]Cell, error) {
	if o.Scenarios == nil {
		o.Scenarios = Scenarios
	}
	if o.Types == nil {
		o.Types = ComparedTypes
	}
	if o.Nodes == 0 {
		o.Nodes = DefaultCompareNodes
	}
	cells := make([]Cell, len(o.Scenarios)*len(o.Types))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	var mu sync.Mutex
	done := 0
	for i := range cells {
		s, instanceType := o.Scenarios[i/len(o.Types)], o.Types[i%len(o.Types)]
		for _, algorithm := range []Algorithm{Ours, Upstream} {
			group.Go(func() error {
				trace, _ := TraceByName(s.Trace)
				c := Config{Algorithm: algorithm, Nodes: o.Nodes, InstanceTypes: []string{instanceType}, Settings: s.Settings, Trace: trace,
					Duration: s.Duration, Seed: o.Seed}
				if o.Duration > 0 {
					c.Duration = o.Duration
				}
				r, err := Run(ctx, c)
				if err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				cell := &cells[i]
				cell.Trace, cell.Settings, cell.InstanceType = s.Trace, r.Settings, instanceType
				if algorithm == Ours {
					cell.Ours = r
				} else {
					cell.Upstream = r
				}
				if done++; o.Progress != nil {
					o.Progress(done, 2*len(cells))
				}
				return nil
			})
		}
	}
	return cells, group.Wait()
}
