// egress-cni is the CNI plugin behind aws-cni in a chain that gives pods a way out to the family that they have no address
// of the VPC in.
package main

import (
	"context"
	"os"
	"time"

	"vpccni/cmd/egress-cni-plugin/egress"
	"vpccni/pkg/cniproc"
	"vpccni/pkg/deadline"
	"vpccni/pkg/version"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

// versions are those whose results have interfaces; older ones cannot say what the plugin does.
var versions = cniversion.VersionsStartingFrom("0.3.0")

func main() { run(egress.Timeout, egress.Grace) }

// run carries out one verb and has timeout from the start of the process for it; the kernel ends a process that is still
// there when grace has passed as well.
func run(timeout, grace time.Duration) {
	end := cniproc.ProcessStart().Add(timeout)
	_ = deadline.Kill(end.Add(grace)) // without such a timer there are still the looks at the clock
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	p := egress.Plugin{Stdout: os.Stdout}
	with := func(run func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return run(ctx, args) }
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    with(p.Add),
		Del:    with(p.Del),
		Check:  with(p.Check),
		GC:     with(p.GC),
		Status: with(p.Status),
	}, versions, "AWS egress CNI "+version.Version)
}
