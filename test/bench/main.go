// bench measures what pods cost: ADD and DEL of the plugin binary, ipamd's memory, CPU and start, and the CPU time of
// packets and connections, with few and with many pods on the node. Beside the plugin's and the packets' figures it prints
// the floor measured in the same run (the start of an empty Go program, and plain routing without a rule) and whether the
// goals are met. docs/benchmarks.md says how to read it.
//
// Everything runs in a sandbox of its own; the machine's network is not touched.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vpccni/lab/sandbox"

	"golang.org/x/sys/unix"
)

// part is the name of the benchmark inside the sandbox.
const part = "bench"

func main() {
	sandbox.Register(part, inside)
	sandbox.Init()
	code, err := outside()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// The parts of the benchmark.
const (
	onlyAdd     = "add"
	onlyIPAMD   = "ipamd"
	onlyPackets = "packets"
)

// options are the command line, of the program as of its inside.
type options struct {
	short  bool
	plugin string
	ipamd  string
	empty  string
	only   string
}

func parseOptions(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.BoolVar(&o.short, "short", false, "fewer samples: at most two minutes")
	flags.StringVar(&o.plugin, "plugin", "", "measure this plugin binary instead of building one")
	flags.StringVar(&o.only, "only", "", "measure one part only: add, ipamd or packets")
	flags.StringVar(&o.ipamd, "ipamd", "", "measure this ipamd instead of building one; aws-cni must lie beside it")
	flags.StringVar(&o.empty, "empty", "", "an empty Go program, built as the plugin is (default: build one)")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.only != "" && !slices.Contains([]string{onlyAdd, onlyIPAMD, onlyPackets}, o.only) {
		return o, fmt.Errorf("-only %s: must be add, ipamd or packets", o.only)
	}
	return o, nil
}

func (o options) args() []string {
	args := []string{"-plugin", o.plugin, "-ipamd", o.ipamd, "-empty", o.empty, "-only", o.only}
	if o.short {
		args = append(args, "-short")
	}
	return args
}

// effort is how much is measured.
type effort struct {
	// rounds is how often everything is measured; the levels and the modes take turns in each.
	rounds int
	// samples and bursts are executions of each operation, one by one and many at once, for each level and round.
	samples, bursts int
	// packetRounds is the same of packets, units how many of each measure are in a round, for each layout, direction and level.
	packetRounds int
	units        map[string]int
	// starts of ipamd for each level; the time until it is at rest, and the time it is watched then.
	starts       int
	settle, idle time.Duration
}

func (o options) effort() effort {
	if o.short {
		return effort{
			rounds: 5, samples: 8, bursts: 1, starts: 2, settle: 5 * time.Second, idle: 10 * time.Second,
			packetRounds: 5, units: map[string]int{udpPacket: 2048, tcpRR: 500, tcpCRR: 200},
		}
	}
	return effort{
		rounds: 9, samples: 24, bursts: 2, starts: 5, settle: 15 * time.Second, idle: 30 * time.Second,
		packetRounds: 15, units: map[string]int{udpPacket: 16384, tcpRR: 5000, tcpCRR: 1000},
	}
}

// outside builds the programs and runs the benchmark in its sandbox.
func outside() (int, error) {
	o, err := parseOptions(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	for _, program := range []struct {
		path *string
		pkg  string
		name string
	}{
		{&o.plugin, "./cmd/routed-eni-cni-plugin", "aws-cni"},
		{&o.ipamd, "./cmd/aws-k8s-agent", "aws-k8s-agent"},
		{&o.empty, "./test/bench/empty", "empty"},
	} {
		if *program.path != "" {
			if *program.path, err = filepath.Abs(*program.path); err != nil {
				return 1, err
			}
			continue
		}
		*program.path = filepath.Join(dir, program.name)
		if err := build(ctx, program.pkg, *program.path); err != nil {
			return 1, err
		}
	}
	cfg := sandbox.Config{Part: part, Args: o.args(), Stdout: os.Stdout, Stderr: os.Stderr}
	if name := os.Getenv("BENCH_JSON"); name != "" {
		file, err := os.Create(name)
		if err != nil {
			return 1, err
		}
		defer file.Close()
		cfg.Files = []*os.File{file}
	}
	return sandbox.Run(cfg)
}

// build makes a program as it is shipped.
func build(ctx context.Context, pkg, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s (run from the project's root): %w\n%s", pkg, err, text)
	}
	return nil
}

func inside() int {
	o, err := parseOptions(os.Args[1:])
	if err == nil {
		err = measure(context.Background(), o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// timeLimit ends a benchmark that a slow machine would draw out.
const timeLimit = 15 * time.Minute

// measure runs the parts, prints their tables and, where one is wanted, the file.
func measure(ctx context.Context, o options) error {
	ctx, cancel := context.WithTimeout(ctx, timeLimit)
	defer cancel()
	r := report{Rounds: o.effort().rounds, PacketRounds: o.effort().packetRounds, Machine: describeMachine(), Started: time.Now().UTC().Truncate(time.Second)}
	size, err := os.Stat(o.plugin)
	if err != nil {
		return err
	}
	r.PluginBytes = size.Size()
	var failed []error
	if o.only == "" || o.only == onlyAdd {
		r.Plugin, err = measurePlugin(ctx, o)
		failed = append(failed, err)
	}
	if o.only == "" || o.only == onlyIPAMD {
		r.IPAMD, err = measureDaemon(ctx, o)
		failed = append(failed, err)
	}
	if o.only == "" || o.only == onlyPackets {
		r.Packets, err = measurePackets(ctx, o)
		failed = append(failed, err)
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	r.Seconds = int(time.Since(r.Started).Seconds())
	r.print(os.Stdout)
	if files := sandbox.Files(); len(files) > 0 {
		encoder := json.NewEncoder(files[0])
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
	if n := r.failures(); n > 0 {
		return fmt.Errorf("%d executions of the plugin failed", n)
	}
	return nil
}

// progress tells a waiting person what goes on.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  "+strings.TrimSpace(format)+"\n", args...)
}
