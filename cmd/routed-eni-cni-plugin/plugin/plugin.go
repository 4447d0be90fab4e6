// Package plugin is the logic of the aws-cni binary: CNI's verbs in terms of ipamd's addresses and podnet's wiring.
// What it prints and accepts is a contract with container runtimes and with the versions before and after this one,
// which find each other's pods after an upgrade or a downgrade.
//
// The package is linked into a process that lives for milliseconds, once per pod: what it imports is paid for at every
// start of a pod.
package plugin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"vpccni/pkg/cniproc"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// Timeout bounds one execution, from the start of the process. It is longer than ipamd lets an ADD wait for an address
// and shorter than the two minutes after which kubelet gives up on a sandbox and starts the next one.
const Timeout = 90 * time.Second

// Grace is the time after that for error messages. A process that was stopped may be between a look at the clock and a
// write, and its pod's address may be another pod's by now: it is ended rather than let go on.
const Grace = 5 * time.Second

// Plugin carries out CNI's verbs. Each method is called at most once per process.
type Plugin struct {
	// Version goes to ipamd and into the log.
	Version string
	// Stdout takes the result of ADD.
	Stdout io.Writer
}

// call is what every verb starts with.
type call struct {
	args *skel.CmdArgs
	conf *config
	pod  podArgs
	log  *slog.Logger
}

func (p *Plugin) begin(verb string, args *skel.CmdArgs) (*call, error) {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return nil, err
	}
	pod, err := parseArgs(args.Args)
	if err != nil {
		return nil, err
	}
	// Stdin and CNI_ARGS are not logged: they carry all of the pod's annotations.
	log := cniproc.NewLogger(conf.LogFile, conf.LogLevel).With(
		"cmd", verb, "container", args.ContainerID, "ifname", args.IfName, "namespace", pod.namespace(), "pod", pod.name())
	slog.SetDefault(log)
	return &call{args: args, conf: conf, pod: pod, log: log}, nil
}

// Check reports whether the pod's wiring is what ADD made.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	c, err := p.begin("CHECK", args)
	if err != nil {
		return err
	}
	prev := c.previous()
	if prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "check cmd: prevResult is missing", "")
	}
	if prev.vlan != 0 {
		err = checkBranch(ctx, args, prev)
	} else {
		pod := podnet.Pod{Netns: args.Netns, ContainerID: args.ContainerID}
		for _, iface := range prev.interfaces {
			pod.Interfaces = append(pod.Interfaces, podnet.Interface{
				Name: iface.name, HostVeth: iface.hostVeth, Address: iface.address, Address6: iface.address6,
			})
		}
		err = podnet.Check(ctx, pod)
	}
	if err != nil {
		c.log.Warn("the pod's network is not what it should be", "err", err)
		return fmt.Errorf("check cmd: %w", err)
	}
	return nil
}
