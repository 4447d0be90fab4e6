package hostnet

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
)

// pod wires a pod of this version as far as the host's tables go, with the rules of the per-pod layout if a table is given.
func (n *node) pod(addr string, table int) {
	n.t.Helper()
	script := `ip link show eni0123456789a >/dev/null 2>&1 || {
			ip link add eni0123456789a type veth peer podside; ip link set eni0123456789a up; ip link set podside up; }
		ip route replace %[1]s dev eni0123456789a scope link table 5120 proto 89
		ip route replace %[1]s dev eni0123456789a scope link
		`
	if table != 0 {
		script += "ip rule add to %[1]s lookup main priority 512\n"
	}
	if table != 0 && table != 254 {
		script += "ip rule add from %[1]s lookup %[2]d priority 1536\n"
	}
	n.Run("sh", "-e", "-c", fmt.Sprintf(script, addr, table))
}

func (n *node) noPod(addr string) {
	n.t.Helper()
	n.Run("sh", "-e", "-c", fmt.Sprintf("ip route del %[1]s table 5120; ip route del %[1]s", addr))
}

// perPod has one pod on each of two ENIs and one on an ENI that is not known.
func perPodScenario() Config {
	cfg := config(primaryENI("10.0.1.11", "10.0.1.12"), secondaryENI(1, "10.0.1.31", "10.0.1.32"), secondaryENI(2, "100.64.2.64/28"))
	return with(cfg, func(c *Config) { c.RuleLayout = LayoutPerPod })
}

func TestPerPodLayout(t *testing.T) {
	t.Parallel()
	n := newNode(t, 4)
	cfg := perPodScenario()
	n.pod("10.0.1.11", 254)
	n.pod("10.0.1.31", 2)
	n.pod("100.64.2.70", 3)
	n.pod("100.64.9.9", 7)
	n.applyTwice(cfg)
	golden(t, "per-pod", n.state()+n.linkState())
	want := n.state()

	for what, damage := range map[string]string{
		"rules gone":              "ip rule del to 10.0.1.31 lookup main; ip rule del from 10.0.1.31 lookup 2",
		"rules of nobody":         "ip rule add to 10.0.1.12 lookup main priority 512; ip rule add from 10.0.1.32 lookup 2 priority 1536",
		"another ENI's table":     "ip rule del from 10.0.1.31 lookup 2; ip rule add from 10.0.1.31 lookup 3 priority 1536",
		"one more table":          "ip rule add from 100.64.2.70 lookup 2 priority 1536",
		"a rule for primary pods": "ip rule add from 10.0.1.11 lookup main priority 1536",
		"the rule for all pods":   "ip rule add priority 512 lookup 5120 proto 89",
	} {
		n.Run("sh", "-e", "-c", damage)
		n.applyTwice(cfg)
		if got := n.state(); got != want {
			t.Errorf("%s:\n%s", what, firstDifference(want, got))
		}
	}
	// What is somebody else's stays.
	n.Run("sh", "-e", "-c", `ip rule add to 192.0.2.1 lookup main priority 512; ip rule add to 10.0.1.12 lookup main priority 512 proto 99
		ip rule add from 10.0.1.0/24 lookup 2 priority 1536; ip rule add from 10.0.1.12 iif eth1 lookup 2 priority 1536`)
	if r := n.apply(cfg); r.Writes != 0 {
		t.Errorf("%d writes for rules of others", r.Writes)
	}
}

// A change of the layout finds pods wired in the other one.
func TestLayoutChanges(t *testing.T) {
	t.Parallel()
	n := newNode(t, 4)
	cfg := perPodScenario()
	tables := with(cfg, func(c *Config) { c.RuleLayout = LayoutTables })
	for _, addr := range []string{"10.0.1.11", "10.0.1.31", "100.64.2.70"} {
		n.pod(addr, 0)
	}
	n.applyTwice(tables)
	before := n.state()
	n.applyTwice(cfg)
	changed := n.state()
	for _, rule := range []string{"512:\tfrom all to 10.0.1.11 lookup main\n", "512:\tfrom all to 10.0.1.31 lookup main\n",
		"1536:\tfrom 10.0.1.31 lookup 2\n", "1536:\tfrom 100.64.2.70 lookup 3\n"} {
		if !strings.Contains(strings.ReplaceAll(changed, " proto unspec", ""), rule) {
			t.Errorf("no rule %q in\n%s", rule, changed)
		}
	}
	if strings.Contains(changed, "lookup 5120") {
		t.Errorf("the rule for all pods is left:\n%s", changed)
	}
	n.applyTwice(tables)
	// Rules of single pods go with what a predecessor left (package predecessor).
	n.Run("sh", "-e", "-c", "for a in 10.0.1.11 10.0.1.31 100.64.2.70; do ip rule del to $a; ip rule del from $a 2>/dev/null || true; done")
	if got := n.state(); got != before {
		t.Errorf("there and back:\n%s", firstDifference(before, got))
	}
}

// A pod that goes, or comes, while an Apply is at it keeps no rule, or loses none.
func TestPerPodLayoutWhilePodsComeAndGo(t *testing.T) {
	t.Parallel()
	n := newNode(t, 4)
	cfg := perPodScenario()
	n.applyTwice(cfg)
	n.pod("10.0.1.31", 0)
	n.Run("ip", "rule", "add", "from", "10.0.1.32", "lookup", "2", "priority", "1536")
	host, err := New(Options{NetNS: n.FD(), Log: slog.New(onWrite{slog.DiscardHandler, &sync.Once{}, func() {
		n.noPod("10.0.1.31")
		n.pod("10.0.1.32", 0)
	}})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	if _, err := host.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	rules := n.Run("ip", "rule")
	if strings.Contains(rules, "10.0.1.31 ") {
		t.Errorf("rules of a pod that is gone:\n%s", rules)
	}
	if !strings.Contains(rules, "from 10.0.1.32 lookup 2") {
		t.Errorf("the rule of a pod that came is gone:\n%s", rules)
	}
}
