// max-pods-calculator prints the number of pods that a node of an instance type should run. It takes the place of the
// shell script of that name in node images, and works without AWS for the types it knows.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// deadline bounds everything: a node's boot waits for the number.
const deadline = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], new(awsCloud), os.Stdout, os.Stderr))
}

// run returns the exit code: 0 if, and only if, it printed a number.
func run(ctx context.Context, args []string, aws cloud, out, errOut io.Writer) int {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	o, err := parse(args)
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(out, usage)
		return 1
	case err != nil:
		fmt.Fprintf(errOut, "error: %v\n\n%s", err, usage)
		return 1
	}
	for _, arg := range o.ignored {
		fmt.Fprintf(errOut, "warning: %q means nothing and is ignored\n", arg)
	}
	warn := func(text string) { fmt.Fprintln(errOut, "warning:", text) }
	pods, err := calculate(ctx, o, aws, warn)
	if err != nil {
		fmt.Fprintln(errOut, "error:", err)
		return 1
	}
	fmt.Fprintln(out, pods)
	return 0
}
