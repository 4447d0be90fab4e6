// aws-cni is the CNI plugin that a container runtime executes for every pod: it asks ipamd for an address, wires the
// pod and ends.
package main

import (
	"context"
	"os"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/plugin"
	"vpccni/pkg/cniproc"
	"vpccni/pkg/deadline"
	"vpccni/pkg/version"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

func main() { run(plugin.Timeout, plugin.Grace) }

// run carries out one verb and has timeout from the start of the process for it. The kernel ends a process that is still
// there when grace has passed as well; an error that there is no such timer leaves the looks at the clock.
func run(timeout, grace time.Duration) {
	end := cniproc.ProcessStart().Add(timeout)
	_ = deadline.Kill(end.Add(grace))
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	p := plugin.Plugin{Version: version.Version, Stdout: os.Stdout}
	with := func(run func(context.Context, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return run(ctx, args) }
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    with(p.Add),
		Del:    with(p.Del),
		Check:  with(p.Check),
		GC:     with(p.GC),
		Status: with(p.Status),
	}, cniversion.All, "AWS CNI "+version.Version)
}
