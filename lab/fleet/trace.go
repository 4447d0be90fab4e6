package fleet

import (
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Trace says which pods come to a node, and when.
type Trace struct {
	Name string
	// About says in a line what it is like.
	About string
	// Pods are a node's, ordered by time. It never has more of them at once than there is room for.
	Pods func(TraceNode) []Pod
}

// TraceNode is the node that a trace is made for.
type TraceNode struct {
	Index        int
	InstanceType string
	Room         int // for pods with an address of their own
	Duration     time.Duration
	Seed         uint64
}

// Traces are the built-in ones.
var Traces = []Trace{
	{"idle", "no pods but three of DaemonSets", idle},
	{"web", "steady web: four pods per vCPU, about half of that in use, less by night; each pod is replaced once or twice a day", web},
	{"ci", "CI bursts: one job per vCPU; every 10 to 40 minutes a fifth to four fifths of them within 30 s, each runs for 2 to 12 minutes", ci},
	{"batch", "nightly batch: two jobs per vCPU; nearly empty by day, from two o'clock on jobs that run for 5 to 25 minutes fill the node for three hours", batch},
	{"gpu", "GPU: one to four long pods beside those of DaemonSets", gpu},
}

// TraceByName gives a built-in trace.
func TraceByName(name string) (Trace, bool) {
	i := slices.IndexFunc(Traces, func(t Trace) bool { return t.Name == name })
	if i < 0 {
		return Trace{}, false
	}
	return Traces[i], true
}

// daemonSets is how many pods with an address of their own every node has from the start.
const daemonSets = 3

// leastPods is what even the smallest node is given.
const leastPods = 4

// vCPUs is the number that a size's name stands for.
func vCPUs(instanceType string) int {
	_, size, _ := strings.Cut(instanceType, ".")
	if n, ok := strings.CutSuffix(size, "xlarge"); ok {
		if n == "" {
			return 4
		}
		if n, err := strconv.Atoi(n); err == nil {
			return 4 * n
		}
	}
	if strings.HasPrefix(size, "metal") {
		return 96
	}
	return 2
}

// maker makes one node's pods.
type maker struct {
	TraceNode
	*rand.Rand
	jobs bool
	full int // pods that the node is made for, beside those of DaemonSets
	pods []Pod
	ends []time.Duration // of pods, for the room
}

// newMaker makes a maker for a node that takes so many pods per vCPU.
func newMaker(n TraceNode, perCPU int) *maker {
	m := &maker{TraceNode: n, Rand: rand.New(rand.NewPCG(n.Seed, uint64(n.Index)+0x7ace))}
	m.full = min(max(perCPU*vCPUs(n.InstanceType), leastPods), n.Room-daemonSets)
	// Kubernetes starts a node's DaemonSets as soon as it is there.
	for range min(daemonSets, n.Room) {
		m.add(m.between(20*time.Second, 40*time.Second), n.Duration)
	}
	return m
}

// between draws a time.
func (m *maker) between(low, high time.Duration) time.Duration {
	return low + time.Duration(m.Float64()*float64(high-low))
}

// add adds a pod if there is room for it; pods must be added by time, but for those of one moment.
func (m *maker) add(at, life time.Duration) bool {
	m.ends = slices.DeleteFunc(m.ends, func(end time.Duration) bool { return end <= at })
	if len(m.ends) >= m.Room || at >= m.Duration {
		return false
	}
	m.ends = append(m.ends, at+life)
	m.pods = append(m.pods, Pod{at, life, m.jobs})
	return true
}

// running is how many pods there are at a time.
func (m *maker) running(at time.Duration) (n int) {
	for _, end := range m.ends {
		if end > at {
			n++
		}
	}
	return n
}

func (m *maker) done() []Pod {
	slices.SortStableFunc(m.pods, func(a, b Pod) int { return cmp.Compare(a.At, b.At) })
	return m.pods
}

func idle(n TraceNode) []Pod { return newMaker(n, 0).done() }

const day = 24 * time.Hour

// web follows a curve over the day with its least at four o'clock. Pods are replaced by rollouts, about 1.5 a day, one
// quarter at a time.
func web(n TraceNode) []Pod {
	m := newMaker(n, 4)
	level := 0.45 + 0.2*m.Float64()
	step := 2 * time.Minute
	for at := time.Minute; at < n.Duration; at += step {
		hour := math.Mod(at.Hours(), 24)
		wave := -0.15 * math.Cos((hour-4)/24*2*math.Pi)
		want := int(float64(m.full) * (level + wave))
		for m.running(at)-daemonSets < want {
			// About 16 hours; the scheduler spreads a deployment's pods over seconds.
			if !m.add(at+m.between(0, 5*time.Second), m.between(8*time.Hour, day)) {
				break
			}
		}
	}
	return m.done()
}

func ci(n TraceNode) []Pod {
	m := newMaker(n, 1)
	m.jobs = true
	for at := m.between(2*time.Minute, 20*time.Minute); at < n.Duration; at += m.between(10*time.Minute, 40*time.Minute) {
		for range max(1, int(float64(m.full)*(0.2+0.6*m.Float64()))) {
			m.add(at+m.between(0, 30*time.Second), m.between(2*time.Minute, 12*time.Minute))
		}
	}
	return m.done()
}

func batch(n TraceNode) []Pod {
	m := newMaker(n, 2)
	for range max(1, m.full/12) {
		m.add(m.between(time.Minute, 2*time.Minute), n.Duration)
	}
	m.jobs = true
	for night := 2 * time.Hour; night < n.Duration; night += day {
		want := int(float64(m.full) * (0.7 + 0.25*m.Float64()))
		// A job's pod is followed by the next one.
		for at := night; at < night+3*time.Hour; at += 30 * time.Second {
			for m.running(at)-daemonSets < want {
				if !m.add(at+m.between(0, 20*time.Second), m.between(5*time.Minute, 25*time.Minute)) {
					break
				}
			}
		}
	}
	return m.done()
}

func gpu(n TraceNode) []Pod {
	m := newMaker(n, 0)
	for at := m.between(time.Minute, time.Hour); at < n.Duration; at += m.between(2*time.Hour, 10*time.Hour) {
		for range 1 + m.IntN(4) {
			if m.running(at) < daemonSets+4 {
				m.add(at+m.between(0, 10*time.Second), m.between(time.Hour, 9*time.Hour))
			}
		}
	}
	return m.done()
}

// ReadTrace reads a trace: lines of CSV with the second at which a pod comes, the number of its node (from 0, taken
// modulo the nodes of the fleet) and how many seconds it stays. A first line of words is a heading.
func ReadTrace(name string, r io.Reader, nodes int) (Trace, error) {
	in := csv.NewReader(r)
	in.FieldsPerRecord, in.Comment, in.TrimLeadingSpace = 3, '#', true
	byNode := map[int][]Pod{}
	for line := 1; ; line++ {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Trace{}, fmt.Errorf("%s: %w", name, err)
		}
		at, err1 := strconv.ParseFloat(record[0], 64)
		node, err2 := strconv.Atoi(record[1])
		life, err3 := strconv.ParseFloat(record[2], 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			if line == 1 {
				continue
			}
			return Trace{}, fmt.Errorf("%s: record %d: %w", name, line, err)
		}
		if at < 0 || node < 0 || life <= 0 || nodes < 1 {
			return Trace{}, fmt.Errorf("%s: record %d: a pod comes at a second from 0 on, to a node from 0 on, and stays for a while", name, line)
		}
		seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		byNode[node%nodes] = append(byNode[node%nodes], Pod{At: seconds(at), Life: seconds(life)})
	}
	for _, pods := range byNode {
		slices.SortStableFunc(pods, func(a, b Pod) int { return cmp.Compare(a.At, b.At) })
	}
	return Trace{Name: name, About: "from a file", Pods: func(n TraceNode) []Pod { return byNode[n.Index] }}, nil
}
