package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/jonboulle/clockwork"
	"golang.org/x/sync/errgroup"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/delnote"
	"vpccni/pkg/heartbeat"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/audit"
	"vpccni/pkg/ipamd/bootstrap"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/httpserve"
	"vpccni/pkg/ipamd/introspect"
	"vpccni/pkg/ipamd/kube"
	"vpccni/pkg/ipamd/metrics"
	"vpccni/pkg/ipamd/orphans"
	"vpccni/pkg/ipamd/rpcserver"
	"vpccni/pkg/k8sapi"
	"vpccni/pkg/networkutils/conntrack"
	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/predecessor"
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
	instance, err := bootstrap.Discover(ctx, imds, clock, log)
	if err != nil {
		return err
	}
	id := instance.Identity
	log.Info("instance", "id", id.InstanceID, "type", id.InstanceType, "zone", id.Zone, "subnet", id.SubnetID, "address", id.PrimaryIP,
		"vpc", id.VPCID, "cidrs", instance.VPCCIDRs)
	agent := newAgent(cfg, id.InstanceID, clock, log)
	ec2, err := awsutils.NewEC2(ctx, awsutils.EC2Options{
		Region: id.Region, Endpoint: cfg.EC2Endpoint, Version: cfg.Version, HTTPTimeout: cfg.HTTPTimeout,
		Observe: func(c awsutils.Call) { meter.AWS(c); agent.AWS(c) },
	})
	if err != nil {
		return err
	}
	var types bootstrap.TypeLimits // nil: EC2 is never called
	if !cfg.IMDSOnly {
		types = ec2
	}
	limits, err := bootstrap.LimitsOf(ctx, id.InstanceType, types, log)
	if err != nil {
		return err
	}
	settings := bootstrap.Settings(cfg, limits, log)
	if settings.Host.Egress, err = bootstrap.Egress(ctx, cfg, id, imds, log); err != nil {
		return err
	}
	host, err := hostnet.New(hostnet.Options{Log: log})
	if err != nil {
		return err
	}
	defer host.Close()
	// Without a route of ours its pods still have those that the predecessor made, until that is swept.
	adopted, err := predecessor.Adopt(ctx, predecessor.Options{Log: log})
	if err != nil {
		log.Error("pods of a predecessor not adopted", "error", err)
	}

	store := checkpoint.New(checkpoint.Options{
		Path:        cfg.CheckpointFile,
		JournalPath: filepath.Join(filepath.Dir(cfg.CheckpointFile), filepath.Base(names.JournalFile)),
		Source:      func() checkpoint.Snapshot { return daemon.Snapshot() },
		Log:         log,
	})
	release, err := lock(ctx, store)
	if err != nil {
		return err
	}
	defer release()
	restored, err := bootstrap.Restore(ctx, store, clock, log)
	if err != nil {
		return err
	}
	// Another CNI that ran here may have changed ENIs and addresses that the journal has.
	there, err := predecessor.Present(ctx, predecessor.Options{Log: log})
	if err != nil {
		log.Error("state of a predecessor not looked for", "error", err)
	}
	restored.Journal.Stale = restored.Journal.Stale || there || adopted.Any()
	sweeper := conntrack.NewSweeper(conntrack.SweeperOptions{Forget: conntrack.Forget, Cooldown: cfg.IPCooldown, Clock: clock, Log: log})
	for addr, until := range bootstrap.Unassigned(restored) {
		sweeper.Cooling(addr, until)
	}
	daemon, err = ipamd.New(ipamd.Options{
		Settings: settings, Identity: id, Limits: limits, Groups: instance.Groups,
		VPCCIDRs: instance.VPCCIDRs, Subnets: instance.Subnets, Restored: restored,
		EC2: ec2, Metadata: imds, Network: host, Checkpointer: store, Clock: clock, Log: log,
		Notify: agent.Notify, Released: sweeper.Released, Announce: host.Announce,
	})
	if err != nil {
		return err
	}
	auditor := audit.New(audit.Options{
		Restored: restored.Allocations, Links: audit.Links, Allocator: daemon, Clock: clock, Log: log,
	})
	notes := audit.NewNotes(audit.NotesOptions{Dir: delnote.Node, Releaser: daemon, Clock: clock, Log: log})
	server := rpcserver.New(rpcserver.Options{
		Socket: names.IPAMDSocket, Allocator: auditor, Log: log,
		Agent: rpcserver.AgentConfig{
			NetworkPolicyMode: string(cfg.NetworkPolicyMode), MultiNIC: cfg.MultiNIC, NodeIPv4: id.PrimaryIP.String(),
			InstanceID: id.InstanceID, Region: id.Region,
		},
		Observe:     observer(meter),
		Prepare:     sweeper.HandOut,
		Undelivered: daemon.Undelivered,
		Degraded:    func() bool { return degraded(daemon.View()) },
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
		// What pods let go of while nobody listened can be had by the first one that asks.
		notes.Look(ctx)
		group.Go(func() error { notes.Run(ctx); return nil })
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
	group.Go(func() error { sweeper.Run(ctx); return nil })
	group.Go(func() error { agent.Run(ctx, daemon); return nil })
	cleaner := orphans.New(orphans.Options{
		EC2: ec2, Cluster: cfg.ClusterName, VPCID: id.VPCID, Instance: id.InstanceID, Clock: clock, Log: log,
		Counted: func(step orphans.Counts) {
			meter.Orphans(metrics.OrphanOfCluster, metrics.OrphanFound, step.Found)
			meter.Orphans(metrics.OrphanOfCluster, metrics.OrphanDeleted, step.Deleted)
			meter.Orphans(metrics.OrphanOfCluster, metrics.OrphanFailed, step.Failed)
		},
	})
	group.Go(func() error { agent.Clean(ctx, daemon, cleaner, cleaningOff(cfg)); return nil })
	group.Go(func() error {
		bootstrap.TakeOver(ctx, clock, daemon.View, func(ctx context.Context, ours func(netip.Addr) bool) (predecessor.Report, error) {
			return predecessor.Sweep(ctx, predecessor.Options{EgressV4: egressOf(settings, false), EgressV6: egressOf(settings, true), Log: log, PerPod: cfg.RuleLayout == config.RuleLayoutPerPod}, ours)
		}, log)
		return nil
	})
	group.Go(func() error {
		ticker := clock.NewTicker(heartbeat.Period)
		defer ticker.Stop()
		heartbeat.File(names.HeartbeatFile).Run(ctx, ticker, func(err error) { log.Warn("no heartbeat for the plugin", "error", err) })
		return nil
	})
	group.Go(func() error {
		return host.Watch(ctx, func(reason string) {
			log.Debug("host network may have changed", "reason", reason)
			daemon.HostChanged()
		})
	})
	group.Go(func() error { return host.KeepPods(ctx, daemon, daemon.HostRepaired) })
	group.Go(func() error {
		bootstrap.Refresh(ctx, clock, "ranges of the VPC", log, func(ctx context.Context) error {
			cidrs, err := imds.VPCCIDRs(ctx)
			if err == nil {
				daemon.SetVPCCIDRs(cidrs)
			}
			return err
		})
		return nil
	})
	group.Go(func() error {
		bootstrap.Refresh(ctx, clock, "notices to the instance", log, func(ctx context.Context) error {
			why, err := imds.Leaving(ctx)
			if err == nil {
				daemon.SetLeaving(why)
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
		for _, address := range []string{cfg.IntrospectionAddress, introspect.Socket} {
			endpoint := httpserve.Server{Name: "introspection", Address: address, Log: log,
				Handler: introspect.NewHandler(introspect.Options{
					View: daemon.View, Plan: daemon.Plan, PluginVersion: server.PluginVersion, Config: cfg,
					Private: introspect.Private(address), Log: log,
				})}
			group.Go(func() error { endpoint.Run(ctx); return nil })
		}
	}
	err = group.Wait()
	stopStoring()
	return errors.Join(err, <-stored)
}

// lockTimeout is how long a predecessor may take to end: more than the grace period of its pod.
const lockTimeout = 15 * time.Second

func lock(ctx context.Context, store *checkpoint.Store) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return store.Lock(ctx)
}

func observer(m *metrics.Metrics) func(rpcserver.Call) {
	return func(c rpcserver.Call) {
		if c.Del {
			m.Del(c.Reason, c.Outcome, c.Duration, c.Recorded)
		} else {
			m.Add(c.Outcome, c.Duration, c.Waited, c.Recorded)
		}
	}
}

// newAgent prepares what is said to Kubernetes. Nothing is asked yet: whether there is an API, and whether it answers, is
// not waited for.
func newAgent(cfg config.Config, instance string, clock clockwork.Clock, log *slog.Logger) *kube.Agent {
	client, err := k8sapi.New(k8sapi.Options{
		Endpoint: cfg.ClusterEndpoint, Host: cfg.KubernetesHost, Port: cfg.KubernetesPort,
		UserAgent: "vpc-cni-ipamd/" + version.Version, Clock: clock,
	})
	return kube.New(kube.Options{
		Client: client, Missing: err, NodeName: cfg.NodeName, PodName: cfg.PodName, Instance: instance, Clock: clock, Log: log,
	})
}

// cleaningOff is the setting by which this node leaves other nodes' orphans alone; empty if none does.
func cleaningOff(cfg config.Config) string {
	switch {
	case cfg.DisableLeakedENICleanup:
		return "DISABLE_LEAKED_ENI_CLEANUP is true"
	case cfg.DisableProvisioning, cfg.IMDSOnly:
		return "somebody else provisions this node"
	case cfg.ClusterName == "":
		return "CLUSTER_NAME is not set: ENIs of this cluster cannot be told from others"
	}
	return ""
}

// degraded tells whether something does not work at present: EC2 refuses a call or has never answered, an ENI cannot
// serve, or a feature beside them is degraded without anybody's wish.
func degraded(v ipamd.View) bool {
	for _, d := range v.Degraded {
		if !d.Chosen {
			return true
		}
	}
	for _, e := range v.ENIs {
		if e.NotReady != "" {
			return true
		}
	}
	return !v.Ready || v.Verified.IsZero() || len(v.Refusals) > 0
}

// egressOf tells whether the host does source NAT for an egress range of the family.
func egressOf(s ipamd.Settings, v6 bool) bool {
	return slices.ContainsFunc(s.Host.Egress, func(e hostnet.Egress) bool { return e.Range.Addr().Is6() == v6 })
}
