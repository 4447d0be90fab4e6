package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"vpccni/lab/cluster"
	"vpccni/lab/daemon"
)

// Nobody should need a manual: every command says what it is for, at length unless it only groups others, and gives
// an example that starts with its own name.
func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" || c.Runnable() && c.Long == "" && c.HasParent() {
			t.Errorf("%s: short %q, long %q, example %q", c.CommandPath(), c.Short, c.Long, c.Example)
		}
		if !strings.Contains(c.Example, "vpclab") {
			t.Errorf("%s: example %q", c.CommandPath(), c.Example)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root())
}

func fails(t *testing.T, args ...string) string {
	t.Helper()
	cmd := root()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		t.Fatalf("%q succeeded: %s", args, &out)
	}
	return explain(err)
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ args, want string }{
		{"status --name nobody-has-this", `lab "nobody-has-this" is not up: start it with vpclab up, or name another one with --name`},
		{"exec n1", "usage: vpclab exec NODE -- COMMAND [ARG...] (see vpclab exec --help)"},
		{"exec n1 --", "usage: vpclab exec NODE -- COMMAND [ARG...] (see vpclab exec --help)"},
		{"pod exec n1 web", "usage: vpclab pod exec NODE POD -- COMMAND [ARG...] (see vpclab pod exec --help)"},
		{"pod add n1", "usage: vpclab pod add NODE POD (see vpclab pod add --help)"},
		{"pod add n1 a/b/c", "a pod is named NAME or NAMESPACE/NAME"},
		{"pod del n1", "name a node and a pod, or give --all without a pod"},
		{"up --colour", "unknown flag: --colour (see vpclab up --help)"},
		{"up --env X", `--env "X": want NAME=VALUE`},
		{"up --name A", `"A" is no name for a lab: lower-case letters, digits and dashes, at most 40`},
		{"fault add", "say what goes wrong: --error, --deny, --lost-response or --delay"},
		{"fault add --status 500", "--status needs --imds"},
		{"fault add --imds --error X", "--error is for EC2, not for --imds"},
		{"vpc add-cidr x", `netip.ParsePrefix("x"): no '/'`},
	} {
		if got := fails(t, strings.Fields(tc.args)...); got != tc.want {
			t.Errorf("vpclab %s\n got %s\nwant %s", tc.args, got, tc.want)
		}
	}
}

func TestSplitProgram(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"n1 -- ls -la", "n1 ls -la"} {
		own, program := splitProgram(1, strings.Fields(args))
		if own[0] != "n1" || !slices.Equal(program, []string{"ls", "-la"}) {
			t.Errorf("%s: %q %q", args, own, program)
		}
	}
}

func TestQuote(t *testing.T) {
	t.Parallel()
	if got := quote("it's"); got != `'it'\''s'` {
		t.Error(got)
	}
}

func TestPrintedStatus(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	s := daemon.Status{Name: "x", Since: time.Now(),
		Nodes: []daemon.NodeStatus{{Name: "n1", Running: true, IPAMD: "running"}, {Name: "n2"}},
		Drops: []daemon.DropStatus{{Cause: "source-not-assigned", Packets: 7}}}
	if err := printStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`lab "x"`, "running", "(node is down)", "source-not-assigned  7"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}

func TestNextSteps(t *testing.T) {
	t.Parallel()
	spec := cluster.Spec{Name: "other", Nodes: []cluster.NodeSpec{{Name: "a"}}}
	got := nextSteps(spec, false)
	for _, want := range []string{"vpclab --name other pod add a web", "vpclab --name other down"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	spec.NoIPAMD = true
	if got := nextSteps(spec, true); strings.Contains(got, "pod add") || strings.Contains(got, " down") {
		t.Errorf("bare, in the foreground:\n%s", got)
	}
}
