// Package rpcserver is ipamd's side of the node's unix socket: it turns the wire's requests into the daemon's and its
// answers into replies that every version of the plugin understands. It decides nothing about addresses.
package rpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"vpccni/pkg/ipamd"
	"vpccni/rpc"
)

// Names that the health service answers for. "" and HealthName are what kubelet's probes ask: they are SERVING for as
// long as the server serves, since no restart mends a full node or a cloud that does not answer.
const (
	HealthName = "grpc.health.v1.aws-node"
	// HealthUndegraded is SERVING while every feature works, NOT_SERVING while one is degraded.
	HealthUndegraded = "vpc-cni.undegraded"
)

// Bounds. A plugin process makes one connection and one call on it.
const (
	maxConnections = 2048
	maxStreams     = 64 // per connection
	maxMessage     = 64 << 10
	maxHeaders     = 16 << 10
	maxAdds        = 1024 // in flight, waiting ones included
	maxDels        = 128  // further ones wait for their turn

	handshakeTimeout = 5 * time.Second
	// The plugin gives up 90 s after its start; a reply after that reaches nobody.
	addTimeout = 90 * time.Second
	delTimeout = 20 * time.Second
	// What calls in flight get once the server's context ends: half of the 2 s that all of ipamd has.
	gracefulTimeout = time.Second
)

// Allocator is who has the addresses. An ADD whose context ends before its answer leaves nothing assigned; of one whose
// reply does not leave this process Undelivered hears, and one whose reply is lost after that is released by the DEL
// that kubelet sends for every sandbox that failed.
type Allocator interface {
	Add(context.Context, ipamd.AddRequest) (ipamd.AddReply, error)
	Del(context.Context, ipamd.DelRequest) (ipamd.DelReply, error)
}

// AgentConfig is what the network policy agent asks for, and the policy mode that every reply carries.
type AgentConfig struct {
	NetworkPolicyMode string // verbatim from the environment; empty when unset
	MultiNIC          bool
	NodeIPv4          string
	NodeIPv6          string
	InstanceID        string
	Region            string
}

// Call is one finished ADD or DEL, for metrics.
type Call struct {
	Del      bool
	Reason   string // of a DEL: what the client says, an open vocabulary
	Outcome  string // OK, a refusal's code, UnknownPod, or Error
	Duration time.Duration
	// Waited and Recorded are the parts of it that a success has: until there was an address, and until the change was
	// durable.
	Waited, Recorded time.Duration
}

// Outcomes of a Call that are not codes of a refusal.
const (
	OutcomeOK         = "OK"
	OutcomeUnknownPod = "UnknownPod"
	OutcomeError      = "Error"
)

// Options are what a Server needs.
type Options struct {
	Socket    string
	Allocator Allocator
	Agent     AgentConfig
	Observe   func(Call) // may be nil
	// Undelivered, if set, hears of ADDs whose reply is known to have reached nobody.
	Undelivered func(ipamd.Sandbox, ipamd.AddReply)
	// Prepare, if set, is called with each address that a sandbox gets, before anybody outside this process knows of it.
	Prepare func(context.Context, netip.Addr)
	// Degraded tells whether some feature does not work at present. May be nil.
	Degraded func() bool
	// UID is the only user that may connect: root, unless a test says otherwise.
	UID uint32
	Log *slog.Logger
}

// Server serves CNIBackend, ConfigServerBackend and health on a unix socket.
type Server struct {
	socket  string
	grpc    *grpc.Server
	grace   time.Duration
	log     *slog.Logger
	clients *clients
}

// PluginVersion is what the plugin that called last says of itself; empty if none has called.
func (s *Server) PluginVersion() string { return s.clients.version() }

// New returns a Server; Serve makes it listen.
func New(o Options) *Server {
	if o.Observe == nil {
		o.Observe = func(Call) {}
	}
	if o.Degraded == nil {
		o.Degraded = func() bool { return false }
	}
	if o.Prepare == nil {
		o.Prepare = func(context.Context, netip.Addr) {}
	}
	if o.Undelivered == nil {
		o.Undelivered = func(ipamd.Sandbox, ipamd.AddReply) {}
	}
	s := &Server{socket: o.Socket, grace: gracefulTimeout, log: o.Log, clients: &clients{log: o.Log}}
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCredentials{uid: o.UID, log: o.Log}),
		grpc.ChainUnaryInterceptor(recoverPanics(o.Log), limitCalls()),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.WaitForHandlers(true),
		grpc.StatsHandler(deliveries{o.Undelivered}),
	)
	rpc.RegisterCNIBackendServer(s.grpc, &cniBackend{
		allocator: o.Allocator, prepare: o.Prepare, policyMode: o.Agent.NetworkPolicyMode, observe: o.Observe, clients: s.clients,
		log: o.Log,
	})
	rpc.RegisterConfigServerBackendServer(s.grpc, &agentBackend{config: o.Agent})
	names := health.NewServer()
	names.SetServingStatus(HealthName, healthpb.HealthCheckResponse_SERVING)
	names.SetServingStatus(HealthUndegraded, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s.grpc, prober{names, o.Degraded})
	return s
}

// prober answers health checks. Whether something is degraded is asked when somebody wants to know.
type prober struct {
	*health.Server
	degraded func() bool
}

func (p prober) Check(ctx context.Context, in *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if in.GetService() == HealthUndegraded && p.degraded() {
		return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING}, nil
	}
	return p.Server.Check(ctx, in)
}

// Serve listens and serves until ctx ends; calls in flight then get a second to end.
func (s *Server) Serve(ctx context.Context) error {
	listener, err := listen(ctx, s.socket)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.socket, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.grpc.Serve(limitConnections(listener, maxConnections)) }()
	s.log.Info("serving", "socket", s.socket)
	select {
	case err := <-ended:
		return fmt.Errorf("serve on %s: %w", s.socket, err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(stopped) }()
	timer := time.NewTimer(s.grace)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		s.grpc.Stop()
		<-stopped
	}
	if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve on %s: %w", s.socket, err)
	}
	return nil
}
