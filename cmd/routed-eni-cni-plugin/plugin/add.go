package plugin

import (
	"context"
	"errors"
	"fmt"
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

// Add gets an address for the pod, wires it and prints CNI's result.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) error {
	started := time.Now()
	c, err := p.begin("ADD", args)
	if err != nil {
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
		return tryLater(err, fmt.Sprintf("add cmd: Error received from AddNetwork gRPC call: %v", err))
	}
	if !reply.success {
		c.log.Error("no address for the pod", "code", reply.code, "reason", reply.reason)
		return refusal(reply)
	}
	list, err := p.wire(ctx, c, reply)
	if err != nil {
		c.log.Error("the pod could not be wired", "err", err)
		ctx, cancel := context.WithTimeout(ctx, giveBackTimeout)
		defer cancel()
		if _, delErr := p.del(ctx, c, "SetupNSFailed"); delErr != nil {
			c.log.Warn("the address was not given back", "err", delErr)
		}
		return fmt.Errorf("add command: failed to setup network: %w", err)
	}
	if mode := reply.policyMode; mode != "" {
		if err := p.enforcePolicy(ctx, c, mode, len(list)); err != nil {
			c.log.Error("no network policy for the pod", "err", err)
			return fmt.Errorf("add cmd: failed to setup network policy: %w", err)
		}
	}
	c.log.Info("added", "ip", list[0].address.Addr(), "table", list[0].table, "took", time.Since(started))
	result, err := c.result(list, c.interfaces(list)).GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return err
	}
	return result.PrintTo(p.Stdout)
}

// wire does what ipamd's answer asks for, or leaves nothing behind.
func (p *Plugin) wire(ctx context.Context, c *call, reply addReply) ([]allocation, error) {
	if reply.vlan != 0 {
		// Wiring it like any other pod would put it past its security groups.
		return nil, errors.New("a pod on a branch ENI is not supported")
	}
	list, err := allocations(reply.addresses)
	if err != nil {
		return nil, err
	}
	return list, podnet.Setup(ctx, podnet.Pod{
		Netns:       c.args.Netns,
		ContainerID: c.args.ContainerID,
		Interfaces:  c.interfaces(list),
	})
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
