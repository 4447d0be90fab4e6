package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"vpccni/test/vm/protocol"
)

// bootPatience is how long a kernel may take to its first process: 7 s, but for a busy host. One that hangs or panics
// before that says nothing about the tests, and is started again, at most maxBoots times in all.
const (
	bootPatience = 2 * time.Minute
	maxBoots     = 3
)

// boot runs the virtual machine until it ends by itself, or ctx ends. It is emulated throughout (TCG), so that it runs where
// there is no nested virtualisation, and it has no network device.
func boot(ctx context.Context, kernel, initramfs string, out *report) error {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "pc,usb=off,vmport=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536",
		"-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs, "-serial", "stdio",
		"-append", "console=ttyS0 loglevel=7 reboot=t panic=-1 oops=panic rdinit=/init mitigations=off random.trust_cpu=on "+
			// A busy host keeps the emulated timer from ticking as often as the kernel wants to see at its start.
			"no_timer_check")
	cmd.WaitDelay = 5 * time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	stuck := time.AfterFunc(bootPatience, func() {
		if !out.booted.Load() {
			_ = cmd.Process.Kill()
		}
	})
	out.read(stdout)
	err = cmd.Wait()
	stuck.Stop()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the virtual machine did not end in time: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("qemu: %w: %s", err, strings.TrimSpace(stderr.String()))
	case out.broken != "":
		return errors.New(out.broken)
	case !out.done:
		return errors.New("the virtual machine ended before its tests did")
	}
	return nil
}

// report is what the console said.
type report struct {
	echo io.Writer // takes a copy of the console, if set

	booted  atomic.Bool
	release string
	broken  string
	done    bool
	suites  []*outcome
	kernel  []string // lines outside of suites
}

// outcome is what came of one suite.
type outcome struct {
	name                    string
	passed, failed, skipped []string // names of tests and their subtests
	ended                   bool
	err                     string // "<nil>" for success
	lines                   []string
	began                   time.Time
	took                    time.Duration
}

var verdict = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+)`)

func (r *report) read(console io.Reader) {
	lines := bufio.NewScanner(console)
	lines.Buffer(make([]byte, 64<<10), 16<<20)
	var current *outcome
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if r.echo != nil {
			fmt.Fprintln(r.echo, line)
		}
		if rest, ok := strings.CutPrefix(line, protocol.Booted); ok {
			r.release = rest
			r.booted.Store(true)
		} else if rest, ok := strings.CutPrefix(line, protocol.Broken); ok {
			r.broken = rest
		} else if line == protocol.Done {
			r.done = true
		} else if rest, ok := strings.CutPrefix(line, protocol.Begin); ok {
			current = &outcome{name: rest, began: time.Now()}
			r.suites = append(r.suites, current)
		} else if rest, ok := strings.CutPrefix(line, protocol.End); ok && current != nil {
			_, current.err, _ = strings.Cut(rest, " ")
			current.ended, current.took = true, time.Since(current.began)
			current = nil
		} else if current != nil {
			current.line(line)
		} else {
			r.kernel = append(r.kernel, line)
		}
	}
}

func (o *outcome) line(line string) {
	o.lines = append(o.lines, line)
	m := verdict.FindStringSubmatch(line)
	if m == nil || strings.Count(m[2], "/") > 1 && m[1] == "PASS" {
		return // a round of a test is no test
	}
	switch m[1] {
	case "PASS":
		o.passed = append(o.passed, m[2])
	case "FAIL":
		o.failed = append(o.failed, m[2])
	case "SKIP":
		o.skipped = append(o.skipped, m[2])
	}
}

func (o *outcome) ok() bool {
	return o.ended && o.err == "<nil>" && len(o.failed) == 0 && len(o.skipped) == 0 && len(o.passed) > 0
}

// passed says whether all suites ran and no test failed. A test that is skipped here has not been shown to pass.
func (r *report) passed(suites int) bool {
	for _, o := range r.suites {
		if !o.ok() {
			return false
		}
	}
	return r.done && len(r.suites) == suites
}

func (r *report) print(w io.Writer, took time.Duration) {
	var passed, failed int
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "Linux %s in QEMU\tpassed\tfailed\tskipped\ttime\n", r.release)
	for _, o := range r.suites {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%.0f s\n", o.name, len(o.passed), len(o.failed), len(o.skipped), o.took.Seconds())
		passed += len(o.passed)
		failed += len(o.failed) + len(o.skipped)
		if !o.ok() && len(o.failed)+len(o.skipped) == 0 {
			failed++ // it did not end, or not well, or had nothing to run
		}
	}
	_ = table.Flush()
	for _, o := range r.suites {
		if !o.ok() {
			fmt.Fprintf(w, "\n== %s: %s\nfailed: %q, skipped: %q\n%s\n", o.name, o.err, o.failed, o.skipped, strings.Join(o.lines, "\n"))
		}
	}
	if !r.done {
		fmt.Fprintf(w, "\n== the kernel's last words\n%s\n", strings.Join(r.kernel[max(0, len(r.kernel)-60):], "\n"))
		failed++
	}
	fmt.Fprintf(w, "%d passed, %d failed (%.0f s)\n", passed, failed, took.Seconds())
}
