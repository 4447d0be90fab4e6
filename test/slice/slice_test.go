// Package slice tests the whole way through: ipamd and the plugin, unmodified, on instances of the lab.
package slice

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
	"vpccni/lab/sandbox"
	"vpccni/pkg/networkutils/names"
)

const (
	namespace = "slice"
	probePort = 7777
)

// binDir is where make build puts the binaries. Absolute, because nodes see it by another path.
var binDir = func() string {
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		panic(err)
	}
	return dir
}()

// atOnce is how many tests run at the same time unless -parallel says: they wait for timers most of the time.
const atOnce = "4"

func TestMain(m *testing.M) {
	sandbox.QuickExit()
	sandbox.Main(func() int {
		if !slices.ContainsFunc(os.Args, func(a string) bool { return strings.Contains(a, "test.parallel") }) {
			if err := flag.Set("test.parallel", atOnce); err != nil {
				panic(err)
			}
		}
		return m.Run()
	})
}

// lab starts a cluster that ends with the test.
func lab(t *testing.T, spec cluster.Spec) *cluster.Cluster {
	t.Helper()
	if _, err := os.Stat(filepath.Join(binDir, "aws-k8s-agent")); err != nil {
		t.Fatalf("these tests run the binaries: make build first (%v)", err)
	}
	spec.BinDir = binDir
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c, err := cluster.New(t.Context(), spec, cluster.Hooks{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range c.Nodes() {
				t.Logf("ipamd on %s:\n%s", n.Name, tail(n.IPAMDLog(), 40))
				t.Logf("plugin on %s:\n%s", n.Name, tail(n.PluginLog(), 20))
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// one is a lab with one node.
func one(attach time.Duration, env map[string]string) cluster.Spec {
	return cluster.Spec{
		Nodes:       []cluster.NodeSpec{{Name: "n1", Type: "t3.medium"}},
		AttachDelay: attach, DetachDelay: attach, Env: env,
	}
}

// burst adds pods 1 to n at once and returns what each ADD said.
func burst(ctx context.Context, c *cluster.Cluster, n int) []error {
	errs := make([]error, n)
	var group errgroup.Group
	for i := range n {
		group.Go(func() error {
			_, errs[i] = c.PodAdd(ctx, "n1", namespace, podName(i))
			return nil
		})
	}
	_ = group.Wait()
	return errs
}

func podName(i int) string { return fmt.Sprintf("pod%02d", i+1) }

// calls counts what an instance asked of EC2.
func calls(c *cluster.Cluster, n *cluster.Node) map[string]int {
	count := map[string]int{}
	for _, r := range c.Cloud().Requests() {
		if r.Caller == n.InstanceID {
			count[r.Action]++
		}
	}
	return count
}

func total(count map[string]int) int {
	sum := 0
	for _, n := range count {
		sum += n
	}
	return sum
}

// allocation is what a sandbox holds according to the state file.
type allocation struct {
	ContainerID string `json:"containerID"`
	IPv4        string `json:"ipv4"`
}

// allocations reads the node's state file, as a downgrade would.
func allocations(t *testing.T, n *cluster.Node) map[string]netip.Addr {
	t.Helper()
	var text []byte
	err := n.OS().Do(func() (err error) {
		text, err = os.ReadFile(names.CheckpointFile)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Version     string       `json:"version"`
		Allocations []allocation `json:"allocations"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatalf("%s: %v\n%s", names.CheckpointFile, err, text)
	}
	held := map[string]netip.Addr{}
	for _, a := range file.Allocations {
		held[a.ContainerID] = netip.MustParseAddr(a.IPv4)
	}
	return held
}

// checkHolders compares the pods that run with what ipamd has written down, and both with EC2: no address is held
// twice, none is leaked, none is foreign.
func checkHolders(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
	t.Helper()
	assigned := map[netip.Addr]bool{}
	for _, e := range c.Cloud().ENIsOf(n.InstanceID) {
		for _, a := range e.Secondary {
			assigned[a] = true
		}
	}
	held := allocations(t, n)
	seen := map[netip.Addr]string{}
	for _, p := range c.Pods(n.Name) {
		if other, twice := seen[p.Address]; twice {
			t.Errorf("%s is held by %s and by %s", p.Address, other, p.Name)
		}
		seen[p.Address] = p.Name
		if held[p.ID] != p.Address {
			t.Errorf("%s has %s, but the state file says %v", p.Name, p.Address, held[p.ID])
		}
		if !assigned[p.Address] {
			t.Errorf("%s has %s, which EC2 has on no ENI of the node", p.Name, p.Address)
		}
		delete(held, p.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(held)) {
		t.Errorf("leaked: %s is held by sandbox %.12s, which no pod has", held[id], id)
	}
}

// patient gives a busy machine the time to answer. A packet that is lost is still seen, for nothing is repeated.
var patient = probe.Timeout(30 * time.Second)

// checkReachable has every pod of the lab ask every other one.
func checkReachable(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	reach(t, c, "")
}

// reach has every pod of the lab ask every other one, or just that one and that one every other.
func reach(t *testing.T, c *cluster.Cluster, one string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	pods := c.Pods("")
	do := func(p cluster.Pod) probe.Do {
		return func(f func() error) error { return c.PodDo(p.Node, p.Namespace, p.Name, f) }
	}
	for _, p := range pods {
		server, err := probe.Serve(ctx, p.Name, do(p), probePort)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
	}
	var group errgroup.Group
	group.SetLimit(8)
	for _, from := range pods {
		for _, to := range pods {
			if from.ID == to.ID || one != "" && from.Name != one && to.Name != one {
				continue
			}
			group.Go(func() error {
				a, err := probe.UDP(ctx, do(from), netip.AddrPortFrom(to.Address, probePort), 64, patient)
				if err == nil && (a.Server != to.Name || a.Source != from.Address) {
					err = fmt.Errorf("%s answered and saw %s", a.Server, a.Source)
				}
				if err != nil {
					t.Errorf("%s %s → %s %s: %v", from.Name, from.Address, to.Name, to.Address, err)
				}
				return nil
			})
		}
	}
	_ = group.Wait()
}

// checkDrops wants the VPC to have dropped nothing that a node sent by a wrong ENI or to nobody.
func checkDrops(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	drops, err := c.Fabric().Drops()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drops {
		if d.Cause == fabric.SourceNotAssigned {
			t.Errorf("%d packets dropped by the source check: %s → %s on %s", d.Packets, d.Source, d.Destination, d.ENI)
		}
	}
}

// eventually waits until ok, asking every few milliseconds.
func eventually(t *testing.T, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		<-tick.C
	}
}

func attachedENIs(c *cluster.Cluster, n *cluster.Node) []ec2.ENI {
	return c.Cloud().ENIsOf(n.InstanceID)
}
