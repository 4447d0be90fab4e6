package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/jonboulle/clockwork"
	"golang.org/x/sync/errgroup"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/audit"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/httpserve"
	"vpccni/pkg/ipamd/introspect"
	"vpccni/pkg/ipamd/metrics"
	"vpccni/pkg/ipamd/rpcserver"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/version"
)

// serveAfter is how long the socket waits for the first ENI. A node that is ready sooner is served sooner; one whose
// EC2 does not answer is served all the same, for its pods' DELs and its probes need no EC2.
const serveAfter = time.Second

// serve puts the parts together and runs them until ctx ends or one of them fails.
func serve(ctx context.Context, cfg config.Config, started time.Time, log *slog.Logger) error {
	clock := clockwork.NewRealClock()
	var daemon *ipamd.Daemon // set before anything calls view or durable
	meter := metrics.New(version.Version, func() ipamd.View { return daemon.View() })

	imds := awsutils.NewIMDS(awsutils.IMDSOptions{HTTPTimeout: cfg.HTTPTimeout, Observe: meter.AWS})
	instance, err := discover(ctx, imds, clock, log)
	if err != nil {
		return err
	}
	id := instance.identity
	log.Info("instance", "id", id.InstanceID, "type", id.InstanceType, "zone", id.Zone, "subnet", id.SubnetID, "address", id.PrimaryIP,
		"vpc", id.VPCID, "cidrs", instance.cidrs)
	ec2, err := awsutils.NewEC2(ctx, awsutils.EC2Options{
		Region: id.Region, Endpoint: cfg.EC2Endpoint, Version: cfg.Version, HTTPTimeout: cfg.HTTPTimeout,
		Observe: meter.AWS,
	})
	if err != nil {
		return err
	}
	limits, err := limitsOf(ctx, id.InstanceType, ec2)
	if err != nil {
		return err
	}
	host, err := hostnet.New(hostnet.Options{Log: log})
	if err != nil {
		return err
	}
	defer host.Close()

	store := checkpoint.New(checkpoint.Options{
		Path:        cfg.CheckpointFile,
		JournalPath: filepath.Join(filepath.Dir(cfg.CheckpointFile), filepath.Base(names.JournalFile)),
		Source:      func() checkpoint.State { return daemon.Durable() },
		Log:         log,
	})
	restored, err := restore(ctx, store, clock, log)
	if err != nil {
		return err
	}
	daemon, err = ipamd.New(ipamd.Options{
		Settings: settings(cfg), Identity: id, Limits: limits, Groups: instance.groups,
		VPCCIDRs: instance.cidrs, Subnets: instance.subnets, Restored: restored,
		EC2: ec2, Network: host, Checkpointer: store, Clock: clock, Log: log,
	})
	if err != nil {
		return err
	}
	auditor := audit.New(audit.Options{
		Restored: restored.Allocations, Links: audit.Links, Allocator: daemon, Clock: clock, Log: log,
	})
	server := rpcserver.New(rpcserver.Options{
		Socket: names.IPAMDSocket, Allocator: auditor, Log: log,
		Agent: rpcserver.AgentConfig{
			NetworkPolicyMode: string(cfg.NetworkPolicyMode), MultiNIC: cfg.MultiNIC, NodeIPv4: id.PrimaryIP.String(),
			InstanceID: id.InstanceID, Region: id.Region,
		},
		Observe:  observer(meter),
		Degraded: func() bool { return degraded(daemon.View()) },
	})

	// The store outlives everything that commits.
	storing, stopStoring := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStoring()
	stored := make(chan error, 1)
	go func() { stored <- store.Run(storing) }()

	initializing := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return daemon.Run(ctx) })
	group.Go(func() error {
		select {
		case <-daemon.Ready():
		case <-clock.After(serveAfter):
		case <-ctx.Done():
			return nil
		}
		return server.Serve(ctx)
	})
	group.Go(func() error {
		select {
		case <-daemon.Ready():
			took := time.Since(started)
			meter.Started(took, time.Since(initializing))
			log.Info("ready", "took", took, "restored", len(restored.Allocations))
		case <-ctx.Done():
		}
		return nil
	})
	group.Go(func() error { auditor.Run(ctx); return nil })
	group.Go(func() error {
		refresh(ctx, clock, "ranges of the VPC", log, func(ctx context.Context) error {
			cidrs, err := imds.VPCCIDRs(ctx)
			if err == nil {
				daemon.SetVPCCIDRs(cidrs)
			}
			return err
		})
		return nil
	})
	if !cfg.DisableMetrics {
		endpoint := httpserve.Server{Name: "metrics", Address: metrics.Address, Handler: meter.Handler(), Log: log}
		group.Go(func() error { endpoint.Run(ctx); return nil })
	}
	if !cfg.DisableIntrospection {
		endpoint := httpserve.Server{Name: "introspection", Address: cfg.IntrospectionAddress, Log: log,
			Handler: introspect.NewHandler(introspect.Options{
				View: daemon.View, Config: cfg, Private: introspect.Private(cfg.IntrospectionAddress), Log: log,
			})}
		group.Go(func() error { endpoint.Run(ctx); return nil })
	}
	err = group.Wait()
	stopStoring()
	return errors.Join(err, <-stored)
}

// restore takes over the state that the last run left. What it cannot read it replaces by what the kernel knows.
func restore(ctx context.Context, store *checkpoint.Store, clock clockwork.Clock, log *slog.Logger) (checkpoint.State, error) {
	state, err := store.Load()
	var notice *checkpoint.Notice
	if !errors.As(err, &notice) {
		return state, err
	}
	log.Error("state file", "error", notice)
	if !notice.AllocationsLost {
		return state, nil
	}
	// Without this an address of a living pod could be given to another one.
	state.Allocations, err = audit.Rebuild(ctx, clock.Now())
	if err != nil {
		return checkpoint.State{}, fmt.Errorf("who lives on this node cannot be told: %w", err)
	}
	log.Warn("allocations rebuilt from the kernel", "allocations", len(state.Allocations))
	return state, nil
}

func limitsOf(ctx context.Context, instanceType string, ec2 *awsutils.EC2) (awsutils.Limits, error) {
	if limits, ok := awsutils.LimitsOf(instanceType); ok {
		return limits, nil
	}
	return ec2.InstanceTypeLimits(ctx, instanceType)
}

func observer(m *metrics.Metrics) func(rpcserver.Call) {
	return func(c rpcserver.Call) {
		if c.Del {
			m.Del(c.Reason, c.Outcome, c.Duration)
		} else {
			m.Add(c.Outcome, c.Duration)
		}
	}
}

// degraded tells whether something does not work at present: EC2 refuses a call or has never answered, or an ENI
// cannot serve.
func degraded(v ipamd.View) bool {
	for _, e := range v.ENIs {
		if e.NotReady != "" {
			return true
		}
	}
	return !v.Ready || v.Verified.IsZero() || len(v.Refusals) > 0
}

// settings are the operator's choices in the daemon's terms.
func settings(c config.Config) ipamd.Settings {
	s := ipamd.Settings{
		MaxENI:   c.MaxENI,
		Cooldown: c.IPCooldown,
		// 0 refuses at once here, and is the default there.
		AddWait:        max(c.AddWait, 1),
		IgnoreUntagged: !c.ManageUntaggedENIs,
		ClusterName:    c.ClusterName,
		ENITags:        c.AdditionalENITags,
		Host: hostnet.Config{
			ExcludeSNATCIDRs:     c.ExcludeSNATCIDRs,
			ExternalServiceCIDRs: c.ExternalServiceCIDRs,
			ExternalSNAT:         c.ExternalSNAT,
			NodePort:             c.NodePort,
			SNATRandom:           snatRandom[c.SNATRandom],
			PrimaryMark:          c.PrimaryMark,
			ENIMask:              c.ENIMask,
			VethPrefix:           c.VethPrefix,
			MTU:                  c.MTU,
		},
	}
	s.Targets.WarmENI, s.Targets.WarmIP, s.Targets.MinimumIP = c.WarmENITarget, c.WarmIPTarget, c.MinimumIPTarget
	// The proportions of warmpool's defaults, which POOL_SHRINK_DELAY's default gives.
	s.Targets.MinENIAge, s.Targets.ShrinkDelay, s.Targets.RemovePace = c.ShrinkDelay, c.ShrinkDelay/2, c.ShrinkDelay/6
	return s
}

var snatRandom = map[config.SNATRandom]hostnet.SNATRandom{
	config.SNATRandomFully: hostnet.SNATRandomFully,
	config.SNATRandomHash:  hostnet.SNATRandomHash,
	config.SNATRandomNone:  hostnet.SNATRandomNone,
}
