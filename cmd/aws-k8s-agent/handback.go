package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"vpccni/pkg/config"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/logging"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/predecessor"
)

const handbackTimeout = time.Minute

const handbackUsage = `Usage: aws-k8s-agent handback

Turns this node's network state into the one that amazon-vpc-cni-k8s expects, so that it can take the node over with
all pods running. ipamd must not run. Run it before the other CNI starts; the nftables table vpc-cni stays then, for
it does the source NAT, and is removed by a second run once the other CNI has laid its own rules down.
`

// handback is the way back to amazon-vpc-cni-k8s.
func handback(args []string) int {
	flags := flag.NewFlagSet("handback", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), handbackUsage) }
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(context.Background(), handbackTimeout)
	defer cancel()
	if err := handBack(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "aws-k8s-agent handback:", err)
		return exitFailed
	}
	return exitOK
}

func handBack(ctx context.Context) error {
	cfg, err := config.Load(os.LookupEnv)
	if err != nil {
		return err
	}
	log, closer := logging.Open(logging.Options{File: "stderr", Level: cfg.LogLevel, Stdout: os.Stdout, Stderr: os.Stderr})
	defer closer.Close()
	store := checkpoint.New(checkpoint.Options{
		Path:        cfg.CheckpointFile,
		JournalPath: filepath.Join(filepath.Dir(cfg.CheckpointFile), filepath.Base(names.JournalFile)),
		Log:         log,
	})
	release, err := lock(ctx, store)
	if err != nil {
		return fmt.Errorf("ipamd must not run: %w", err)
	}
	defer release()
	there, err := predecessor.Present(ctx, predecessor.Options{Log: log})
	if err != nil {
		return err
	}
	host, err := hostnet.New(hostnet.Options{Log: log})
	if err != nil {
		return err
	}
	defer host.Close()
	done, err := host.HandBack(ctx, !there)
	if err != nil {
		return err
	}
	fmt.Printf("%d pods have rules of their own now\n", done.Pods)
	if done.Marks {
		fmt.Printf("nftables table %s stays until the other CNI has its own source NAT: run this again then\n", names.NFTable)
	}
	return nil
}
