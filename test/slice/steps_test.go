package slice

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
	"vpccni/pkg/networkutils/names"
)

var (
	stepsFlag = flag.Int("steps", 200, "steps of TestRandomSteps")
	stepsSeed = flag.Uint64("steps-seed", 0, "seed of TestRandomSteps; 0 takes one by chance")
	stepsTime = flag.Duration("steps-time", 20*time.Minute, "TestRandomSteps fails if it has not done its steps by then")
)

const (
	stepsPerRound = 250
	stepWorkers   = 6 // per node
	podsPerWorker = 6
	stateDir      = "/run/aws-node"
	// settleTime is how long a node may take until nothing is left of the round's pods. A release that neither ipamd nor a
	// note heard of (ipamd away and the disk full) is found by ipamd's own comparison with the kernel, two minutes later.
	settleTime = 5 * time.Minute
	// slow is when what was waited for is logged.
	slow = 10 * time.Second
)

// TestRandomSteps does at random what befalls a node, one round after the other: ADD, DEL, DEL twice, DEL of a sandbox
// of long ago, DEL without a network namespace, plugins killed and stopped at any moment, ipamd killed, a full disk. One
// node has single addresses, the other one prefixes. After each round the runtimes rest, and then every allocation is a
// live pod's, every live pod can be reached, and there is no link, route, rule, neighbour, nft element or connection
// of any other.
func TestRandomSteps(t *testing.T) {
	t.Parallel()
	seed := cmp.Or(*stepsSeed, rand.Uint64())
	t.Logf("seed %d (-args -steps %d -steps-seed %d)", seed, *stepsFlag, seed)
	l := lab(t, cluster.Spec{
		Nodes: []cluster.NodeSpec{
			// Fewer addresses than pods, and each is another pod's at once.
			{Name: "n1", Type: "m5.xlarge", Env: map[string]string{"MAX_ENI": "2", "IP_COOLDOWN_PERIOD": "0"}},
			{Name: "n2", Type: "m5.xlarge", Env: map[string]string{"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}},
		},
		AttachDelay: 200 * time.Millisecond, DetachDelay: 100 * time.Millisecond,
		Env: map[string]string{"IP_COOLDOWN_PERIOD": "1", "POOL_SHRINK_DELAY": "2"},
	})
	ctx, cancel := context.WithTimeout(t.Context(), *stepsTime)
	defer cancel()
	var stages []*stage
	for i, n := range l.Nodes() {
		s := newStage(ctx, t, l, n, seed+uint64(i)<<32)
		defer s.host.close()
		stages = append(stages, s)
	}
	began := time.Now()
	for done := 0; done < *stepsFlag && !t.Failed(); {
		round := min(stepsPerRound, *stepsFlag-done)
		var left atomic.Int64
		left.Store(int64(round))
		var work sync.WaitGroup
		for _, s := range stages {
			work.Go(func() { s.round(ctx, &left) })
		}
		work.Wait()
		for _, s := range stages {
			work.Go(func() { s.settle(ctx) })
		}
		work.Wait()
		done += round
		if ctx.Err() != nil {
			t.Fatalf("%d of %d steps in %s", done, *stepsFlag, time.Since(began))
		}
	}
	took := time.Since(began)
	for _, s := range stages {
		s.finish(ctx)
		t.Logf("%s: %v", s.node.Name, s.counted())
	}
	t.Logf("%d steps in %s (%.1f a second)", *stepsFlag, took.Round(time.Second), float64(*stepsFlag)/took.Seconds())
	checkDrops(t, l)
}

// stage is a node with those who act on it.
type stage struct {
	t       *testing.T
	lab     *cluster.Cluster
	node    *cluster.Node
	runtime *criRuntime
	host    *hostState
	workers []*stepWorker
	random  *rand.Rand // of what befalls the node

	mu    sync.Mutex
	count map[string]int
	freed map[netip.Addr]bool
}

func newStage(ctx context.Context, t *testing.T, l *cluster.Cluster, n *cluster.Node, seed uint64) *stage {
	t.Helper()
	s := &stage{t: t, lab: l, node: n, random: rand.New(rand.NewPCG(seed, 0)), count: map[string]int{}, freed: map[netip.Addr]bool{}}
	// A disk of its own for the state, that can be full.
	err := errors.Join(n.StopIPAMD(ctx), n.OS().Do(func() error {
		return unix.Mount("tmpfs", stateDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=1m,mode=755")
	}), n.StartIPAMD(ctx))
	if err == nil {
		s.runtime, err = newRuntime(n)
	}
	if err == nil {
		s.host, err = newHostState(n)
	}
	if err != nil {
		t.Fatal(err)
	}
	for w := range stepWorkers {
		worker := &stepWorker{stage: s, id: w, random: rand.New(rand.NewPCG(seed, uint64(w)+1)), live: map[string]*box{}}
		for p := range podsPerWorker {
			worker.pods = append(worker.pods, fmt.Sprintf("%s-%d-%d", n.Name, w, p))
		}
		s.workers = append(s.workers, worker)
	}
	serve(t, n.Name, n.OS().Do, probePort)
	return s
}

// did counts a step.
func (s *stage) did(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count[what]++
}

func (s *stage) counted() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.count)
}

// round lets everybody act until no step is left.
func (s *stage) round(ctx context.Context, left *atomic.Int64) {
	var work sync.WaitGroup
	over, end := context.WithCancel(ctx)
	for _, w := range s.workers {
		work.Go(func() {
			for ctx.Err() == nil && left.Add(-1) >= 0 {
				w.step(ctx)
			}
			end()
		})
	}
	work.Go(func() {
		for s.disturb(over) {
			left.Add(-1)
		}
	})
	work.Wait()
	end()
}

// disturb waits a while and lets something befall the node. Afterwards all is as it was.
func (s *stage) disturb(ctx context.Context) bool {
	timer := time.NewTimer(time.Duration(500+s.random.IntN(2500)) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	pause := func(limit time.Duration) {
		timer := time.NewTimer(time.Duration(s.random.Int64N(int64(limit))))
		defer timer.Stop()
		<-timer.C
	}
	start := func() {
		if err := s.node.StartIPAMD(context.WithoutCancel(ctx)); err != nil {
			s.t.Error(err)
		}
	}
	switch roll := s.random.IntN(100); {
	case roll < 50:
		s.did("ipamd killed")
		s.node.KillIPAMD()
		start()
	case roll < 56: // longer than a DEL waits for it
		s.did("ipamd away")
		s.node.KillIPAMD()
		pause(8 * time.Second)
		start()
	case roll < 80:
		s.did("disk full")
		free := s.fill()
		pause(1500 * time.Millisecond)
		free()
	default:
		s.did("ipamd killed while the disk is full")
		free := s.fill()
		pause(500 * time.Millisecond)
		s.node.KillIPAMD()
		started := make(chan struct{})
		go func() {
			defer close(started)
			start()
		}()
		pause(time.Second)
		free()
		<-started
	}
	return true
}

// fill leaves no room on the disk with ipamd's state until free is called.
func (s *stage) fill() (free func()) {
	const filler = stateDir + "/filler"
	err := s.node.OS().Do(func() error {
		f, err := os.Create(filler)
		if err != nil {
			return err
		}
		defer f.Close()
		for chunk := make([]byte, 4096); err == nil; {
			_, err = f.Write(chunk)
		}
		if errors.Is(err, unix.ENOSPC) {
			err = nil
		}
		return err
	})
	if err != nil {
		s.t.Error(err)
	}
	return func() {
		if err := s.node.OS().Do(func() error { return os.Remove(filler) }); err != nil {
			s.t.Error(err)
		}
	}
}

// settle waits until nothing but the live pods is to be seen, and asks each of them.
func (s *stage) settle(ctx context.Context) {
	var problems, last []string
	began := time.Now()
	deadline := time.NewTimer(settleTime)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var err error
		if problems, err = s.compare(ctx); err != nil {
			problems = []string{err.Error()}
		}
		if len(problems) == 0 {
			break
		}
		last = problems
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		case <-deadline.C:
		}
		s.t.Errorf("%s does not come to rest:\n%s", s.node.Name, strings.Join(problems, "\n"))
		s.tell(problems)
		return
	}
	if took := time.Since(began); took > slow {
		s.t.Logf("%s came to rest after %s: the last of it were\n%s", s.node.Name, took.Round(time.Second), strings.Join(last, "\n"))
		s.tell(last)
	}
	s.talk(ctx)
}

// tell logs what ipamd and the plugin had to say about addresses that are the problem.
func (s *stage) tell(problems []string) {
	all := strings.Join(problems, "\n")
	log := s.node.IPAMDLog() + s.node.PluginLog()
	told := map[string]bool{}
	for line := range strings.Lines(log) {
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune("\" ,[]", r) }) {
			if (netip.Addr{}) != parseAddr(word) && strings.Contains(all, word+" is held") || len(word) == 32 && strings.Contains(all, word[:12]) {
				told[line] = true
			}
		}
	}
	lines := slices.Sorted(maps.Keys(told)) // each begins with its time
	s.t.Logf("%s: what was said about it:\n%s", s.node.Name, strings.Join(lines[max(0, len(lines)-60):], ""))
}

func parseAddr(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

func (s *stage) boxes() []*box {
	var all []*box
	for _, w := range s.workers {
		for _, pod := range slices.Sorted(maps.Keys(w.live)) {
			all = append(all, w.live[pod])
		}
	}
	return all
}

// compare lists where what ipamd has written down, what it says, EC2 and the host differ from the pods that live.
func (s *stage) compare(ctx context.Context) (problems []string, err error) {
	w := wanted{pods: map[netip.Addr]string{}, enis: s.lab.Cloud().ENIsOf(s.node.InstanceID), freed: s.freed}
	w.enis = slices.DeleteFunc(w.enis, func(e ec2.ENI) bool { return e.Attachment.State != "attached" })
	assigned := func(a netip.Addr) bool {
		return slices.ContainsFunc(w.enis, func(e ec2.ENI) bool {
			return slices.ContainsFunc(pool(e), func(p netip.Prefix) bool { return p.Contains(a) })
		})
	}
	held := allocations(s.t, s.node)
	total, inUse, err := s.introspect(ctx)
	if err != nil {
		return nil, err
	}
	boxes := s.boxes()
	for _, b := range boxes {
		if other, twice := w.pods[b.address]; twice {
			problems = append(problems, fmt.Sprintf("%s is held by %s and %s", b.address, b.pod, other))
		}
		w.pods[b.address] = names.HostVeth("eni", namespace, b.pod, 0)
		if held[b.id] != b.address {
			problems = append(problems, fmt.Sprintf("%s (%.12s) has %s, but the state file says %v", b.pod, b.id, b.address, held[b.id]))
		}
		if !assigned(b.address) {
			problems = append(problems, fmt.Sprintf("%s has %s, which EC2 has on no ENI of the node", b.pod, b.address))
		}
		delete(held, b.id)
	}
	for id, a := range held {
		problems = append(problems, fmt.Sprintf("leaked: %s is held by sandbox %.12s, which no pod has", a, id))
	}
	if inUse != len(boxes) || total < inUse {
		problems = append(problems, fmt.Sprintf("ipamd says that %d of %d addresses are assigned, and %d pods live", inUse, total, len(boxes)))
	}
	if n := notes(s.t, s.node); n > 0 {
		problems = append(problems, fmt.Sprintf("%d notes of DELs", n))
	}
	more, err := s.host.diff(w)
	slices.Sort(problems)
	return append(problems, more...), err
}

// introspect asks ipamd how many addresses it has, and how many are assigned.
func (s *stage) introspect(ctx context.Context) (total, assigned int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DialContext: s.node.OS().DialContext, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:61679/v1/enis", nil)
	if err != nil {
		return 0, 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	var cards map[string]struct{ TotalIPs, AssignedIPs int }
	text, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(text, &cards)
	}
	for _, card := range cards {
		total, assigned = total+card.TotalIPs, assigned+card.AssignedIPs
	}
	return total, assigned, err
}

// talk has each pod ask the node and be asked back.
func (s *stage) talk(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(4)
	for _, b := range s.boxes() {
		group.Go(func() error {
			do := func(f func() error) error { return s.node.OS().DoIn(b.ns, f) }
			a, err := probe.UDP(ctx, do, netip.AddrPortFrom(s.node.Address, probePort), 64, probe.Timeout(10*time.Second), probe.Retries(2))
			if err == nil && (a.Server != s.node.Name || a.Source != b.address) {
				err = fmt.Errorf("%s answered and saw %s", a.Server, a.Source)
			}
			if err != nil {
				s.t.Errorf("%s %s → %s: %v", b.pod, b.address, s.node.Name, err)
			}
			return nil
		})
	}
	_ = group.Wait()
}

// finish deletes every pod, and wants nothing to be left.
func (s *stage) finish(ctx context.Context) {
	if s.t.Failed() {
		return
	}
	for _, w := range s.workers {
		for _, pod := range slices.Sorted(maps.Keys(w.live)) {
			w.remove(ctx, w.live[pod], spared)
		}
	}
	s.settle(ctx)
}

// stepWorker has pods of its own, for a kubelet does one thing at a time for each.
type stepWorker struct {
	*stage
	id     int
	random *rand.Rand
	pods   []string
	live   map[string]*box
	dead   []*box // the last few
	made   int
}

// maxDead is how many sandboxes of long ago a kubelet still asks to delete.
const maxDead = 12

func (w *stepWorker) step(ctx context.Context) {
	pod := w.pods[w.random.IntN(len(w.pods))]
	b := w.live[pod]
	roll := w.random.IntN(100)
	switch {
	case roll < 10 && len(w.dead) > 0:
		w.did("late DEL")
		old := w.dead[w.random.IntN(len(w.dead))]
		// Its answer changes nothing: ipamd may be away, or the disk full.
		_ = w.runtime.del(ctx, old, w.fate())
	case b == nil:
		w.add(ctx, pod)
	case roll < 35:
		w.did("traffic")
		w.traffic(b)
	default:
		w.remove(ctx, b, w.fate().kind)
	}
}

// fate is what befalls a plugin that takes some 10 ms.
func (w *stepWorker) fate() fate {
	f := fate{after: time.Duration(w.random.Int64N(int64(25 * time.Millisecond))), left: time.Duration(w.random.Int64N(int64(time.Second)))}
	switch roll := w.random.IntN(100); {
	case roll < 15:
		f.kind = killed
	case roll < 21:
		f.kind = abandoned
	case roll < 27:
		f.kind = delayed
	}
	return f
}

func (w *stepWorker) add(ctx context.Context, pod string) {
	f := w.fate()
	w.did(strings.TrimSpace("ADD " + string(f.kind)))
	w.made++
	b, err := w.runtime.create(pod, fmt.Sprintf("%016x%08x%08x", w.random.Uint64(), w.id, w.made))
	if err != nil {
		w.t.Error(err)
		return
	}
	if err := w.runtime.add(ctx, b, f); err != nil {
		w.remove(ctx, b, spared)
		return
	}
	w.live[pod] = b
	w.mu.Lock()
	w.freed[b.address] = true // once it is
	w.mu.Unlock()
	w.traffic(b)
}

// traffic leaves entries in the node's connection tracking.
func (w *stepWorker) traffic(b *box) {
	targets := []netip.Addr{w.node.Address, fabric.InternetAddr}
	for _, other := range w.live {
		targets = append(targets, other.address)
	}
	slices.SortFunc(targets, netip.Addr.Compare)
	to := targets[w.random.IntN(len(targets))]
	err := w.node.OS().DoIn(b.ns, func() error {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_, _ = conn.Write([]byte("x")) // nobody listens, and may have said so
		return nil
	})
	if err != nil {
		w.t.Errorf("%s %s cannot send to %s: %v", b.pod, b.address, to, err)
	}
}

// remove deletes a sandbox as a kubelet does: until it works. Only the first try meets with a fate.
func (w *stepWorker) remove(ctx context.Context, b *box, kind fateKind) {
	f := w.fate()
	f.kind = kind
	what := strings.TrimSpace("DEL " + string(kind))
	// A namespace that is gone, as after a runtime's restart.
	if w.random.IntN(4) == 0 {
		what = strings.Replace(what, "DEL", "DEL without netns", 1)
		if err := w.runtime.destroy(b); err != nil {
			w.t.Error(err)
		}
	}
	w.did(what)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := w.runtime.del(ctx, b, f)
		if err == nil {
			break
		}
		f = fate{}
		select {
		case <-tick.C:
		case <-ctx.Done():
			w.t.Errorf("never deleted: %v", err)
			return
		}
	}
	if w.random.IntN(5) == 0 {
		w.did("DEL twice")
		_ = w.runtime.del(ctx, b, w.fate())
	}
	if err := w.runtime.destroy(b); err != nil {
		w.t.Error(err)
	}
	if w.live[b.pod] == b {
		delete(w.live, b.pod)
	}
	w.dead = append(w.dead, b)
	w.dead = w.dead[max(0, len(w.dead)-maxDead):]
}
