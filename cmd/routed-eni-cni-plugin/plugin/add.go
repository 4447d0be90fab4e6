package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/onecall"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// refused is the text of an ADD without an address that operators' alerts look for.
const refused = "add cmd: failed to assign an IP address to container"

// giveBackTimeout bounds the release of an address whose pod could not be wired.
const giveBackTimeout = 5 * time.Second

// Add gets an address for the pod, wires it and prints CNI's result. If anything of it fails, all of it is taken back.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) error {
	started := time.Now()
	c, err := p.begin("ADD", args)
	if err != nil {
		return err
	}
	if err := c.conf.wirable(); err != nil {
		return err
	}
	// Before an address is taken for it.
	if _, err := os.Stat(args.Netns); err != nil {
		c.log.Error("no network namespace", "err", err)
		return fmt.Errorf("add cmd: the pod's network namespace: %w", err)
	}
	if err := takeNoteBack(ctx, c); err != nil {
		return fmt.Errorf("add cmd: %w", err)
	}
	reply, err := p.add(ctx, c)
	if err != nil {
		c.log.Error("no answer from ipamd", "err", err)
		if errors.Is(err, errMalformed) {
			p.giveBack(ctx, c)
		}
		return tryLater(err, fmt.Sprintf("add cmd: Error received from AddNetwork gRPC call: %v", err))
	}
	if !reply.success {
		c.log.Error("no address for the pod", "code", reply.code, "reason", reply.reason)
		return refusal(reply)
	}
	list, result, err := p.finish(ctx, c, reply)
	if err != nil {
		c.log.Error("the pod could not be set up", "err", err)
		p.giveBack(ctx, c)
		return err
	}
	c.log.Info("added", "ip", list[0].address.Addr(), "table", list[0].table, "vlan", reply.vlan, "took", time.Since(started))
	return result.PrintTo(p.Stdout)
}

// finish makes a pod of ipamd's answer, or leaves nothing behind on the host.
func (p *Plugin) finish(ctx context.Context, c *call, reply addReply) ([]allocation, types.Result, error) {
	list, interfaces, err := c.wanted(reply)
	if err != nil {
		return nil, nil, fmt.Errorf("add command: failed to setup network: %w", err)
	}
	wired, err := podnet.Setup(ctx, podnet.Pod{Netns: c.args.Netns, ContainerID: c.args.ContainerID, Interfaces: interfaces})
	if err != nil {
		return nil, nil, fmt.Errorf("add command: failed to setup network: %w", err)
	}
	result, err := c.result(list, interfaces).GetAsVersion(c.conf.CNIVersion)
	if err == nil && reply.policyMode != "" {
		forward, cancel := podnet.WithReserve(ctx, time.Now())
		defer cancel()
		if err = p.enforcePolicy(forward, c, reply.policyMode, len(list)); err != nil {
			err = fmt.Errorf("add cmd: failed to setup network policy: %w", err)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, wired.Undo(ctx))
	}
	return list, result, nil
}

// giveBack returns the addresses of a pod that could not be set up. The DEL that the runtime sends for it does the same,
// also when ipamd is away.
func (p *Plugin) giveBack(ctx context.Context, c *call) {
	ctx, cancel := context.WithTimeout(ctx, giveBackTimeout)
	defer cancel()
	if _, err := p.del(ctx, c, "SetupNSFailed"); err != nil {
		c.log.Warn("the address was not given back", "err", err)
	}
}

// wanted reads what ipamd's answer asks for.
func (c *call) wanted(reply addReply) ([]allocation, []podnet.Interface, error) {
	list, err := allocations(reply.addresses)
	if err != nil {
		return nil, nil, err
	}
	if reply.vlan != 0 {
		list = list[:1] // a branch ENI has one address, with a router of its family
		list[0].address6 = netip.Prefix{}
	}
	interfaces := c.interfaces(list, reply.perPodRules)
	if reply.vlan != 0 {
		err = c.onBranch(&interfaces[0], reply)
	}
	return list, interfaces, err
}

// refusal turns ipamd's reason into CNI's terms: what may be different in a while is "try again later".
func refusal(reply addReply) error {
	message := refused
	if reply.code != "" {
		message += ": " + reply.code
	}
	if reply.reason != "" {
		message += ": " + reply.reason
	}
	switch reply.code {
	case "AtLimit", "WaitTimeout", "SubnetExhausted", "Cancelled", "QueueFull", "Storage", "Shutdown":
		return types.NewError(types.ErrTryAgainLater, message, "")
	default:
		return types.NewError(types.ErrInternal, message, "")
	}
}

// tryLater is the CNI error for a call that ipamd did not answer.
func tryLater(err error, message string) error {
	switch onecall.CodeOf(err) {
	case onecall.Unavailable, onecall.DeadlineExceeded:
		return types.NewError(types.ErrTryAgainLater, message, "")
	default:
		return types.NewError(types.ErrInternal, message, "")
	}
}
