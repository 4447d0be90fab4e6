package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"vpccni/test/bench/stats"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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

// stepRow is what a step adds to the one before it, in milliseconds: medians of executions. The kernel counts in ticks
// which part of a process's CPU time is its own, so System is a mean.
type stepRow struct {
	Step   string  `json:"step"`
	Wall   float64 `json:"wallMilliseconds"`
	CPU    float64 `json:"cpuMilliseconds"`
	System float64 `json:"systemMilliseconds"`
}

func stepRows(spent steps) []stepRow {
	var rows []stepRow
	var before stepRow
	for _, step := range stepNames {
		r := spent[step]
		if r == nil {
			continue
		}
		now := stepRow{step, stats.Median(r.wall), stats.Median(r.cpu), stats.Mean(r.system)}
		rows = append(rows, stepRow{step, now.Wall - before.Wall, now.CPU - before.CPU, now.System - before.System})
		before = now
	}
	if r := spent[stepVeth]; r != nil {
		rows = append(rows, stepRow{stepVeth, stats.Median(r.wall), stats.Median(r.cpu), stats.Mean(r.system)})
	}
	return rows
}

// rssSamples is how many ADDs are looked at for their memory.
const rssSamples = 9

// residentMemory returns the most memory of an ADD that was resident, in MB. What wait4 says of it holds the memory of
// the process that forked; so an ADD is held up where it prints its result, by a pipe that is full, and looked at.
func (n *pluginNode) residentMemory(ctx context.Context, o options) (stats.Figure, error) {
	var runs []float64
	for range rssSamples {
		mb, err := n.residentOnce(ctx, o)
		if err != nil {
			return stats.Figure{}, err
		}
		runs = append(runs, mb)
		if e := n.execute(o.program(opDel), opDel, n.podOf(opAdd, 0)); e.err != nil {
			return stats.Figure{}, e.err
		}
		if err := n.clear(); err != nil {
			return stats.Figure{}, err
		}
	}
	return stats.Over(runs), nil
}

func (n *pluginNode) residentOnce(ctx context.Context, o options) (float64, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer read.Close()
	defer write.Close()
	if err := fillPipe(write); err != nil {
		return 0, err
	}
	cmd := n.command(o.program(opAdd), opAdd, n.podOf(opAdd, 0))
	cmd.Stdout = write
	if err := n.host.do(cmd.Start); err != nil {
		return 0, err
	}
	// It has come to its end when it needs no more memory for a while.
	most, same := 0.0, 0
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for same < 20 && ctx.Err() == nil {
		<-tick.C
		memory, err := residentMemory(cmd.Process.Pid)
		if err != nil {
			return 0, errors.Join(err, cmd.Wait())
		}
		if memory["VmHWM"] > most {
			most, same = memory["VmHWM"], 0
		}
		same++
	}
	_ = write.Close()
	go func() { _, _ = io.Copy(io.Discard, read) }()
	return most, errors.Join(ctx.Err(), cmd.Wait())
}

// fillPipe writes until nothing more goes in.
func fillPipe(write *os.File) error {
	raw, err := write.SyscallConn()
	if err != nil {
		return err
	}
	block := make([]byte, 4096)
	var full error
	err = raw.Write(func(fd uintptr) bool {
		for full == nil {
			_, full = unix.Write(int(fd), block)
		}
		return true
	})
	if errors.Is(full, unix.EAGAIN) {
		full = nil
	}
	return errors.Join(err, full)
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
