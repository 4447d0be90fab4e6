package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"vpccni/test/bench/stats"

	"github.com/vishvananda/netlink"
)

// The steps of an ADD, each a program or a call that does what the one before does and something more; the last is apart.
const (
	stepEmpty   = "start of a Go program"
	stepVersion = "our program: start, arguments"
	stepRefused = "configuration, log, asking ipamd"
	stepAdd     = "wiring, result"
	stepVeth    = "of the wiring: the kernel's making of a veth pair"
)

var stepNames = []string{stepEmpty, stepVersion, stepRefused, stepAdd}

// steps collects the executions of each.
type steps map[string]*stepRuns

type stepRuns struct{ wall, cpu, system []float64 }

func (s steps) add(step string, e execution) {
	if s[step] == nil {
		s[step] = &stepRuns{}
	}
	r := s[step]
	r.wall, r.cpu, r.system = append(r.wall, e.wall), append(r.cpu, e.cpu), append(r.system, e.system)
}

// measureSteps runs the steps in turn.
func (n *pluginNode) measureSteps(ctx context.Context, o options, spent steps) error {
	for range o.effort().samples {
		if err := ctx.Err(); err != nil {
			return err
		}
		pod := n.podOf(opAdd, 0)
		no := pod
		no.name += refused
		for _, step := range []struct {
			name, op string
			pod      benchPod
			fails    bool
		}{
			{stepEmpty, opEmpty, pod, false}, {stepVersion, "VERSION", pod, false}, {stepRefused, opAdd, no, true}, {stepAdd, opAdd, pod, false},
		} {
			e := n.execute(o.program(step.op), step.op, step.pod)
			if (e.err != nil) != step.fails {
				return fmt.Errorf("%s: %w", step.name, errors.Join(e.err, errors.New("not as expected")))
			}
			spent.add(step.name, e)
		}
		if e := n.execute(o.program(opDel), opDel, pod); e.err != nil {
			return e.err
		}
		if err := n.clear(); err != nil {
			return err
		}
		e, err := n.makeVeth(pod)
		if err != nil {
			return err
		}
		spent.add(stepVeth, e)
	}
	return nil
}

// makeVeth makes a pair between the node and a sandbox by one message, and takes it away again.
func (n *pluginNode) makeVeth(pod benchPod) (execution, error) {
	var e execution
	err := n.host.do(func() error {
		link := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "bench0", MTU: 9001, TxQLen: -1},
			PeerName:  "eth0", PeerNamespace: netlink.NsFd(pod.sandbox.file.Fd()),
		}
		start := time.Now()
		before, err := threadTime()
		if err != nil {
			return err
		}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		after, err := threadTime()
		if err != nil {
			return err
		}
		e.wall, e.cpu = milliseconds(time.Since(start)), milliseconds(after-before)
		e.system = e.cpu
		return netlink.LinkDel(link)
	})
	return e, err
}

// stepRow is what a step adds to the one before it, as medians of executions, in milliseconds.
type stepRow struct {
	Step   string  `json:"step"`
	Wall   float64 `json:"wallMilliseconds"`
	CPU    float64 `json:"cpuMilliseconds"`
	System float64 `json:"systemMilliseconds"` // of CPU, what the kernel takes
}

func stepRows(spent steps) []stepRow {
	var rows []stepRow
	var before stepRow
	for _, step := range stepNames {
		r := spent[step]
		if r == nil {
			continue
		}
		now := stepRow{step, stats.Median(r.wall), stats.Median(r.cpu), stats.Median(r.system)}
		rows = append(rows, stepRow{step, now.Wall - before.Wall, now.CPU - before.CPU, now.System - before.System})
		before = now
	}
	if r := spent[stepVeth]; r != nil {
		rows = append(rows, stepRow{stepVeth, stats.Median(r.wall), stats.Median(r.cpu), stats.Median(r.system)})
	}
	return rows
}

// A storm is so many pods that start together, and that so often.
const (
	stormSize = 128
	stormRuns = 3
)

// stormRow is one storm.
type stormRow struct {
	Pods     int     `json:"pods"`
	Seconds  float64 `json:"seconds"`
	WallP50  float64 `json:"wallP50Milliseconds"`
	WallMax  float64 `json:"wallMaxMilliseconds"`
	Failures int     `json:"failures"`
}

// storm adds pods, burst at once, and takes them away again.
func (n *pluginNode) storm(ctx context.Context, o options) (stormRow, error) {
	row := stormRow{Pods: n.pods}
	executions := make([]execution, stormSize)
	next := make(chan int)
	var wg sync.WaitGroup
	start := time.Now()
	for range burst {
		wg.Go(func() {
			for i := range next {
				executions[i] = n.execute(o.program(opAdd), opAdd, benchPod{n.podName(i), n.sandboxes[i]})
			}
		})
	}
	for i := range executions {
		next <- i
	}
	close(next)
	wg.Wait()
	row.Seconds = time.Since(start).Seconds()
	var wall []float64
	for i, e := range executions {
		if e.err != nil {
			if row.Failures++; row.Failures == 1 {
				progress("failed: %v", e.err)
			}
		}
		wall = append(wall, e.wall)
		if e := n.execute(o.program(opDel), opDel, benchPod{n.podName(i), n.sandboxes[i]}); e.err != nil {
			return row, e.err
		}
	}
	row.WallP50, row.WallMax = stats.Median(wall), stats.Quantile(wall, 1)
	return row, errors.Join(ctx.Err(), n.clear())
}

// traceRow is what an ADD and a DEL ask of the kernel.
type traceRow struct {
	Operation string `json:"operation"`
	Calls     int    `json:"calls"`    // of all kinds
	Programs  int    `json:"programs"` // that are started, the plugin itself apart
	Dumps     int    `json:"dumps"`
	Syncs     int    `json:"syncs"`
	Batches   int    `json:"batches"` // of netlink messages
}

var (
	traceLine  = regexp.MustCompile(`(?m)^\d+ +[a-z0-9_]+\(`)
	traceExec  = regexp.MustCompile(`(?m)^\d+ +(execve|execveat|fork|vfork)\(`)
	traceSync  = regexp.MustCompile(`(?m)^\d+ +(fsync|fdatasync|sync|syncfs|sync_file_range|msync)\(`)
	traceBatch = regexp.MustCompile(`sendto\(\d+, \[+\{nlmsg_len`)
	// strace does not know the pod's socket for rtnetlink's: it prints 0x300 for NLM_F_DUMP there.
	traceDump = regexp.MustCompile(`NLM_F_DUMP|\|0x300`)
)

// trace counts the system calls of both families' ADD, and of DEL. Without strace there is nothing to count.
func (n *pluginNode) trace(ctx context.Context, o options) ([]traceRow, error) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		progress("strace is not installed: system calls are not counted")
		return nil, nil
	}
	dir, err := os.MkdirTemp("", "trace-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "calls")
	var rows []traceRow
	for _, op := range []string{opAdd, opDel, opAdd6} {
		program := []string{strace, "-f", "-qq", "-o", file, "-s", "4096", "-v", o.plugin}
		if e := n.execute(program, op, n.podOf(op, 0)); e.err != nil {
			return nil, e.err
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		rows = append(rows, countCalls(op, string(text)))
	}
	return rows, errors.Join(ctx.Err(), n.clear())
}

func countCalls(op, calls string) traceRow {
	count := func(r *regexp.Regexp) int { return len(r.FindAllString(calls, -1)) }
	row := traceRow{Operation: op, Calls: count(traceLine), Programs: count(traceExec) - 1, Syncs: count(traceSync), Batches: count(traceBatch)}
	for line := range strings.Lines(calls) {
		if strings.Contains(line, "sendto(") || strings.Contains(line, "sendmsg(") {
			row.Dumps += len(traceDump.FindAllString(line, -1))
		}
	}
	return row
}
