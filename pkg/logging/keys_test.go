package logging

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var list = flag.Bool("list", false, "print every key that the program logs, and where")

// keyRow is a row of the table of keys in docs/logging.md.
var keyRow = regexp.MustCompile("(?m)^\\| ((?:`[a-z_]+`(?:, )?)+) \\|")

// TestKeys: collectors index lines by their keys, so a key is used when docs/logging.md has it, and the page has none
// that nobody uses. The plugin, whose log is its own, is left out.
func TestKeys(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/logging.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, row := range keyRow.FindAllStringSubmatch(string(page), -1) {
		for name := range strings.SplitSeq(row[1], ", ") {
			documented[strings.Trim(name, "`")] = true
		}
	}
	used := map[string][]string{}
	for _, root := range []string{"../../pkg", "../../cmd/aws-k8s-agent"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() && d.Name() == "podnet" {
				return fs.SkipDir // the plugin's
			}
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			return keysOf(path, used)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(used) < 20 {
		t.Fatalf("only %d keys were found in the sources", len(used))
	}
	for _, key := range slices.Sorted(maps.Keys(used)) {
		if *list {
			t.Logf("%s: %v", key, used[key])
		}
		if !documented[key] {
			t.Errorf("key %q is not in docs/logging.md: %v", key, used[key])
		}
		delete(documented, key)
	}
	for _, builtin := range []string{"ts", "level", "caller", "msg"} {
		if !documented[builtin] {
			t.Errorf("key %q is not in docs/logging.md", builtin)
		}
		delete(documented, builtin)
	}
	for key := range documented {
		t.Errorf("docs/logging.md has %q, which nobody logs", key)
	}
}

// before is how many arguments come before the keys and values of a logging function, by its name.
var before = map[string]int{
	"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2,
	"Log": 3, "log": 2, "With": 0,
}

// keysOf notes the keys of every line that a file logs.
func keysOf(path string, used map[string][]string) error {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, 0)
	if err != nil {
		return err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		skip, ok := before[f.Sel.Name]
		if !ok || len(call.Args) < skip || skip > 0 && !isText(call.Args[skip-1]) {
			return true
		}
		for i := skip; i+1 < len(call.Args); i += 2 {
			lit, ok := call.Args[i].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				break
			}
			if key, err := strconv.Unquote(lit.Value); err == nil {
				used[key] = append(used[key], fmt.Sprint(set.Position(lit.Pos())))
			}
		}
		return true
	})
	return nil
}

// isText tells whether an argument can be a line's message.
func isText(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.BinaryExpr:
		return isText(e.X) || isText(e.Y)
	}
	return false
}
