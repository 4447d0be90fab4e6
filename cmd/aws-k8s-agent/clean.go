package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/ipamd/orphans"
)

const (
	cleanTimeout = 10 * time.Minute
	// cleanConfirm is shorter than the daemon's: somebody waits.
	cleanConfirm = 15 * time.Second
)

const cleanUsage = `Usage: aws-k8s-agent clean-enis [--dry-run] [--cluster NAME] [--region REGION [--vpc VPC]] [--min-age DURATION]

Deletes the ENIs that ended instances of a cluster left behind, as the cluster's elected node does by itself. Every
detached ENI with the cluster's tag is listed, with what becomes of it and why. With --dry-run that is all.

On a node (kubectl exec) nothing has to be said but --dry-run; elsewhere --cluster and --region.
`

// cleanENIs is the orphan cleaner by hand.
func cleanENIs(args []string) int {
	flags := flag.NewFlagSet("clean-enis", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), cleanUsage) }
	var c cleaning
	flags.BoolVar(&c.dryRun, "dry-run", false, "")
	flags.StringVar(&c.cluster, "cluster", os.Getenv("CLUSTER_NAME"), "")
	flags.StringVar(&c.region, "region", "", "")
	flags.StringVar(&c.vpc, "vpc", "", "")
	flags.DurationVar(&c.minAge, "min-age", orphans.DefaultMinAge, "")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitOK
	} else if err != nil || flags.NArg() > 0 || c.minAge <= 0 {
		return exitUsage
	}
	if c.cluster == "" {
		fmt.Fprintln(os.Stderr, "aws-k8s-agent clean-enis: the cluster's name is not known: --cluster or CLUSTER_NAME")
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	if err := c.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "aws-k8s-agent clean-enis:", err)
		return exitFailed
	}
	return exitOK
}

// cleaning is what the command line says.
type cleaning struct {
	dryRun               bool
	cluster, region, vpc string
	minAge               time.Duration
}

func (c cleaning) run(ctx context.Context) error {
	cfg, err := config.Load(onlyAWS)
	if err != nil {
		return err
	}
	o := orphans.Options{Cluster: c.cluster, VPCID: c.vpc, MinAge: c.minAge, Confirm: cleanConfirm,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if c.region == "" {
		id, err := awsutils.NewIMDS(awsutils.IMDSOptions{HTTPTimeout: cfg.HTTPTimeout}).Identity(ctx)
		if err != nil {
			return fmt.Errorf("without --region this has to run on an instance: %w", err)
		}
		c.region, o.VPCID, o.Instance = id.Region, cmp.Or(c.vpc, id.VPCID), id.InstanceID
	}
	ec2, err := awsutils.NewEC2(ctx, awsutils.EC2Options{Region: c.region, Endpoint: cfg.EC2Endpoint, Version: cfg.Version,
		HTTPTimeout: cfg.HTTPTimeout})
	if err != nil {
		return err
	}
	o.EC2 = ec2
	cleaner := orphans.New(o)
	if c.dryRun {
		verdicts, err := cleaner.Look(ctx)
		if err != nil {
			return err
		}
		return orphans.WriteTable(os.Stdout, verdicts)
	}
	verdicts, err := cleaner.Clean(ctx)
	for i := range verdicts {
		if verdicts[i].Delete {
			verdicts[i].Reason += "; deleted"
		}
	}
	return errors.Join(orphans.WriteTable(os.Stdout, verdicts), err)
}

// onlyAWS is the environment as far as it says how to reach EC2; what the daemon needs besides may be missing here.
func onlyAWS(name string) (string, bool) {
	switch name {
	case "ENABLE_IPv4":
		return "true", true
	case "HTTP_TIMEOUT", "AWS_EC2_ENDPOINT", "VPC_CNI_VERSION":
		return os.LookupEnv(name)
	}
	return "", false
}
