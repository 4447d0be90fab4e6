// Package cases runs the end-to-end cases of amazon-vpc-cni-k8s that need neither AWS nor anybody's images, under their
// numbers, in the lab. docs/cases.md is printed from its table.
package cases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/lab/probe"
	"vpccni/lab/sandbox"
	"vpccni/pkg/networkutils/names"
	"vpccni/test/upstream"
)

const (
	namespace = "cni-automation"
	// port is where pods listen, wrongPort where nobody does; upstream's tests have these numbers.
	port      = 2273
	wrongPort = 2271
)

var patient = probe.Timeout(30 * time.Second)

func TestMain(m *testing.M) {
	sandbox.QuickExit()
	sandbox.Main(func() int {
		code := m.Run()
		for _, s := range allLabs {
			if s.l != nil {
				if err := s.l.Close(); err != nil {
					fmt.Fprintln(os.Stderr, err)
					code = 1
				}
			}
		}
		return code
	})
}

// shared is a lab that several cases use, one at a time.
type shared struct {
	spec cluster.Spec
	// pods are made at its start, in order, on every node.
	pods int

	mu  sync.Mutex // held by the case that uses it
	l   *cluster.Cluster
	err error
}

var allLabs []*shared

func newShared(spec cluster.Spec, pods int) *shared {
	s := &shared{spec: spec, pods: pods}
	allLabs = append(allLabs, s)
	return s
}

// use returns the lab until the test ends. The first one that uses it starts it.
func (s *shared) use(t *testing.T) *cluster.Cluster {
	t.Helper()
	s.mu.Lock()
	t.Cleanup(s.mu.Unlock)
	if s.l == nil && s.err == nil {
		s.l, s.err = s.start()
	}
	if s.err != nil {
		t.Fatal(s.err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, n := range s.l.Nodes() {
			t.Logf("ipamd on %s:\n%s\nplugin:\n%s", n.Name, tail(n.IPAMDLog(), 30), tail(n.PluginLog(), 10))
		}
	})
	return s.l
}

func (s *shared) start() (*cluster.Cluster, error) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(bin, "aws-k8s-agent")); err != nil {
		return nil, fmt.Errorf("the cases run the binaries: make build first (%w)", err)
	}
	s.spec.BinDir = bin
	s.spec.AttachDelay, s.spec.DetachDelay = 50*time.Millisecond, 50*time.Millisecond
	for i := range s.spec.Nodes {
		if s.spec.Nodes[i].Env == nil {
			s.spec.Nodes[i].Env = map[string]string{}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	l, err := cluster.New(ctx, s.spec, cluster.Hooks{Log: log})
	if err != nil {
		return nil, err
	}
	for _, n := range l.Nodes() {
		for i := range s.pods {
			pod, err := l.PodAdd(ctx, n.Name, namespace, fmt.Sprintf("%s-%02d", n.Name, i+1))
			if err == nil {
				_, err = probe.Serve(context.Background(), pod.Name, podDo(l, pod), port)
			}
			if err != nil {
				return nil, errors.Join(err, l.Close())
			}
		}
	}
	// On a busy machine the kernel may hear late that a new link has a carrier. TCP tries again; the cases need not.
	for _, p := range l.Pods("") {
		if _, err := probe.TCP(ctx, podDo(l, p), netip.AddrPortFrom(l.Pods("")[0].Address, port), 100, patient); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func podDo(l *cluster.Cluster, p cluster.Pod) probe.Do {
	return func(f func() error) error { return l.PodDo(p.Node, p.Namespace, p.Name, f) }
}

func nodeDo(n *cluster.Node) probe.Do { return n.OS().Do }

// withEnv restarts a node's ipamd with more variables, until the test ends.
func withEnv(t *testing.T, l *cluster.Cluster, n *cluster.Node, env map[string]string) {
	t.Helper()
	i := slices.IndexFunc(l.Spec().Nodes, func(s cluster.NodeSpec) bool { return s.Name == n.Name })
	own := l.Spec().Nodes[i].Env
	before := maps.Clone(own)
	restart := func(ctx context.Context) error {
		return errors.Join(n.StopIPAMD(ctx), n.StartIPAMD(ctx))
	}
	maps.Copy(own, env)
	if err := restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		clear(own)
		maps.Copy(own, before)
		if err := restart(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// deploy makes pods with a server each, until the test ends or remove is called.
func deploy(t *testing.T, l *cluster.Cluster, node, name string, count int) (pods []cluster.Pod, remove func()) {
	t.Helper()
	list, servers := make([]cluster.Pod, count), make([]*probe.Server, count)
	var group errgroup.Group
	for i := range list {
		group.Go(func() (err error) {
			list[i], err = l.PodAdd(t.Context(), node, namespace, fmt.Sprintf("%s-%02d", name, i+1))
			return err
		})
	}
	err := group.Wait()
	remove = sync.OnceFunc(func() {
		for i, p := range list {
			if p.Name == "" {
				continue
			}
			if servers[i] != nil {
				_ = servers[i].Close() // its socket keeps the pod's network namespace
			}
			if err := l.PodDel(context.Background(), node, namespace, p.Name); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(remove)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range list {
		if servers[i], err = probe.Serve(context.Background(), p.Name, podDo(l, p), port); err != nil {
			t.Fatal(err)
		}
	}
	return list, remove
}

// device is the device index of the ENI that an address is on.
func device(l *cluster.Cluster, n *cluster.Node, a netip.Addr) int {
	for _, e := range l.Cloud().ENIsOf(n.InstanceID) {
		if slices.Contains(e.Secondary, a) || slices.ContainsFunc(e.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return e.Attachment.Device
		}
	}
	return -1
}

// hostPod is a pod as upstream's tests look for it.
func hostPod(l *cluster.Cluster, p cluster.Pod, prefix string, mtu int) upstream.HostPod {
	n, _ := l.Node(p.Node)
	return upstream.HostPod{Address: p.Address, Veth: names.HostVeth(prefix, p.Namespace, p.Name, 0), MTU: mtu, Secondary: device(l, n, p.Address) > 0}
}

// get asks for a page from a node's network namespace.
func get(ctx context.Context, n *cluster.Node, address, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return n.OS().DialContext(ctx, "tcp", address)
	}}, Timeout: 20 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return string(text), err
}

// eventually waits until ok, asking every few milliseconds.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	const patience = time.Minute
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", patience, what, err)
		}
	}
}

// is makes an error of what should be something else.
func is(have, want string) error {
	if have != want {
		return fmt.Errorf("%s, not %s", have, want)
	}
	return nil
}
