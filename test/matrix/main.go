// matrix checks every path of a packet, to and from pods on each ENI of a node, with real packets in the lab, beside a
// real kube-proxy in each of its modes, with and without source NAT, under all settings of rp_filter, and with other
// programs' marks in use. The settings that need a lab of their own are sampled so that every two values meet; all
// paths run in every such set-up. docs/matrix.md says how to read what it prints.
//
// Everything runs in a sandbox of its own; the machine's network is not touched.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vpccni/lab/sandbox"
)

// part is the name of the matrix inside the sandbox.
const part = "matrix"

// timeLimit ends a run that a slow machine would draw out.
const timeLimit = 30 * time.Minute

func main() {
	sandbox.Register(part, inside)
	sandbox.Init()
	code, err := outside()
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// options are the command line, of the program as of its inside.
type options struct {
	binDir, setUps string
	explain        string
	labs, random   int
	seed           uint64
}

// chosen are the set-ups to run.
func (o options) chosen() ([]setUp, error) {
	return choose(append(setUps(), randomSetUps(o.random, o.seed)...), o.setUps)
}

func parseOptions(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("matrix", flag.ContinueOnError)
	flags.StringVar(&o.binDir, "bin-dir", "bin", "where aws-k8s-agent, aws-cni, portmap and kube-proxy are")
	flags.StringVar(&o.setUps, "setups", "", "run these set-ups only, by their names with commas between")
	flags.StringVar(&o.explain, "explain", "", "a directory for the state of n1 in set-ups that failed")
	flags.IntVar(&o.labs, "labs", 2, "so many labs at a time")
	flags.IntVar(&o.random, "random", 0, "so many further set-ups, drawn at random: R1, R2, …")
	flags.Uint64Var(&o.seed, "seed", 1, "what they are drawn from")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var err error
	if o.binDir, err = filepath.Abs(o.binDir); err != nil {
		return o, err
	}
	if o.explain != "" {
		if o.explain, err = filepath.Abs(o.explain); err != nil {
			return o, err
		}
	}
	if o.labs < 1 || o.random < 0 {
		return o, errors.New("-labs must be at least 1, and -random not negative")
	}
	_, err = o.chosen()
	return o, err
}

func (o options) args() []string {
	return []string{"-bin-dir", o.binDir, "-setups", o.setUps, "-explain", o.explain, "-labs", strconv.Itoa(o.labs),
		"-random", strconv.Itoa(o.random), "-seed", strconv.FormatUint(o.seed, 10)}
}

// outside runs the matrix in its sandbox. Files of failed set-ups go by a descriptor, for the sandbox has a /tmp of its own.
func outside() (int, error) {
	o, err := parseOptions(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, err
	}
	cfg := sandbox.Config{Part: part, Args: o.args(), Stdout: os.Stdout, Stderr: os.Stderr}
	if name := os.Getenv("MATRIX_JSON"); name != "" {
		file, err := os.Create(name)
		if err != nil {
			return 1, err
		}
		defer file.Close()
		cfg.Files = []*os.File{file}
	}
	return sandbox.Run(cfg)
}

func inside() int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	o, err := parseOptions(os.Args[1:])
	var outcomes []outcome
	if err == nil {
		outcomes, err = runAll(ctx, o, os.Stdout)
	}
	if err == nil && len(sandbox.Files()) > 0 {
		err = json.NewEncoder(sandbox.Files()[0]).Encode(outcomes)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		return 1
	}
	if count(outcomes, failed) > 0 {
		return 1
	}
	return 0
}

// runAll runs the set-ups, several labs at a time, and prints the table.
func runAll(ctx context.Context, o options, out io.Writer) ([]outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("the matrix took longer than %s", timeLimit))
	defer cancel()
	chosen, err := o.chosen()
	if err != nil {
		return nil, err
	}
	if o.random > 0 {
		fmt.Fprintf(out, "%d set-ups drawn with -seed %d\n", o.random, o.seed)
	}
	started := time.Now()
	lists := make([][]outcome, len(chosen))
	var group errgroup.Group
	group.SetLimit(o.labs)
	for i, s := range chosen {
		group.Go(func() error {
			began := time.Now()
			lists[i] = runSetUp(ctx, s, o.binDir, func(text string) {
				if o.explain != "" {
					_ = os.WriteFile(filepath.Join(o.explain, s.Name+".txt"), []byte(text), 0o644)
				}
			})
			fmt.Fprintf(out, "%s\n    %d ok, %d failed, %d cannot run, %.1f s\n", s,
				count(lists[i], ok), count(lists[i], failed), count(lists[i], cannot), time.Since(began).Seconds())
			return nil
		})
	}
	_ = group.Wait()
	var outcomes []outcome
	for _, list := range lists {
		outcomes = append(outcomes, list...)
	}
	table(out, chosen, outcomes)
	fmt.Fprintf(out, "\n%d set-ups, %d cells, %d cannot run, %.0f s\n%d passed, %d failed\n", len(chosen), len(outcomes), count(outcomes, cannot),
		time.Since(started).Seconds(), count(outcomes, ok), count(outcomes, failed))
	return outcomes, nil
}
