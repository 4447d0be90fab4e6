// Package arch holds the house's rules as tests: who may know whom, and what no code may do. docs/design.md has the
// reasons.
package arch

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// rule forbids a set of packages to depend, directly or through others, on some packages.
type rule struct {
	name   string
	of     []string // package patterns, as go list has them
	never  []string // path prefixes
	direct bool     // direct imports only
	but    []string // exceptions to never
}

var rules = []rule{
	{
		name:  "the product does not know the lab or the tests",
		of:    []string{"./pkg/...", "./rpc/...", "./cmd/aws-k8s-agent", "./cmd/routed-eni-cni-plugin", "./cmd/egress-cni-plugin", "./cmd/grpc-health-probe", "./cmd/max-pods-calculator"},
		never: []string{"vpccni/lab", "vpccni/test"},
	},
	{
		name: "datastore and warmpool decide: no I/O, logger, AWS or kernel",
		of:   []string{"./pkg/ipamd/datastore", "./pkg/ipamd/warmpool", "./pkg/maxpods"},
		never: []string{
			"github.com/", "google.golang.org/", "k8s.io/", "golang.org/", "net/http", "log/slog",
			"vpccni/pkg/awsutils", "vpccni/pkg/networkutils", "vpccni/pkg/config", "vpccni/rpc",
		},
	},
	{
		name:   "datastore and warmpool touch neither files, processes nor sockets",
		of:     []string{"./pkg/ipamd/datastore", "./pkg/ipamd/warmpool"},
		never:  []string{"os", "net", "log", "syscall", "os/exec", "io"},
		direct: true,
		but:    []string{"net/netip"},
	},
	{
		name: "the plugin starts fast: none of the heavy libraries",
		of:   []string{"./cmd/routed-eni-cni-plugin", "./cmd/egress-cni-plugin"},
		never: []string{
			"github.com/aws/", "k8s.io/", "sigs.k8s.io/", "github.com/prometheus/", "go.uber.org/zap", "github.com/sirupsen/",
			"github.com/google/nftables", "github.com/spf13/", "vpccni/pkg/ipamd", "vpccni/pkg/awsutils",
		},
	},
	{
		name: "ipamd links neither client-go's typed clients and informers nor controller-runtime",
		of:   []string{"./cmd/aws-k8s-agent"},
		never: []string{
			"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers", "k8s.io/client-go/tools/cache",
			"sigs.k8s.io/controller-runtime", "github.com/aws/amazon-vpc-cni-k8s",
		},
	},
	{
		name:  "awsutils and k8sapi do not know ipamd",
		of:    []string{"./pkg/awsutils", "./pkg/k8sapi"},
		never: []string{"vpccni/pkg/ipamd", "vpccni/pkg/networkutils"},
	},
	{
		name:  "the simulated cloud does not know the product: it is tested with other people's clients",
		of:    []string{"./lab/ec2", "./lab/imds", "./lab/fabric", "./lab/kubeapi"},
		never: []string{"vpccni/pkg/ipamd", "vpccni/pkg/awsutils", "vpccni/pkg/k8sapi", "vpccni/rpc", "vpccni/cmd"},
	},
}

func TestWhoMayKnowWhom(t *testing.T) {
	t.Parallel()
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			for importer, imported := range dependencies(t, r) {
				for _, dep := range imported {
					if matches(dep, r.never) && !matches(dep, r.but) {
						t.Errorf("%s depends on %s", importer, dep)
					}
				}
			}
		})
	}
}

// dependencies returns what each of a rule's packages imports.
func dependencies(t *testing.T, r rule) map[string][]string {
	format := `{{.ImportPath}} {{join .Deps " "}}`
	if r.direct {
		format = `{{.ImportPath}} {{join .Imports " "}}`
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-tags", "grpcnotrace", "-f", format}, r.of...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	found := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		found[fields[0]] = fields[1:]
	}
	if len(found) == 0 {
		t.Fatal("the rule's patterns match no package")
	}
	return found
}

func matches(dep string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool {
		return dep == p || strings.HasPrefix(dep, strings.TrimSuffix(p, "/")+"/")
	})
}

// forbidden calls: package path's last element and function → why.
var forbidden = map[string]string{
	"time.Sleep":   "use a timer that a context can end",
	"context.TODO": "every call has a deadline from a context that starts in main",
}

// clockless packages are given the time; reading it makes their tests slow or flaky.
var clockless = []string{"pkg/ipamd/datastore", "pkg/ipamd/warmpool", "pkg/networkutils/names"}

func TestForbiddenCalls(t *testing.T) {
	t.Parallel()
	for _, file := range sources(t) {
		dir := path.Dir(file.name)
		ast.Inspect(file.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			name := callee(call)
			where := file.position(call.Pos())
			if why, bad := forbidden[name]; bad {
				t.Errorf("%s: %s: %s", where, name, why)
			}
			if slices.Contains(clockless, dir) && (name == "time.Now" || name == "time.Since" || name == "time.After") {
				t.Errorf("%s: %s: this package is given the time", where, name)
			}
			return true
		})
	}
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	t.Parallel()
	documented := map[string]bool{}
	for _, file := range sources(t) {
		dir := path.Dir(file.name)
		documented[dir] = documented[dir] || file.syntax.Doc != nil
	}
	for dir, ok := range documented {
		if !ok && dir != "rpc" { // generated
			t.Errorf("%s has no package comment", dir)
		}
	}
}

type source struct {
	name   string // relative to the project's root
	syntax *ast.File
	set    *token.FileSet
}

func (s source) position(p token.Pos) string {
	at := s.set.Position(p)
	at.Filename = s.name
	return at.String()
}

// sources parses every Go file that is not a test.
func sources(t *testing.T) []source {
	t.Helper()
	var files []source
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := entry.Name()
		if entry.IsDir() && len(base) > 2 && strings.HasPrefix(base, ".") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(base, ".go") || strings.HasSuffix(base, "_test.go") {
			return nil
		}
		syntax, err := parser.ParseFile(set, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		files = append(files, source{name: filepath.ToSlash(rel), syntax: syntax, set: set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found only %d files: is %s the project's root?", len(files), root)
	}
	return files
}

// callee returns "pkg.Func" for a call of a package's function by its usual name.
func callee(call *ast.CallExpr) string {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	pkg, ok := selector.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return pkg.Name + "." + selector.Sel.Name
}
