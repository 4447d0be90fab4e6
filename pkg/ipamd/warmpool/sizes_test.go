package warmpool

import (
	_ "embed"
	"encoding/csv"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The pool sizes that upstream documents, as it has them.
//
//go:embed testdata/warm-target-tables.csv
var sizesCSV string

// size is a row of the table.
type size struct {
	line     int // in the file
	mode     string
	instance string
	targets  Targets
	pods     int
	enis     int
	held     int // addresses or prefixes
	unused   int
	perENI   []int // sorted
}

func (s size) settings() string {
	var out []string
	add := func(name string, n int) {
		if n > 0 {
			out = append(out, fmt.Sprintf("%s=%d", name, n))
		}
	}
	if !s.targets.byAddress() && s.mode == "prefix" {
		add("WARM_PREFIX_TARGET", s.targets.WarmPrefix)
	} else if !s.targets.byAddress() {
		add("WARM_ENI_TARGET", s.targets.WarmENI)
	}
	add("WARM_IP_TARGET", s.targets.WarmIP)
	add("MINIMUM_IP_TARGET", s.targets.MinimumIP)
	return strings.Join(out, " ")
}

// notFollowed has the rows that contradict the formulas: what is held instead, and why.
var notFollowed = map[int]struct {
	enis, held, unused int
	why                string
}{
	28: {1, 2, 32, "one prefix is fewer addresses than MINIMUM_IP_TARGET=20, and the row's own last column has two"},
	33: {1, 2, 29, "a second ENI without a prefix, though 2 of the first one's 49 slots are used"},
	34: {1, 7, 17, "two more ENIs without a prefix"},
	38: {1, 4, 19, "a second ENI without a prefix"},
}

var limitsOf = map[string]Limits{
	"t3.small":      {InstanceType: "t3.small", ENIs: 3, IPsPerENI: 3},
	"p3dn.24xlarge": {InstanceType: "p3dn.24xlarge", ENIs: 15, IPsPerENI: 49},
}

func sizes(t *testing.T) (out []size) {
	t.Helper()
	in := csv.NewReader(strings.NewReader(sizesCSV))
	in.Comment = '#'
	rows, err := in.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range rows[1:] {
		number := func(at int) int {
			n, err := strconv.Atoi(row[at])
			if err != nil && row[at] != "" {
				t.Fatal(err)
			}
			return n
		}
		s := size{line: i + 3, mode: row[0], instance: row[1], pods: number(6), enis: number(7), held: number(8), unused: number(9),
			targets: Targets{WarmENI: 1, WarmIP: number(4), MinimumIP: number(5), Prefixes: row[0] == "prefix"}}
		if s.targets.WarmPrefix = number(3); s.mode == "prefix" {
			s.targets.WarmPrefix = max(s.targets.WarmPrefix, 1)
		}
		for _, n := range strings.Split(row[10], "+") {
			k, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			s.perENI = append(s.perENI, k)
		}
		slices.Sort(s.perENI)
		out = append(out, s)
	}
	if len(out) != 36 {
		t.Fatalf("%d rows in the table, want 36", len(out))
	}
	return out
}

// TestDocumentedPoolSizes runs every row of the table, with pods that come one by one and all at once. Which of the
// ENIs holds how many is not part of it where the table names a split.
func TestDocumentedPoolSizes(t *testing.T) {
	t.Parallel()
	for _, s := range sizes(t) {
		t.Run(fmt.Sprintf("line %d: %s %s %s %d pods", s.line, s.mode, s.instance, s.settings(), s.pods), func(t *testing.T) {
			t.Parallel()
			deviation, deviates := notFollowed[s.line]
			if deviates {
				s.enis, s.held, s.unused = deviation.enis, deviation.held, deviation.unused
			}
			for _, way := range []string{"one by one", "at once"} {
				n := newNode(rand.New(rand.NewPCG(1, 1)), s.targets, limitsOf[s.instance])
				must := func() {
					if err := n.converge(); err != nil {
						t.Fatalf("%s: %v", way, err)
					}
				}
				must()
				if way == "at once" {
					n.waiting = s.pods
				}
				for range s.pods {
					if way == "one by one" {
						n.waiting++
					}
					must()
				}
				got := n.counts()
				if len(n.enis) != s.enis || got.Blocks != s.held || got.Free != s.unused {
					t.Errorf("%s: %d ENIs hold %d, %d unused; want %d, %d and %d", way, len(n.enis), got.Blocks, got.Free, s.enis, s.held, s.unused)
				}
				if s.mode == "secondary-ip" {
					var split []int
					for _, e := range n.enis {
						split = append(split, len(e.blocks))
					}
					if slices.Sort(split); !slices.Equal(split, s.perENI) {
						t.Errorf("%s: %v, want %v", way, split, s.perENI)
					}
				}
			}
		})
	}
}

// TestPoolSizesOfWhatIsLeft: pods leave a node that was fuller, those of the ENIs filled last first, and the pool comes
// back to the documented size. Where full ENIs are counted, up to one more stays.
func TestPoolSizesOfWhatIsLeft(t *testing.T) {
	t.Parallel()
	for _, s := range sizes(t) {
		if s.mode != "secondary-ip" {
			continue
		}
		t.Run(fmt.Sprintf("line %d", s.line), func(t *testing.T) {
			t.Parallel()
			l := limitsOf[s.instance]
			p := newPool(rand.New(rand.NewPCG(1, 1)), s.targets, l)
			rest := func() {
				if err := p.converge(Decision{}, func(f string, a ...any) error { return fmt.Errorf(f, a...) }); err != nil {
					t.Fatal(err)
				}
			}
			p.state.Waiting = min(l.ENIs*l.IPsPerENI, 2*s.pods+1)
			rest()
			for _, n, _ := p.counts(); n > s.pods; _, n, _ = p.counts() {
				last := 0
				for i := range p.state.ENIs {
					if p.state.ENIs[i].Assigned > 0 {
						last = i
					}
				}
				e := &p.state.ENIs[last]
				e.Assigned--
				e.Cooling++
				p.cools[e.ID] = append(p.cools[e.ID], p.now.Add(cooldown))
			}
			rest()
			total, _, free := p.counts()
			if !s.targets.byAddress() {
				if free < s.unused || free >= s.unused+l.IPsPerENI {
					t.Errorf("%d free, want %d and less than an ENI more", free, s.unused)
				}
			} else if total != s.held || free != s.unused {
				t.Errorf("%d held, %d free, want %d and %d", total, free, s.held, s.unused)
			}
		})
	}
}
