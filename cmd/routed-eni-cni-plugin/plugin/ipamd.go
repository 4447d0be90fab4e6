package plugin

import (
	"context"
	"errors"
	"time"

	"vpccni/pkg/networkutils/names"
	"vpccni/rpc"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// VersionKey is the gRPC metadata under which the plugin tells ipamd its version. The request's ClientVersion stays
// empty: versions before this one compare it with their own, which is empty.
const VersionKey = "vpc-cni-version"

// npaSocket is where the network policy agent listens.
const npaSocket = "/var/run/aws-node/npa.sock"

// Time limits of the network policy agent: to be there, and to load a pod's programs.
const (
	npaDialTimeout = 2 * time.Second
	npaCallTimeout = 20 * time.Second
)

// retryDelay is the pause before a call that broke off is repeated.
const retryDelay = 100 * time.Millisecond

// ipamd is the daemon's end of the socket.
type ipamd struct {
	conn    *grpc.ClientConn
	client  rpc.CNIBackendClient
	version string
}

func (p *Plugin) dialIPAMD() (*ipamd, error) {
	conn, err := dial(names.IPAMDSocket)
	if err != nil {
		return nil, err
	}
	return &ipamd{conn: conn, client: rpc.NewCNIBackendClient(conn), version: p.Version}, nil
}

// dial prepares a connection that is made, and made again, when it is used.
func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
		grpc.WithConnectParams(grpc.ConnectParams{
			// A socket that refuses is back within a restart of its daemon.
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
}

func (d *ipamd) close() { _ = d.conn.Close() }

func (d *ipamd) outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, VersionKey, d.version)
}

// add asks until ctx ends; ipamd gives the same answer to the same sandbox.
func (d *ipamd) add(ctx context.Context, c *call) (*rpc.AddNetworkReply, error) {
	request := &rpc.AddNetworkRequest{
		K8S_POD_NAME:               c.pod.name(),
		K8S_POD_NAMESPACE:          c.pod.namespace(),
		K8S_POD_INFRA_CONTAINER_ID: string(c.pod.K8S_POD_INFRA_CONTAINER_ID),
		Netns:                      c.args.Netns,
		IfName:                     c.args.IfName,
		NetworkName:                c.conf.Name,
		ContainerID:                c.args.ContainerID,
		RequiresMultiNICAttachment: c.conf.multiNIC(),
	}
	var reply *rpc.AddNetworkReply
	err := untilAnswered(ctx, func() (err error) {
		reply, err = d.client.AddNetwork(d.outgoing(ctx), request, grpc.WaitForReady(true))
		return err
	})
	return reply, err
}

// del asks until ctx ends.
func (d *ipamd) del(ctx context.Context, c *call, reason string) (*rpc.DelNetworkReply, error) {
	request := &rpc.DelNetworkRequest{
		K8S_POD_NAME:               c.pod.name(),
		K8S_POD_NAMESPACE:          c.pod.namespace(),
		K8S_POD_INFRA_CONTAINER_ID: string(c.pod.K8S_POD_INFRA_CONTAINER_ID),
		K8S_POD_UID:                string(c.pod.K8S_POD_UID),
		Reason:                     reason,
		IfName:                     c.args.IfName,
		NetworkName:                c.conf.Name,
		ContainerID:                c.args.ContainerID,
	}
	var reply *rpc.DelNetworkReply
	err := untilAnswered(ctx, func() (err error) {
		reply, err = d.client.DelNetwork(d.outgoing(ctx), request, grpc.WaitForReady(true))
		return err
	})
	return reply, err
}

// untilAnswered repeats a call whose connection broke: with a daemon killed in the middle of it, nobody knows what came
// of it, and asking the next one tells.
func untilAnswered(ctx context.Context, call func() error) error {
	for {
		err := call()
		if status.Code(err) != codes.Unavailable {
			return err
		}
		pause := time.NewTimer(retryDelay)
		select {
		case <-ctx.Done():
			pause.Stop()
			return err
		case <-pause.C:
		}
	}
}

// enforcePolicy has the network policy agent take charge of the pod before it starts.
func (p *Plugin) enforcePolicy(ctx context.Context, c *call, mode string, interfaces int) error {
	conn, err := dialNPA(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, npaCallTimeout)
	defer cancel()
	reply, err := rpc.NewNPBackendClient(conn).EnforceNpToPod(ctx, &rpc.EnforceNpRequest{
		K8S_POD_NAME:        c.pod.name(),
		K8S_POD_NAMESPACE:   c.pod.namespace(),
		NETWORK_POLICY_MODE: mode,
		InterfaceCount:      int32(interfaces),
	})
	if err == nil && !reply.GetSuccess() {
		err = errors.New("the network policy agent refuses the pod")
	}
	return err
}

// deletePolicy tells the network policy agent that the pod is gone. Only its absence is an error: the runtime then
// repeats the DEL.
func (p *Plugin) deletePolicy(ctx context.Context, c *call) error {
	conn, err := dialNPA(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, npaCallTimeout)
	defer cancel()
	_, err = rpc.NewNPBackendClient(conn).DeletePodNp(ctx, &rpc.DeleteNpRequest{
		K8S_POD_NAME:      c.pod.name(),
		K8S_POD_NAMESPACE: c.pod.namespace(),
	})
	if err != nil {
		c.log.Warn("the network policy agent was told, and failed", "err", err)
	}
	return nil
}

func dialNPA(ctx context.Context) (*grpc.ClientConn, error) {
	conn, err := dial(npaSocket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, npaDialTimeout)
	defer cancel()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			_ = conn.Close()
			return nil, errors.New("the network policy agent does not answer on " + npaSocket)
		}
	}
	return conn, nil
}
