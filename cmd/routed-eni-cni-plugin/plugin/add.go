package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"vpccni/pkg/networkutils/podnet"
	"vpccni/rpc"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
	ipamd, err := p.dialIPAMD()
	if err != nil {
		return fmt.Errorf("add cmd: failed to connect to backend server: %w", err)
	}
	defer ipamd.close()

	reply, err := ipamd.add(ctx, c)
	if err != nil {
		c.log.Error("no answer from ipamd", "err", err)
		return tryLater(err, fmt.Sprintf("add cmd: Error received from AddNetwork gRPC call: %v", err))
	}
	if !reply.GetSuccess() {
		c.log.Error("no address for the pod", "code", reply.GetCode(), "reason", reply.GetReason())
		return refusal(reply)
	}
	list, err := p.wire(ctx, c, reply)
	if err != nil {
		c.log.Error("the pod could not be wired", "err", err)
		ctx, cancel := context.WithTimeout(ctx, giveBackTimeout)
		defer cancel()
		if _, delErr := ipamd.del(ctx, c, "SetupNSFailed"); delErr != nil {
			c.log.Warn("the address was not given back", "err", delErr)
		}
		return fmt.Errorf("add command: failed to setup network: %w", err)
	}
	if mode := reply.GetNetworkPolicyMode(); mode != "" {
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
func (p *Plugin) wire(ctx context.Context, c *call, reply *rpc.AddNetworkReply) ([]allocation, error) {
	if reply.GetPodVlanId() != 0 {
		// Wiring it like any other pod would put it past its security groups.
		return nil, errors.New("a pod on a branch ENI is not supported")
	}
	list, err := allocations(reply.GetIPAllocationMetadata())
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
func refusal(reply *rpc.AddNetworkReply) error {
	message := refused
	if reply.GetCode() != "" {
		message += ": " + reply.GetCode()
	}
	if reply.GetReason() != "" {
		message += ": " + reply.GetReason()
	}
	switch reply.GetCode() {
	case "AtLimit", "WaitTimeout", "SubnetExhausted", "Cancelled", "QueueFull", "Storage", "Shutdown":
		return types.NewError(types.ErrTryAgainLater, message, "")
	default:
		return types.NewError(types.ErrInternal, message, "")
	}
}

// tryLater is the CNI error for a call that ipamd did not answer.
func tryLater(err error, message string) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return types.NewError(types.ErrTryAgainLater, message, "")
	default:
		return types.NewError(types.ErrInternal, message, "")
	}
}
