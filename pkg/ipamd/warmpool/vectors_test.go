package warmpool

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var updateDocs = flag.Bool("update", false, "write the tables of docs/warm-pool.md")

// vector is one of upstream's test vectors for a single decision.
type vector struct {
	id, given string
	upstream  string
	targets   Targets
	state     State
	want      string // as brief writes it
	// why is empty where upstream is followed.
	why string
}

const (
	onDemand = "0 means on demand: nothing is brought in before a pod waits"
)

// vectors are numbers 1 to 4 of the list: too low, targets, which ENI may go. An ENI has 3 slots.
func vectors() []vector {
	fixed := func(e ENI) ENI { e.Fixed = true; return e }
	three := []ENI{eni(0, 2, 2, 0), eni(1, 2, 0, 0), eni(2, 1, 0, 0)}
	two := three[:2]
	x := func(n int) Targets { return Targets{Prefixes: true, WarmPrefix: n, WarmENI: 1} }
	pd5 := Targets{Prefixes: true, WarmIP: 5, WarmPrefix: 1}
	empty, full := state(0, eni(0, 0, 0, 0)), state(0, eni(0, 3, 3, 0))
	return []vector{
		{"C1", "no address, E=1", "too low", Targets{WarmENI: 1}, empty, "+3@0", ""},
		{"C1", "no address, E=0", "too low", Targets{}, empty, "", onDemand},
		{"C1", "no address, E=0, a pod waits", "(no such signal)", Targets{}, state(1, eni(0, 0, 0, 0)), "+3@0", ""},
		{"C1", "no address, W=3", "too low", Targets{WarmIP: 3}, empty, "+3@0", ""},
		{"C1", "3 free, W=1 (M=3)", "not too low", Targets{WarmIP: 1, MinimumIP: 3}, state(0, eni(0, 3, 0, 0)), "", ""},
		{"C1", "1 of 3 used, E=1", "too low", Targets{WarmENI: 1}, state(0, eni(0, 3, 1, 0)), "new@1:3", ""},
		{"C1", "1 of 3 used, E=0", "not too low", Targets{}, state(0, eni(0, 3, 1, 0)), "", ""},
		{"C1", "3 of 3 used, E=1", "too low", Targets{WarmENI: 1}, full, "new@1:3", ""},
		{"C1", "3 of 3 used, E=0", "too low", Targets{}, full, "", onDemand},
		{"C1", "3 of 3 used, E=0, a pod waits", "(no such signal)", Targets{}, state(1, eni(0, 3, 3, 0)), "new@1:3", ""},
		{"C1", "3 of 3 used, W=5, max-pods=3", "not too low", Targets{WarmIP: 5, MaxPods: 3}, full, "", ""},
		{"C2", "no prefix, X=1", "too low", x(1), empty, "+1p@0", ""},
		{"C2", "no prefix, X=0", "too low", x(0), empty, "", onDemand},
		{"C2", "one free prefix, X=1", "not too low", x(1), state(0, prefixed(0, 0, 0, 0)), "", ""},
		{"C2", "1 address used, X=1", "too low", x(1), state(0, prefixed(0, 0, 0, 1)), "+1p@0", ""},
		{"C2", "1 address used, X=0", "not too low", x(0), state(0, prefixed(0, 0, 0, 1)), "", ""},
		{"C2", "3 addresses used, max-pods=4", "not too low", Targets{Prefixes: true, WarmPrefix: 1, MaxPods: 4}, state(0, prefixed(0, 0, 0, 3)), "", ""},
		{"C3", "W=5, no address", "short 5", Targets{WarmIP: 5}, empty, "+3@0 new@1:2", ""},
		{"C3", "W=5, 2 addresses", "short 3", Targets{WarmIP: 5}, state(0, eni(0, 2, 0, 0)), "+1@0 new@1:2", ""},
		{"C3", "W=5, 5 addresses", "short 0, over 0", Targets{WarmIP: 5}, state(0, eni(0, 3, 0, 0), eni(1, 2, 0, 0)), "", ""},
		{"C3", "W=5 with prefixes, none", "short 1", pd5, empty, "+1p@0", ""},
		{"C3", "W=5 with prefixes, two free", "over 1", pd5, state(0, prefixed(0, 0, 0, 0, 0)), "-1p@0", ""},
		{"C3", "W=5 with prefixes, one free", "short 0, over 0", pd5, state(0, prefixed(0, 0, 0, 0)), "", ""},
		{"C4", "2/2 used, 2 free, 1 free; W=3 M=1", "none may go", Targets{WarmIP: 3, MinimumIP: 1}, state(0, three...), "", ""},
		{"C4", "the same; W=1 M=5", "none may go", Targets{WarmIP: 1, MinimumIP: 5}, state(0, three...), "", ""},
		{"C4", "the same; W=2 M=4", "the third", Targets{WarmIP: 2, MinimumIP: 4}, state(0, three...), "del@2", ""},
		{"C4", "2/2 used, 2 free; W=0 M=3", "none may go", Targets{MinimumIP: 3}, state(0, two...), "-1@1", ""},
		{"C4", "the same; W=0 M=2", "the second", Targets{MinimumIP: 2}, state(0, two...), "del@1", ""},
		{"C4", "a trunk or EFA interface", "never", Targets{MinimumIP: 2}, state(0, three[0], fixed(eni(1, 0, 0, 0))), "", ""},
		{"C4", "an empty old ENI", "may go", Targets{MinimumIP: 2}, state(0, three[0], eni(1, 0, 0, 0)), "del@1", ""},
	}
}

// elsewhere has the vectors that are not the planner's, and the tests that hold them.
var elsewhere = []struct{ id, given, test, why string }{
	{"C5", "a repeated ADD gets the same address", "pkg/ipamd/datastore TestAssignIsIdempotent", ""},
	{"C5", "a failed checkpoint leaves no trace", "pkg/ipamd TestFailedCommitLeavesNoTrace", ""},
	{"C5", "releasing what is not known: `datastore: unknown pod`", "pkg/ipamd/datastore TestReleaseOfUnknownPod", ""},
	{"C6", "route tables: (0,0)=254, (0,4)=5, (1,0)=10100, (1,1)=10101", "pkg/networkutils/names TestRouteTable", ""},
	{"C7", "pods with several interfaces, and a second card", "", "several network cards come later; until then only the default card serves"},
	{"C8", "which subnets may be used", "pkg/ipamd TestSubnetTags", ""},
	{"C9", "an ENI id out of an error's text", "", "ENIs are asked for by filter, which knows no unknown id: there is no text to read"},
	{"C10", "restore drops allocations whose veth is missing", "pkg/ipamd/bootstrap TestRestore",
		"nothing is forgotten on restore; who is gone is found by looking twice (W-03, W-07)"},
	{"C11", "pool sizes of a t3.small", "pkg/ipamd/warmpool TestDocumentedPoolSizes", ""},
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for _, v := range vectors() {
		t.Run(v.id+" "+v.given, func(t *testing.T) {
			t.Parallel()
			if got := brief(Plan(v.state, v.targets, limitsOf["t3.small"], t0)); got != v.want {
				t.Errorf("plan %q, want %q", got, v.want)
			}
		})
	}
	for _, e := range elsewhere {
		if e.test == "" && e.why == "" {
			t.Errorf("%s %s: neither a test nor a reason", e.id, e.given)
		}
		dir, name, _ := strings.Cut(e.test, " ")
		if name == "" {
			continue
		}
		files, _ := filepath.Glob(filepath.Join("../../..", dir, "*_test.go"))
		found := false
		for _, file := range files {
			text, err := os.ReadFile(file)
			found = found || err == nil && strings.Contains(string(text), "func "+name+"(")
		}
		if !found {
			t.Errorf("%s: there is no %s", e.id, e.test)
		}
	}
}

// acceptance are rows 71 to 89 of upstream's acceptance list: what a node without pods holds. Upstream runs them on
// nodes of 4 ENIs with 14 slots.
type acceptance struct {
	row      int
	targets  Targets
	maxENI   int
	upstream string
	enis     int // 0: not said
	blocks   int // of the mode's kind; 0: not said
}

func acceptances() (out []acceptance) {
	e := func(row, warm, limit, enis int, upstream string) {
		out = append(out, acceptance{row: row, targets: Targets{WarmENI: warm}, maxENI: limit, enis: enis, upstream: upstream})
	}
	e(71, 3, 2, 2, "2 ENIs")
	e(72, 3, 0, 3, "3 ENIs")
	e(73, 2, 0, 2, "2 ENIs")
	five := []struct{ warm, minimum, ips int }{{2, 0, 2}, {16, 0, 16}, {0, 2, 2}, {0, 16, 16}, {10, 6, 10}}
	for i, f := range five {
		out = append(out, acceptance{row: 74 + i, targets: Targets{WarmENI: 1, WarmIP: f.warm, MinimumIP: f.minimum}, blocks: f.ips,
			upstream: fmt.Sprintf("%d addresses", f.ips)})
	}
	for i, f := range five {
		out = append(out, acceptance{row: 79 + i, targets: Targets{Prefixes: true, WarmENI: 1, WarmPrefix: 1, WarmIP: f.warm, MinimumIP: f.minimum},
			blocks: 1, upstream: "1 prefix"})
	}
	out = append(out, acceptance{row: 84, targets: Targets{Prefixes: true, WarmENI: 1, WarmPrefix: 2}, blocks: 2, upstream: "2 free prefixes"})
	// The list does not say which combinations; these have the IP targets go before WARM_PREFIX_TARGET.
	for i, f := range []struct{ warm, minimum, prefixes int }{{1, 0, 2}, {0, 10, 3}, {2, 5, 2}, {16, 1, 1}, {5, 16, 4}} {
		out = append(out, acceptance{row: 85 + i, targets: Targets{Prefixes: true, WarmENI: 1, WarmPrefix: f.prefixes, WarmIP: f.warm,
			MinimumIP: f.minimum}, blocks: 1, upstream: "1 prefix"})
	}
	return out
}

func (a acceptance) settings() string {
	text := strings.ReplaceAll(size{mode: map[bool]string{true: "prefix"}[a.targets.Prefixes], targets: a.targets}.settings(), " ", ", ")
	if a.targets.Prefixes && a.targets.byAddress() && a.row >= 85 {
		text += fmt.Sprintf(", WARM_PREFIX_TARGET=%d", a.targets.WarmPrefix)
	}
	if a.maxENI > 0 {
		text += fmt.Sprintf(", MAX_ENI=%d", a.maxENI)
	}
	return text
}

func TestUpstreamAcceptance(t *testing.T) {
	t.Parallel()
	rows := acceptances()
	for i, a := range rows {
		if a.row != 71+i || i == len(rows)-1 && a.row != 89 {
			t.Fatalf("row %d at place %d", a.row, i)
		}
		n := newNode(rand.New(rand.NewPCG(1, 1)), a.targets, Limits{InstanceType: "m5.xlarge", ENIs: 4, IPsPerENI: 14, MaxENI: a.maxENI})
		if err := n.converge(); err != nil {
			t.Errorf("row %d: %v", a.row, err)
		}
		if got := n.counts(); a.enis > 0 && len(n.enis) != a.enis || a.blocks > 0 && got.Blocks != a.blocks {
			t.Errorf("row %d, %s: %d ENIs hold %d, want %s", a.row, a.settings(), len(n.enis), got.Blocks, a.upstream)
		}
	}
}

// The tables in docs/warm-pool.md are printed from the ones above.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	const (
		file   = "../../../docs/warm-pool.md"
		marker = "<!-- printed by go test ./pkg/ipamd/warmpool -run Documentation -update -->\n"
	)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, old, ok := strings.Cut(string(text), marker)
	if !ok {
		t.Fatalf("%s has no line %q", file, marker)
	}
	want := tables(t)
	if *updateDocs {
		if err := os.WriteFile(file, []byte(head+marker+want), 0o644); err != nil {
			t.Fatal(err)
		}
		old = want
	}
	if old != want {
		t.Errorf("%s differs from the tests' tables; run go test ./pkg/ipamd/warmpool -run Documentation -update", file)
	}
}

func tables(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	followed := func(why string) string {
		if why == "" {
			return "yes"
		}
		return "no: " + why
	}
	line("\n### Single decisions\n")
	line("+n@d assigns n addresses on device d, new@d:n creates an ENI with n, -n@d gives n back, del@d removes; p stands for prefixes.\n")
	line("| vector | given | upstream | here | followed |\n|---|---|---|---|---|")
	for _, v := range vectors() {
		here := "`" + v.want + "`"
		if v.want == "" {
			here = "nothing"
		}
		line("| %s | %s | %s | %s | %s |", v.id, v.given, v.upstream, here, followed(v.why))
	}
	for _, e := range elsewhere {
		test := "-"
		if e.test != "" {
			test = "`" + e.test + "`"
		}
		line("| %s | %s | | %s | %s |", e.id, e.given, test, followed(e.why))
	}
	line("\n### Pool sizes\n")
	line("| mode | instance type | settings | pods | ENIs | held | unused | followed |\n|---|---|---|---|---|---|---|---|")
	for _, s := range sizes(t) {
		d, deviates := notFollowed[s.line]
		why := d.why
		if deviates {
			why += fmt.Sprintf("; %d ENI, %d held, %d unused", d.enis, d.held, d.unused)
		}
		line("| %s | %s | %s | %d | %d | %d | %d | %s |", s.mode, s.instance, s.settings(), s.pods, s.enis, s.held, s.unused, followed(why))
	}
	line("\n### Acceptance rows 71 to 89\n")
	line("| row | mode | settings | upstream | followed |\n|---|---|---|---|---|")
	for _, a := range acceptances() {
		mode := "secondary-ip"
		if a.targets.Prefixes {
			mode = "prefix"
		}
		line("| %d | %s | %s | %s | yes |", a.row, mode, a.settings(), a.upstream)
	}
	return b.String()
}
