package cases

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/cases.md")

// TestCases runs the cases that are run here.
func TestCases(t *testing.T) {
	t.Parallel()
	for _, r := range sorted() {
		if r.check == nil {
			continue
		}
		t.Run(fmt.Sprintf("%d %s: %s", r.number, r.suite, r.what), func(t *testing.T) {
			t.Parallel()
			r.check(t)
		})
	}
}

func sorted() []row {
	list := slices.Clone(table)
	slices.SortFunc(list, func(a, b row) int { return cmp.Compare(a.number, b.number) })
	return list
}

// TestTable: every number is there once and has one way of being covered, and the tests that it names exist. With -v
// it prints the table.
func TestTable(t *testing.T) {
	t.Parallel()
	list := sorted()
	for i, r := range list {
		if r.number != i+1 {
			t.Fatalf("number %d at place %d", r.number, i+1)
		}
		ways := 0
		for _, way := range []bool{r.check != nil, len(r.tests) > 0, r.not != ""} {
			if way {
				ways++
			}
		}
		if ways != 1 || r.suite == "" || r.what == "" {
			t.Errorf("%d is covered in %d ways: %+v", r.number, ways, r)
		}
		for _, name := range append(r.tests, mentioned(r.not+" "+r.note)...) {
			if !exists(t, name) {
				t.Errorf("%d: there is no %s", r.number, name)
			}
		}
		t.Logf("%3d  %-40s %-60s %s", r.number, r.suite, r.what, r.how())
	}
	if len(list) != 130 {
		t.Errorf("%d cases", len(list))
	}
	golden(t, document(list))
}

// mentioned are the tests that a text names.
func mentioned(text string) []string {
	return regexp.MustCompile(`\b(?:cmd|pkg|test|lab)/[\w./-]+\.(?:Test\w+|\*)`).FindAllString(text, -1)
}

// exists looks for a test by the name of its package's folder; * is any test.
func exists(t *testing.T, name string) bool {
	t.Helper()
	dir, test, _ := strings.Cut(name, ".")
	files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^func ` + strings.ReplaceAll(regexp.QuoteMeta(test), `\*`, `Test[A-Z]\w*`) + `\(t \*testing\.T\) {$`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if want.Match(text) {
			return true
		}
	}
	return false
}

const preface = `# Upstream's end-to-end cases

What the integration suites of amazon-vpc-cni-k8s v1.23.1 check on a live cluster, and how each case is covered here. Those that need
neither AWS nor somebody's images are run in the lab under the same number (test/cases); the cases that look for rules of single pods
run with POD_RULE_LAYOUT=per-pod, and those that look for names of upstream's objects are checked by intent. This page is printed from
the table in test/cases (go test ./test/cases -run Table -update), and a test holds that every test it names exists.

| # | Suite | Case | How |
|---|---|---|---|
`

func document(list []row) string {
	var b strings.Builder
	b.WriteString(preface)
	run, elsewhere, not := 0, 0, 0
	for _, r := range list {
		how := r.how()
		for _, name := range append(r.tests, mentioned(how)...) {
			if !strings.Contains(how, "`"+name+"`") {
				how = strings.ReplaceAll(how, name, "`"+name+"`")
			}
		}
		fmt.Fprintf(&b, "| %d | %s | %s | %s |\n", r.number, r.suite, r.what, how)
		switch {
		case r.check != nil:
			run++
		case r.tests != nil:
			elsewhere++
		default:
			not++
		}
	}
	fmt.Fprintf(&b, "\n%d are run here, %d by tests elsewhere, %d are not run.\n", run, elsewhere, not)
	return b.String()
}

func golden(t *testing.T, text string) {
	t.Helper()
	const path = "../../docs/cases.md"
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || string(have) != text {
		t.Errorf("%s differs from the table (%v): go test ./test/cases -run Table -update", path, err)
	}
}
