package ipamd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/delnote"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/checkpoint/checkpointtest"
	"vpccni/pkg/ipamd/orphans"
	"vpccni/pkg/ipamd/warmpool"
)

// crash is a world with the real state files, whose daemon dies at one point of a story that is the same every time. The
// points are before and after each call to EC2, each Apply, each step of each write of each file, and each step of each
// request.
type crash struct {
	*world
	dir    string
	files  *checkpointtest.Faults
	store  *checkpoint.Store
	stop   func()
	notes  delnote.Dir
	noted  map[uint64]delnote.Note // DELs on behalf of notes, by id
	points []string                // passed so far
	killAt int                     // the point to die at, from 1; 0: none
	calls  fate
	ends   bool // the instance ends at that point, too
}

// fate is what becomes of the other calls that are under way when the daemon dies.
type fate string

const (
	lost    fate = "lost"    // they do not reach EC2
	reached fate = "reached" // they have reached EC2
)

func newCrash(dir string, targets warmpool.Targets) *crash {
	c := &crash{world: newWorld(1, targets), dir: dir, notes: delnote.Dir(filepath.Join(dir, "notes"))}
	c.opts.Settings.ClusterName = "test"
	c.carryOut = c.do
	return c
}

func (c *crash) path() string { return filepath.Join(c.dir, "ipam.json") }

// passes counts a point and tells whether the daemon dies there.
func (c *crash) passes(format string, args ...any) bool {
	c.points = append(c.points, fmt.Sprintf(format, args...))
	return len(c.points) == c.killAt
}

// start starts a daemon on the files that are there, as main does.
func (c *crash) start() {
	c.files = &checkpointtest.Faults{At: func(point string) bool { return c.passes("%s", point) }}
	c.store = checkpoint.New(checkpoint.Options{Path: c.path(), JournalPath: filepath.Join(c.dir, "journal.json"),
		Source: func() checkpoint.Snapshot { return c.ctrl.snapshot(c.now) }, Files: c.files, Log: slog.New(slog.DiscardHandler)})
	state, err := c.store.Load()
	if err != nil && len(c.pods) > 0 {
		c.problem("restart: %v", err)
	}
	c.disk = state
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.store.Run(ctx)
	}()
	c.stop = func() {
		c.files.Dead = true
		cancel()
		<-done
	}
	c.boot()
	c.noted = map[uint64]delnote.Note{}
	notes, problems := c.notes.Read(c.now)
	if len(problems) > 0 {
		c.problem("notes: %v", problems)
	}
	for _, note := range notes {
		c.lastID++
		c.noted[c.lastID] = note
		c.dels[c.lastID] = -1
		c.step(evDel{id: c.lastID, req: DelRequest{Sandbox: Sandbox{note.NetworkName, note.ContainerID, note.IfName}, Gone: note.Time}})
	}
}

// do carries out an effect, with a point before and after it.
func (c *crash) do(e effect) {
	switch e := e.(type) {
	case effCall:
		if c.passes("before %s", e.method) {
			c.die()
			return
		}
		r := c.call(e.call)
		if c.passes("after %s, before its answer", e.method) {
			c.die()
			return
		}
		c.step(evCalled{e.call, r})
	case effApply:
		if c.passes("before Apply") {
			c.die()
			return
		}
		report, err := c.host.apply(e.cfg, c.now)
		if c.passes("after Apply") {
			c.die()
			return
		}
		c.step(evApplied{e.cfg, report, err})
	case effCommit:
		err := c.store.Commit(context.Background())
		if c.files.Dead || c.passes("committed, before the replies") {
			c.die()
			return
		}
		c.step(evCommitted{err})
		for id, note := range c.noted {
			if _, open := c.dels[id]; !open {
				delete(c.noted, id)
				if err := c.notes.Done(note); err != nil {
					c.problem("note: %v", err)
				}
			}
		}
		if c.passes("replied") {
			c.die()
		}
	case effEnded:
		c.step(e.evAddEnded)
	}
}

// admit starts a pod.
func (c *crash) admit() {
	if c.passes("ADD accepted") {
		c.lastPod++
		c.pods[c.lastPod] = &simPod{n: c.lastPod, state: "adding"}
		c.die()
		return
	}
	c.add()
	if c.passes("ADD decided, before its commit") {
		c.die()
	}
}

// evict ends a pod.
func (c *crash) evict(n int) {
	if c.passes("DEL accepted") {
		c.pods[n].state = "deleting"
		c.die()
		return
	}
	c.del(n)
	if c.passes("DEL decided, before its commit") {
		c.die()
	}
}

// die ends the daemon and, unless the instance ends with it, starts another one. Meanwhile the plugins give up: what they
// leave of a pod whose ADD or DEL had no answer is a note, and the runtime takes another sandbox.
func (c *crash) die() {
	c.trace = append(c.trace, "DIES: "+c.points[c.killAt-1])
	c.stop()
	for _, p := range c.pending {
		if e, ok := p.e.(effCall); ok && c.calls == reached {
			c.call(e.call)
		}
	}
	c.asUpstream()
	if c.ends {
		c.pending, c.timer = nil, time.Time{}
		return
	}
	c.now = c.now.Add(100 * time.Millisecond)
	again := 0
	for _, n := range c.podIDs() {
		p := c.pods[n]
		if p.state == "adding" {
			again++
		}
		if p.state == "adding" || p.state == "deleting" {
			delete(c.pods, n)
			s := pod(n)
			err := c.notes.Write(delnote.Note{Key: delnote.Key(s.Sandbox), Namespace: s.Namespace, Pod: s.Pod, Time: c.now})
			if err != nil {
				c.problem("note: %v", err)
			}
		}
	}
	c.now = c.now.Add(time.Second)
	c.start()
	for range again {
		c.add()
	}
}

// asUpstream: should upstream's daemon come next, it starts, and knows every pod that runs.
func (c *crash) asUpstream() {
	entries, err := checkpointtest.ReadAsUpstream(c.path())
	if err != nil {
		c.problem("upstream cannot read the file: %v", err)
	}
	for _, n := range c.podIDs() {
		p := c.pods[n]
		if p.state == "running" && entries[p.addr].ContainerID != pod(n).ContainerID {
			c.problem("upstream would not know of pod %d, which has %s: %+v", n, p.addr, entries[p.addr])
		}
	}
}

// story takes an ENI through its life and pods with it: create, attach, DeleteOnTermination, assign, unassign, detach,
// delete.
func (c *crash) story() {
	c.start()
	c.run(2 * time.Second)
	for range 3 {
		c.admit()
		c.run(300 * time.Millisecond)
	}
	c.run(10 * time.Second)
	many := 8
	if c.opts.Settings.Targets.Prefixes {
		many = 80 // than the primary ENI's prefixes hold
	}
	for i := range many {
		if i < 4 {
			c.admit()
		} else {
			c.add()
		}
	}
	c.run(90 * time.Second)
	left := 0
	for i, n := range c.podIDs() {
		switch {
		case i%7 == 0 || c.pods[n].state != "running" || c.over():
		case left < 8:
			left++
			c.evict(n)
			c.run(50 * time.Millisecond)
		default:
			c.del(n)
			if i%8 == 0 {
				c.run(50 * time.Millisecond)
			}
		}
	}
	c.run(5 * time.Minute)
	if c.over() {
		c.endNode()
	} else {
		c.rest()
		if left, problems := c.notes.Read(c.now); len(left)+len(problems) > 0 {
			c.problem("notes at rest: %v %v", left, problems)
		}
		c.stop()
	}
}

// over tells whether the instance has ended.
func (c *crash) over() bool { return c.ends && c.killAt > 0 && len(c.points) >= c.killAt }

// endNode ends the instance and lets the cluster's cleaner pass once.
func (c *crash) endNode() {
	c.now = c.now.Add(time.Minute)
	c.cloud.terminate(testInstance, c.now)
	c.now = c.now.Add(time.Hour)
	c.cloud.tick(c.now)
	cleanOrphans(c.cloud, c.now)
	for _, id := range slices.Sorted(maps.Keys(c.cloud.enis)) {
		c.problem("%s outlives its node: %+v", id, *c.cloud.enis[id])
	}
}

var everyCrash = flag.Bool("crashes", false, "every crash point of every story, with all that may become of calls under way")

// TestCrashPoints dies at every point of a story, and then starts again, or the instance ends too. Without -crashes it
// dies at every point of the first story and at each seventh of the others.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	for name, story := range map[string]struct {
		targets warmpool.Targets
		each    int
	}{
		"addresses":  {warmpool.Targets{WarmIP: 2, MinimumIP: 4}, 1},
		"whole ENIs": {warmpool.Targets{WarmENI: 1}, 7},
		"prefixes":   {warmpool.Targets{Prefixes: true, WarmPrefix: 1}, 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			targets, each := story.targets, story.each
			if *everyCrash {
				each = 1
			}
			first := newCrash(stateDir(t), targets)
			first.story()
			first.report(t, "no death")
			kinds := map[string]int{}
			for _, p := range first.points {
				kinds[p]++
			}
			for _, m := range callsOf(targets) {
				if kinds["before "+string(m)] == 0 {
					t.Errorf("the story has no %s", m)
				}
			}
			t.Logf("%d points: %v", len(first.points), kinds)
			runs := 0
			run := func(at int, calls fate, ends bool) {
				c := newCrash(stateDir(t), targets)
				c.killAt, c.calls, c.ends = at, calls, ends
				c.story()
				runs++
				c.report(t, fmt.Sprintf("%s: death at point %d, %s; calls under way are %s; the node ends: %v",
					name, at, first.points[at-1], calls, ends))
			}
			fates := []fate{lost, reached}
			for at := 1; at <= len(first.points); at += each {
				run(at, fates[at%2], false)
				if *everyCrash {
					run(at, fates[(at+1)%2], false)
					run(at, fates[(at+1)%2], true)
				}
				if *everyCrash || at/each%2 == 0 {
					run(at, fates[at%2], true)
				}
			}
			t.Logf("%d deaths", runs)
		})
	}
}

// While the state's file system takes nothing, an ADD and a DEL fail with that for a reason, and nothing leaks; when it
// takes files again, pods get addresses again, without anybody doing anything.
func TestFileSystemThatTakesNothing(t *testing.T) {
	t.Parallel()
	for _, err := range []error{unix.ENOSPC, unix.EROFS} {
		c := newCrash(stateDir(t), warmpool.Targets{WarmIP: 2, MinimumIP: 4})
		c.start()
		for range 3 {
			c.add()
		}
		c.run(20 * time.Second)
		running := c.podIDs()
		c.files.Err = err
		var refusals []error
		c.answered = func(err error) { refusals = append(refusals, err) }
		c.add()
		c.del(running[0])
		c.run(time.Second)
		for _, got := range refusals {
			var r *Refusal
			if !errors.As(got, &r) || r.Code != CodeStorage || !strings.Contains(r.Reason, err.Error()) {
				t.Errorf("%v: answer %v", err, got)
			}
		}
		if len(refusals) != 2 {
			t.Errorf("%v: %d answers", err, len(refusals))
		}
		c.run(time.Minute)
		if n := len(c.ctrl.store.Allocations()); n != 3 {
			t.Errorf("%v: %d allocations for 3 pods", err, n)
		}
		c.asUpstream()
		c.files.Err, c.answered = nil, nil
		c.add()
		c.retry()
		c.run(20 * time.Second)
		if got := c.podIDs(); len(got) != 3 || slices.Contains(got, running[0]) {
			t.Errorf("%v: pods %v afterwards", err, got)
		}
		c.rest()
		c.stop()
		c.report(t, err.Error())
	}
}

func callsOf(targets warmpool.Targets) []method {
	all := []method{callCreate, callAttach, callProtect, callDetach, callDelete, callDescribe}
	switch {
	case targets.Prefixes:
		return append(all, callAssignPrefixes, callUnassignPrefixes)
	case targets.WarmENI > 0:
		return all
	}
	return append(all, callAssign, callUnassign)
}

// stateDir is a directory like the one that holds the state on a node, on a tmpfs.
func stateDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "crash-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// terminate ends an instance: ENIs that are to go with it go, the others stay behind.
func (c *cloud) terminate(instance string, now time.Time) {
	c.tick(now)
	for id, e := range c.enis {
		switch {
		case e.InstanceID != instance:
		case e.DeleteOnTermination:
			delete(c.enis, id)
		default:
			e.InstanceID, e.AttachmentID, e.Device, e.Status = "", "", -1, "available"
		}
	}
}

// cleanOrphans is one pass of the cluster's cleaner, by its own decision about each detached ENI.
func cleanOrphans(c *cloud, now time.Time) {
	var detached []awsutils.ENI
	for _, e := range c.enis {
		if e.Status == "available" {
			detached = append(detached, clone(e))
		}
	}
	criteria := orphans.Criteria{Cluster: "test", MinAge: orphans.DefaultMinAge}
	for _, v := range orphans.Decide(detached, map[string]string{testInstance: "terminated"}, criteria, now) {
		if v.Delete {
			delete(c.enis, v.ENI)
		}
	}
}
