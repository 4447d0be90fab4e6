// aws-cni is the CNI plugin that a container runtime executes for every pod: it asks ipamd for an address, wires the
// pod and ends.
package main

import (
	"context"
	"os"

	"vpccni/cmd/routed-eni-cni-plugin/plugin"
	"vpccni/pkg/version"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

func main() {
	ctx, cancel := context.WithDeadline(context.Background(), plugin.ProcessStart().Add(plugin.Timeout))
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
