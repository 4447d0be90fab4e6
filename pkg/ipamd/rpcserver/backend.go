package rpcserver

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/rpc"
)

type cniBackend struct {
	rpc.UnimplementedCNIBackendServer
	allocator  Allocator
	prepare    func(context.Context, netip.Addr)
	policyMode string
	observe    func(Call)
	clients    *clients
	log        *slog.Logger
}

// AddNetwork answers a pod that gets no address with Success=false, a code and a reason; plugins that do not know
// those two fields see what they always saw. A gRPC error is kept for calls that went wrong as calls.
func (b *cniBackend) AddNetwork(ctx context.Context, in *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error) {
	start := time.Now()
	req := ipamd.AddRequest{
		Sandbox:   ipamd.Sandbox{NetworkName: in.NetworkName, ContainerID: in.ContainerID, IfName: in.IfName},
		Namespace: in.K8S_POD_NAMESPACE,
		Pod:       in.K8S_POD_NAME,
	}
	log := b.log.With("container", in.ContainerID, "namespace", in.K8S_POD_NAMESPACE, "pod", in.K8S_POD_NAME)
	b.clients.heard(ctx, in.ClientVersion)
	reply, err := b.add(ctx, req, in.RequiresMultiNICAttachment)
	took := time.Since(start)

	var refusal *ipamd.Refusal
	switch {
	case err == nil:
		log.Info("address assigned", "address", reply.Address, "device", reply.Device, "table", reply.Table, "took", took)
		b.observe(Call{Outcome: OutcomeOK, Duration: took, Waited: reply.Waited, Recorded: reply.Recorded})
		expect(ctx, req.Sandbox, reply)
		return b.addReply(reply), nil
	case errors.As(err, &refusal): // the allocator has said so in the log
		log.Debug("no address", "code", refusal.Code, "reason", refusal.Reason, "took", took)
		b.observe(Call{Outcome: string(refusal.Code), Duration: took})
		return refused(refusal), nil
	}
	b.observe(Call{Outcome: OutcomeError, Duration: took})
	if ctx.Err() != nil {
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	log.Error("ADD failed", "error", err, "took", took)
	return refused(&ipamd.Refusal{Code: OutcomeError, Reason: err.Error()}), nil
}

// add refuses what cannot be asked of the allocator.
func (b *cniBackend) add(ctx context.Context, req ipamd.AddRequest, multiNIC bool) (ipamd.AddReply, error) {
	reason := missing(req.Sandbox)
	if reason == "" && multiNIC {
		reason = "the pod asks for an interface on every network card, but ENABLE_MULTI_NIC is off on this node"
	}
	if reason != "" {
		b.log.Warn("invalid request", "container", req.ContainerID, "namespace", req.Namespace, "pod", req.Pod, "reason", reason)
		return ipamd.AddReply{}, &ipamd.Refusal{Code: ipamd.CodeInvalid, Reason: reason}
	}
	reply, err := b.allocator.Add(ctx, req)
	if err == nil {
		b.prepare(ctx, reply.Address)
	}
	return reply, err
}

// missing names the parts of an allocation's key that a request lacks.
func missing(s ipamd.Sandbox) string {
	var names []string
	for _, f := range []struct{ name, value string }{
		{"network name", s.NetworkName}, {"container id", s.ContainerID}, {"interface name", s.IfName},
	} {
		if f.value == "" {
			names = append(names, f.name)
		}
	}
	if names == nil {
		return ""
	}
	return "the request has no " + strings.Join(names, ", ")
}

func (b *cniBackend) addReply(r ipamd.AddReply) *rpc.AddNetworkReply {
	out := &rpc.AddNetworkReply{
		Success:              true,
		IPAllocationMetadata: allocation(r.Address, r.Device, r.Table),
		UseExternalSNAT:      r.ExternalSNAT,
		NetworkPolicyMode:    b.policyMode,
		PerPodRules:          r.PerPodRules,
	}
	for _, p := range r.NoSNAT {
		if p.Addr().Is4() {
			out.VPCv4CIDRs = append(out.VPCv4CIDRs, p.String())
		} else {
			out.VPCv6CIDRs = append(out.VPCv6CIDRs, p.String())
		}
	}
	return out
}

func refused(r *ipamd.Refusal) *rpc.AddNetworkReply {
	return &rpc.AddNetworkReply{Code: string(r.Code), Reason: r.Reason}
}

// DelNetwork releases an address. Every failure is a gRPC error: plugins take its text for the reason.
func (b *cniBackend) DelNetwork(ctx context.Context, in *rpc.DelNetworkRequest) (*rpc.DelNetworkReply, error) {
	start := time.Now()
	req := ipamd.DelRequest{
		Sandbox:   ipamd.Sandbox{NetworkName: in.NetworkName, ContainerID: in.ContainerID, IfName: in.IfName},
		Namespace: in.K8S_POD_NAMESPACE,
		Pod:       in.K8S_POD_NAME,
	}
	log := b.log.With("container", in.ContainerID, "namespace", in.K8S_POD_NAMESPACE, "pod", in.K8S_POD_NAME)
	b.clients.heard(ctx, in.ClientVersion)
	reply, err := b.allocator.Del(ctx, req)
	done := func(outcome string) time.Duration {
		took := time.Since(start)
		b.observe(Call{Del: true, Reason: in.Reason, Outcome: outcome, Duration: took, Recorded: reply.Recorded})
		return took
	}
	var refusal *ipamd.Refusal
	switch {
	case err == nil:
		log.Info("address released", "address", reply.Address, "why", in.Reason, "took", done(OutcomeOK))
		return &rpc.DelNetworkReply{
			Success:              true,
			IPAllocationMetadata: allocation(reply.Address, reply.Device, reply.Table),
			NetworkPolicyMode:    b.policyMode,
		}, nil
	case errors.Is(err, datastore.ErrUnknownPod):
		log.Debug("nothing to release", "took", done(OutcomeUnknownPod))
		// Plugins look for the text, which is part of the contract; err may carry more.
		return nil, failure(codes.NotFound, OutcomeUnknownPod, datastore.ErrUnknownPod.Error())
	case ctx.Err() != nil:
		done(OutcomeError)
		return nil, status.FromContextError(ctx.Err()).Err()
	case errors.As(err, &refusal):
		log.Error("DEL refused", "code", refusal.Code, "reason", refusal.Reason, "took", done(string(refusal.Code)))
		return nil, failure(codes.Internal, string(refusal.Code), refusal.Error())
	default:
		log.Error("DEL failed", "error", err, "took", done(OutcomeError))
		return nil, failure(codes.Internal, OutcomeError, err.Error())
	}
}

func allocation(addr netip.Addr, device, table int) []*rpc.IPAllocationMetadata {
	m := &rpc.IPAllocationMetadata{DeviceNumber: int32(device), RouteTableId: int32(table)}
	if addr.Is4() {
		m.IPv4Addr = addr.String()
	} else {
		m.IPv6Addr = addr.String()
	}
	return []*rpc.IPAllocationMetadata{m}
}

type agentBackend struct {
	rpc.UnimplementedConfigServerBackendServer
	config AgentConfig
}

// GetNetworkPolicyConfigs tells the network policy agent how this node is set up.
func (b *agentBackend) GetNetworkPolicyConfigs(context.Context, *emptypb.Empty) (*rpc.NetworkPolicyAgentConfigReply, error) {
	return &rpc.NetworkPolicyAgentConfigReply{
		NetworkPolicyMode: b.config.NetworkPolicyMode,
		MultiNICEnabled:   b.config.MultiNIC,
		NodeIPv4:          b.config.NodeIPv4,
		NodeIPv6:          b.config.NodeIPv6,
		InstanceID:        b.config.InstanceID,
		Region:            b.config.Region,
	}, nil
}
