package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vpccni/lab/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.QuickExit()
	sandbox.Main(m.Run)
}

// TestWithoutProxy runs a part of the matrix: one set-up for each way of source NAT, and one with IPv6, without
// kube-proxy, whose build takes minutes.
func TestWithoutProxy(t *testing.T) {
	t.Parallel()
	binDir, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(binDir, "aws-k8s-agent")); err != nil {
		t.Fatalf("this test runs the binaries: make build first (%v)", err)
	}
	for _, snat := range append([]string{"-"}, snats...) {
		t.Run("EXTERNALSNAT="+snat, func(t *testing.T) {
			t.Parallel()
			all := setUps()
			i := slices.IndexFunc(all, func(s setUp) bool { return s.Proxy == proxyNone && s.SNAT == snat })
			outcomes := runSetUp(t.Context(), all[i], binDir, func(text string) { t.Log(text) })
			if n := count(outcomes, failed); n > 0 {
				var text bytes.Buffer
				failures(&text, outcomes)
				t.Errorf("%s: %d of %d cells failed:%s", all[i], n, len(outcomes), text.String())
			}
			if n := count(outcomes, ok); n < 100 {
				t.Errorf("%s: only %d cells ran", all[i], n)
			}
		})
	}
}

// made is a world without a lab.
func made() world {
	w := world{hostPorts: map[string]int{}, own: map[int]netip.Addr{}}
	next := netip.MustParseAddr("10.0.1.10")
	address := func() netip.Addr { next = next.Next(); return next }
	nodes := []*end{&w.n1, &w.n2, &w.n3}
	pods := []*map[int][]end{&w.pods1, &w.pods2, &w.pods3}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		*nodes[i] = end{name, name, address()}
		*pods[i] = map[int][]end{}
		for device := range maxENIs {
			for j := range 2 {
				pod := end{fmt.Sprintf("%s-pod%d%d", name, device, j), fmt.Sprintf("pod@%s.eth%d", name, device), address()}
				(*pods[i])[device] = append((*pods[i])[device], pod)
				w.hostPorts[pod.name] = firstHostPort
			}
		}
	}
	for device := range maxENIs {
		w.own[device] = address()
	}
	return w
}

// TestEveryPathIsThere: each path is in every set-up, from or to pods on every ENI, and runs in one of them at least.
func TestEveryPathIsThere(t *testing.T) {
	t.Parallel()
	want := []string{
		"pod → pod, same ENI", "pod → pod, other ENI", "pod → pod, other node", "pod → pod, other subnet",
		"→ ClusterIP, local endpoint", "→ ClusterIP, remote endpoint", "→ ClusterIP, external endpoint",
		"→ NodePort Cluster", "→ NodePort Local", "on-prem → pod",
		"load balancer → pod, IP mode, client kept", "load balancer → pod, IP mode, client not kept",
		"pod → internet", "pod → on-prem", "hostPort", "node → pod", "pod → node",
		"pod → IMDS", "pod → VPC DNS", "pod → NodeLocal DNS", "169.254.7.127 → pod",
	}
	w := made()
	runs := map[string]bool{}
	for _, s := range setUps() {
		there := map[string]bool{}
		seen := map[string]bool{}
		w.around = aroundIn(s)
		for _, c := range cells(w, s) {
			for device := range maxENIs {
				if strings.Contains(c.Name, fmt.Sprintf("pod@n1.eth%d", device)) {
					there[fmt.Sprintf("%s %d", c.Path, device)] = true
				}
			}
			runs[c.Path] = runs[c.Path] || c.cannot == ""
			if seen[c.Path+c.Name] {
				t.Errorf("%s: %s, %s is there twice", s.Name, c.Path, c.Name)
			}
			seen[c.Path+c.Name] = true
			if c.cannot == "" && (!c.source.IsValid() || c.server == "" || !c.to.IsValid()) {
				t.Errorf("%s: %s, %s expects nothing", s.Name, c.Path, c.Name)
			}
		}
		for _, path := range want {
			for device := range maxENIs {
				if !there[fmt.Sprintf("%s %d", path, device)] {
					t.Errorf("%s: no cell %q with a pod on eth%d", s.Name, path, device)
				}
			}
		}
	}
	for _, path := range want {
		if !runs[path] {
			t.Errorf("%q runs in no set-up", path)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	s := setUps()[:2]
	var out bytes.Buffer
	table(&out, s, []outcome{
		{"S1", "pod → internet", "a → b", ok, "seen as 10.0.1.10"}, {"S2", "pod → internet", "a → b", failed, "udp: lost\ntcp: lost"},
		{"S1", "hostPort", "c", cannot, "no way"}, {"S2", "hostPort", "c", ok, ""},
	})
	_, text, _ := strings.Cut(out.String(), "Cells")
	want := ` (ok, FAILED, -: cannot run):
PATH            CELL   S1  S2
pod → internet  a → b  ok  FAILED
hostPort        c      -   ok

Cannot run:
  hostPort: no way (S1)

Failed:
  S2 pod → internet, a → b: udp: lost; tcp: lost
`
	if text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestRandomSetUps(t *testing.T) {
	t.Parallel()
	if a, b := randomSetUps(20, 7), randomSetUps(20, 7); !slices.Equal(a, b) {
		t.Errorf("one seed, two draws: %v, %v", a, b)
	}
	if a, b := randomSetUps(20, 7), randomSetUps(20, 8); slices.Equal(a, b) {
		t.Error("two seeds, one draw")
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	all := setUps()
	if chosen, err := choose(all, "s2, S1"); err != nil || len(chosen) != 2 || chosen[0].Name != "S2" {
		t.Errorf("chosen %v, %v", chosen, err)
	}
	if _, err := choose(all, "S99"); err == nil {
		t.Error("S99 is no error")
	}
}

func TestParseCounters(t *testing.T) {
	t.Parallel()
	counts, err := parseCounters(`{"nftables": [{"metainfo": {}}, {"counter": {"family": "inet", "name": "kept", "table": "foreign", "packets": 7, "bytes": 9}}]}`)
	if err != nil || counts["kept"] != 7 {
		t.Errorf("%v, %v", counts, err)
	}
	if _, err := parseCounters("nothing"); err == nil {
		t.Error("no JSON is no error")
	}
}
