package plugin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/onecall"
	"vpccni/pkg/networkutils/names"
)

// VersionKey is the gRPC metadata under which the plugin tells ipamd its version. The request's ClientVersion stays
// empty: versions before this one compare it with their own, which is empty.
const VersionKey = "vpc-cni-version"

// npaSocket is where the network policy agent listens.
const npaSocket = "/var/run/aws-node/npa.sock"

// Time limits of the network policy agent: to be there, and to load a pod's programs.
const (
	npaConnectTimeout = 2 * time.Second
	npaCallTimeout    = 20 * time.Second
)

// retryPause is the time before a call that broke off is repeated.
const retryPause = 100 * time.Millisecond

// add asks ipamd for the pod's addresses until ctx ends; ipamd gives the same answer to the same sandbox.
func (p *Plugin) add(ctx context.Context, c *call) (addReply, error) {
	request := addRequest{
		pod:              c.podName(),
		infraContainerID: c.pod.infraContainerID,
		netns:            c.args.Netns,
		ifName:           c.args.IfName,
		networkName:      c.conf.Name,
		containerID:      c.args.ContainerID,
		multiNIC:         c.conf.multiNIC(),
	}
	var reply addReply
	err := p.askIPAMD(ctx, "/rpc.CNIBackend/AddNetwork", request.encode(), reply.decode)
	return reply, err
}

// del tells ipamd that the pod holds no address any more, until ctx ends.
func (p *Plugin) del(ctx context.Context, c *call, reason string) (delReply, error) {
	request := delRequest{
		pod:              c.podName(),
		infraContainerID: c.pod.infraContainerID,
		reason:           reason,
		ifName:           c.args.IfName,
		networkName:      c.conf.Name,
		containerID:      c.args.ContainerID,
		podUID:           c.pod.podUID,
	}
	var reply delReply
	err := p.askIPAMD(ctx, "/rpc.CNIBackend/DelNetwork", request.encode(), reply.decode)
	return reply, err
}

// askIPAMD repeats a call whose connection broke: with a daemon killed in the middle of it, nobody knows what came of
// it, and asking the next one tells.
func (p *Plugin) askIPAMD(ctx context.Context, method string, request []byte, decode func([]byte) error) error {
	version := onecall.Header{Name: VersionKey, Value: p.Version}
	for {
		conn, err := onecall.Connect(ctx, names.IPAMDSocket)
		if err != nil {
			return err
		}
		answer, err := conn.Call(ctx, method, []onecall.Header{version}, request)
		conn.Close()
		if err == nil {
			return decoded(decode(answer))
		}
		if onecall.CodeOf(err) != onecall.Unavailable {
			return err
		}
		pause := time.NewTimer(retryPause)
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

func decoded(err error) error {
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// enforcePolicy has the network policy agent take charge of the pod before it starts.
func (p *Plugin) enforcePolicy(ctx context.Context, c *call, mode string, interfaces int) error {
	conn, err := connectNPA(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	request := enforceRequest{pod: c.podName(), mode: mode, interfaces: int32(interfaces)}
	reply, err := askNPA(ctx, conn, "/rpc.NPBackend/EnforceNpToPod", request.encode())
	if err == nil && !reply.success {
		err = errors.New("the network policy agent refuses the pod")
	}
	return err
}

// deletePolicy tells the network policy agent that the pod is gone. Only its absence is an error: the runtime then
// repeats the DEL.
func (p *Plugin) deletePolicy(ctx context.Context, c *call) error {
	conn, err := connectNPA(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := askNPA(ctx, conn, "/rpc.NPBackend/DeletePodNp", c.podName().encode()); err != nil {
		c.log.Warn("the network policy agent was told, and failed", "err", err)
	}
	return nil
}

func connectNPA(ctx context.Context) (*onecall.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, npaConnectTimeout)
	defer cancel()
	conn, err := onecall.Connect(ctx, npaSocket)
	if err != nil {
		return nil, fmt.Errorf("network policy agent: %w", err)
	}
	return conn, nil
}

func askNPA(ctx context.Context, conn *onecall.Conn, method string, request []byte) (policyReply, error) {
	ctx, cancel := context.WithTimeout(ctx, npaCallTimeout)
	defer cancel()
	var reply policyReply
	answer, err := conn.Call(ctx, method, nil, request)
	if err != nil {
		return reply, fmt.Errorf("network policy agent: %w", err)
	}
	return reply, decoded(reply.decode(answer))
}

func (c *call) podName() podName { return podName{name: c.pod.name(), namespace: c.pod.namespace()} }
