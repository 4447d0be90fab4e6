// Command vm boots a Linux kernel of a distribution in QEMU, without any network, and runs tests there that need what the
// machine's own kernel may not have, or that shall be seen to pass on that kernel: VLANs, an older nf_tables. The tests
// are those of the packages, built with the tag vlan. It prints a table of what passed, and fails if anything did not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// suite is a package whose tests run in the virtual machine.
type suite struct {
	pkg  string
	run  string // which of its tests; "" is all
	args []string
}

// suites are what another kernel can have another opinion of. What only computes, and what repeats random changes by the
// hundred, is left out: an emulated processor takes ten times as long.
var suites = []suite{
	{"pkg/networkutils/hostnet/nfttable", "OnlyElementsChange|LargeSets|ReadWhileOthersWrite", nil},
	{"pkg/networkutils/hostnet", "Golden|Packets|NoConnectionIsLost|OlderConnections", []string{"-updates", "20"}},
	{"pkg/networkutils/conntrack", "", nil},
	{"pkg/networkutils/podnet", "Branch|SetupGolden|PodAnswersAtOnce", nil},
	{"cmd/routed-eni-cni-plugin", "Branch", nil},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(ctx context.Context) (ok bool, err error) {
	kernel := flag.String("kernel", "", "directory with vmlinuz and lib/modules (scripts/deps.sh --kernel)")
	timeout := flag.Duration("timeout", 15*time.Minute, "time for everything but building")
	only := flag.String("suites", "", "run only packages whose path has this in it")
	filter := flag.String("run", "", "run only tests that match, as go test -run")
	verbose := flag.Bool("v", false, "print everything that the tests print")
	flag.Parse()
	if *kernel == "" {
		return false, errors.New("-kernel is missing")
	}
	dir, err := os.MkdirTemp("", "vpccni-vm-")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var chosen []suite
	for _, s := range suites {
		if strings.Contains(s.pkg, *only) {
			if *filter != "" {
				s.run = *filter
			}
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return false, fmt.Errorf("no package has %q in its path", *only)
	}
	initramfs := filepath.Join(dir, "initramfs")
	if err := pack(ctx, initramfs, dir, *kernel, chosen, *timeout); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	started := time.Now()
	for n := 1; ; n++ {
		var out report
		if *verbose {
			out.echo = os.Stdout
		}
		err = boot(ctx, filepath.Join(*kernel, "vmlinuz"), initramfs, &out)
		if err != nil && ctx.Err() == nil && !out.booted.Load() && n < maxBoots {
			fmt.Printf("boot %d of %d came to nothing: %v\n", n, maxBoots, err)
			continue
		}
		out.print(os.Stdout, time.Since(started))
		return err == nil && out.passed(len(chosen)), err
	}
}
