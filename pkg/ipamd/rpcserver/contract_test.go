package rpcserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/rpc"
)

// rawCodec sends and receives bytes as they are: what another program's messages look like to ours.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("not bytes: %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("not bytes: %T", v)
	}
	*b = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = rawCodec{}

func invoke(t *testing.T, conn *grpc.ClientConn, method string, request []byte) ([]byte, error) {
	t.Helper()
	var reply []byte
	err := conn.Invoke(t.Context(), method, request, &reply, grpc.ForceCodecV2(rawCodec{}))
	return reply, err
}

func str(b []byte, field protowire.Number, text string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), text)
}

func num(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestUpstreamPluginIsAnswered: the bytes that upstream v1.23's plugin sends get the bytes that it reads.
func TestUpstreamPluginIsAnswered(t *testing.T) {
	t.Parallel()
	_, conn, _ := start(t, Options{Allocator: newPool(1), Agent: AgentConfig{NetworkPolicyMode: "standard", MultiNIC: true,
		NodeIPv4: "10.0.1.4", NodeIPv6: "fd00::4", InstanceID: "i-1", Region: "eu-central-1"}})
	held := concat(str(nil, 1, "10.0.1.10"), num(nil, 3, 1), num(nil, 4, 2))
	addRequest := concat(str(nil, 1, "web-0"), str(nil, 2, "default"), str(nil, 3, "c1"), str(nil, 4, "/proc/1/ns/net"), str(nil, 5, "eth0"),
		str(nil, 6, "aws-cni"), str(nil, 7, "c1"))
	got, err := invoke(t, conn, "/rpc.CNIBackend/AddNetwork", addRequest)
	if err != nil {
		t.Fatal(err)
	}
	want := concat(num(nil, 1, 1), protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), held), num(nil, 5, 1),
		str(nil, 6, "10.0.0.0/16"), str(nil, 6, "100.64.0.0/10"), str(nil, 13, "standard"))
	if !bytes.Equal(got, want) {
		t.Errorf("ADD:\ngot  %x\nwant %x", got, want)
	}
	// A pod without an address: Success stays away, as false does, and what is new has numbers that upstream skips.
	got, err = invoke(t, conn, "/rpc.CNIBackend/AddNetwork", concat(str(nil, 5, "eth0"), str(nil, 6, "aws-cni"), str(nil, 7, "c2")))
	if err != nil || len(numbers(t, got)) != 2 {
		t.Errorf("ADD on a full node: %v, %v", numbers(t, got), err)
	}
	for _, n := range numbers(t, got) {
		if n < 100 {
			t.Errorf("ADD on a full node: field %d", n)
		}
	}
	delRequest := concat(str(nil, 1, "web-0"), str(nil, 2, "default"), str(nil, 3, "c1"), str(nil, 5, "PodDeleted"), str(nil, 6, "eth0"),
		str(nil, 7, "aws-cni"), str(nil, 8, "c1"), str(nil, 10, "b7a5"))
	got, err = invoke(t, conn, "/rpc.CNIBackend/DelNetwork", delRequest)
	want = concat(num(nil, 1, 1), protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), held), str(nil, 6, "standard"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("DEL: %v\ngot  %x\nwant %x", err, got, want)
	}
	// Upstream's plugin looks for this text in the error, whatever its code.
	if _, err = invoke(t, conn, "/rpc.CNIBackend/DelNetwork", delRequest); err == nil || !strings.Contains(err.Error(), "datastore: unknown pod") {
		t.Errorf("DEL of an unknown pod: %v", err)
	}
	got, err = invoke(t, conn, "/rpc.ConfigServerBackend/GetNetworkPolicyConfigs", nil)
	want = concat(str(nil, 1, "standard"), num(nil, 2, 1), str(nil, 3, "10.0.1.4"), str(nil, 4, "fd00::4"), str(nil, 5, "i-1"), str(nil, 6, "eu-central-1"))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("policy agent: %v\ngot  %x\nwant %x", err, got, want)
	}
}

// numbers lists the fields of a message.
func numbers(t *testing.T, b []byte) []protowire.Number {
	t.Helper()
	var out []protowire.Number
	for len(b) > 0 {
		field, _, n := protowire.ConsumeField(b)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		out, b = append(out, field), b[n:]
	}
	return out
}

// broken fails in ways that a datastore of addresses never would.
type broken struct{ err error }

func (b broken) Add(context.Context, ipamd.AddRequest) (ipamd.AddReply, error) {
	return ipamd.AddReply{}, b.err
}

func (b broken) Del(context.Context, ipamd.DelRequest) (ipamd.DelReply, error) {
	return ipamd.DelReply{}, b.err
}

// Programs read the reason in the details, people and old plugins in the text.
func TestErrorsCarryTheirReason(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err          error
		code         codes.Code
		reason, text string
	}{
		{fmt.Errorf("container %q: %w", "c1", datastore.ErrUnknownPod), codes.NotFound, "UnknownPod", "datastore: unknown pod"},
		{&ipamd.Refusal{Code: ipamd.CodeStorage, Reason: "no space left on device"}, codes.Internal, "Storage", "no space left"},
		{errors.New("the disk is on fire"), codes.Internal, "Error", "the disk is on fire"},
	} {
		_, conn, _ := start(t, Options{Allocator: broken{tc.err}})
		_, err := rpc.NewCNIBackendClient(conn).DelNetwork(t.Context(), &rpc.DelNetworkRequest{ContainerID: "c1", IfName: "eth0", NetworkName: "aws-cni"})
		s := status.Convert(err)
		if s.Code() != tc.code || !strings.Contains(s.Message(), tc.text) || len(s.Details()) != 1 {
			t.Errorf("%v: %v %v", tc.err, s, s.Details())
			continue
		}
		info, ok := s.Details()[0].(*errdetails.ErrorInfo)
		if !ok || info.GetReason() != tc.reason || info.GetDomain() != "vpc-cni" {
			t.Errorf("%v: details %v", tc.err, s.Details())
		}
	}
}

// The version travels beside the request and is logged when it changes, not with every call.
func TestPluginVersion(t *testing.T) {
	t.Parallel()
	var logged lockedBuffer
	server, conn, stop := start(t, Options{Allocator: newPool(9), Log: slog.New(slog.NewTextHandler(&logged, nil))})
	client := rpc.NewCNIBackendClient(conn)
	if v := server.PluginVersion(); v != "" {
		t.Errorf("before any call: %q", v)
	}
	for _, version := range []string{"v1", "v1", "", "v2", "v2"} {
		ctx := t.Context()
		if version != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, versionKey, version)
		}
		if _, err := client.AddNetwork(ctx, request("c1")); err != nil {
			t.Fatal(err)
		}
	}
	if v := server.PluginVersion(); v != "v2" {
		t.Errorf("%q", v)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(logged.String(), "version of the plugin"); n != 3 {
		t.Errorf("%d lines:\n%s", n, &logged)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestUndeliveredReply: the caller dies after the allocator has answered and before the reply has left.
func TestUndeliveredReply(t *testing.T) {
	t.Parallel()
	p := newPool(1)
	var call context.Context
	p.hook = func(ctx context.Context) error { call = ctx; return nil }
	heard := make(chan netip.Addr, 2)
	var victim *grpc.ClientConn
	die := true
	server, conn, _ := start(t, Options{
		Allocator: p,
		Undelivered: func(s ipamd.Sandbox, r ipamd.AddReply) {
			if s.ContainerID != "c1" {
				t.Errorf("%+v", s)
			}
			heard <- r.Address
		},
		Observe: func(c Call) {
			if c.Outcome == OutcomeOK && die {
				_ = victim.Close()
				<-call.Done() // the server knows
			}
		},
	})
	victim = dial(t, server.socket)
	if _, err := rpc.NewCNIBackendClient(victim).AddNetwork(t.Context(), request("c1")); err == nil {
		t.Error("the reply arrived")
	}
	select {
	case got := <-heard:
		if got.String() != "10.0.1.10" {
			t.Errorf("%v", got)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nobody heard of it")
	}
	// A reply that arrives is none of these, nor is a refusal.
	die = false
	client := rpc.NewCNIBackendClient(conn)
	for _, id := range []string{"c1", "c2"} {
		if _, err := client.AddNetwork(t.Context(), request(id)); err != nil {
			t.Error(err)
		}
	}
	if len(heard) > 0 {
		t.Errorf("%v counts as undelivered", <-heard)
	}
}
