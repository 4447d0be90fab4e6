package kube

import (
	"cmp"
	"context"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/orphans"
	"vpccni/pkg/k8sapi"
)

// Clean lets the cleaner take its turns with those of the cluster's other nodes, by a Lease, until ctx ends. Off, unless
// empty, is the setting that says that there is nothing to do.
func (a *Agent) Clean(ctx context.Context, daemon Daemon, cleaner *orphans.Cleaner, off string) {
	switch {
	case off != "":
		daemon.SetDegraded(ipamd.FeatureOrphans, off, true)
		return
	case a.o.Client == nil:
		daemon.SetDegraded(ipamd.FeatureOrphans, a.o.Missing.Error(), a.chosen())
		return
	}
	election := &k8sapi.Election{
		Leases:   k8sapi.LeaseClient{Client: a.o.Client, Namespace: a.o.Client.Namespace(), Name: orphans.LeaseName},
		Identity: cmp.Or(a.o.NodeName, a.o.Instance), Duration: orphans.LeaseDuration, Clock: a.o.Clock,
	}
	cleaner.Run(ctx, election, func(reason string) { daemon.SetDegraded(ipamd.FeatureOrphans, reason, false) })
}
