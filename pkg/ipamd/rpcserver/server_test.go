package rpcserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/rpc"
)

// pool is an Allocator with some addresses and a hook in the way of each ADD.
type pool struct {
	mu   sync.Mutex
	free []netip.Addr
	held map[ipamd.Sandbox]netip.Addr
	hook func(context.Context) error
}

func newPool(n int) *pool {
	p := &pool{held: make(map[ipamd.Sandbox]netip.Addr), hook: func(context.Context) error { return nil }}
	for i := range n {
		p.free = append(p.free, netip.AddrFrom4([4]byte{10, 0, 1, byte(10 + i)}))
	}
	return p
}

func (p *pool) Add(ctx context.Context, req ipamd.AddRequest) (ipamd.AddReply, error) {
	if err := p.hook(ctx); err != nil {
		return ipamd.AddReply{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.held[req.Sandbox]
	if !ok {
		if len(p.free) == 0 {
			return ipamd.AddReply{}, &ipamd.Refusal{Code: ipamd.CodeAtLimit, Reason: "all 15 addresses of a t3.medium are in use"}
		}
		a, p.free = p.free[0], p.free[1:]
		p.held[req.Sandbox] = a
	}
	return ipamd.AddReply{Address: a, Device: 1, Table: 2, ExternalSNAT: true,
		NoSNAT: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("100.64.0.0/10")}}, nil
}

func (p *pool) Del(_ context.Context, req ipamd.DelRequest) (ipamd.DelReply, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.held[req.Sandbox]
	if !ok {
		return ipamd.DelReply{}, fmt.Errorf("container %q: %w", req.ContainerID, datastore.ErrUnknownPod)
	}
	delete(p.held, req.Sandbox)
	p.free = append(p.free, a)
	return ipamd.DelReply{Address: a, Device: 1, Table: 2}, nil
}

// start serves until the test ends and returns a connection to it; stop ends it earlier and returns Serve's error.
func start(t *testing.T, o Options) (server *Server, conn *grpc.ClientConn, stop func() error) {
	t.Helper()
	// A socket's path has at most 107 bytes, which a test's own directory may exceed.
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	o.Socket = filepath.Join(dir, "run", "ipamd.sock")
	o.UID = uint32(os.Geteuid())
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	server = New(o)
	server.grace = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return server, dial(t, o.Socket), stop
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		// The server may not listen yet.
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1, MaxDelay: 5 * time.Millisecond}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func request(container string) *rpc.AddNetworkRequest {
	return &rpc.AddNetworkRequest{K8S_POD_NAME: "web-0", K8S_POD_NAMESPACE: "default", ContainerID: container,
		IfName: "eth0", NetworkName: "aws-cni", Netns: "/proc/1/ns/net"}
}

func TestAddAndDel(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var calls []string
	_, conn, stop := start(t, Options{
		Allocator: newPool(1),
		Agent:     AgentConfig{NetworkPolicyMode: "standard"},
		Observe: func(c Call) {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, fmt.Sprintf("%v/%s/%s", c.Del, c.Reason, c.Outcome))
		},
	})
	client := rpc.NewCNIBackendClient(conn)
	want := &rpc.AddNetworkReply{
		Success:              true,
		IPAllocationMetadata: []*rpc.IPAllocationMetadata{{IPv4Addr: "10.0.1.10", DeviceNumber: 1, RouteTableId: 2}},
		UseExternalSNAT:      true,
		VPCv4CIDRs:           []string{"10.0.0.0/16", "100.64.0.0/10"},
		NetworkPolicyMode:    "standard",
	}
	for range 2 { // the second is a repetition
		got, err := client.AddNetwork(t.Context(), request("c1"))
		if err != nil || !proto.Equal(got, want) {
			t.Fatalf("%v\ngot  %v\nwant %v", err, got, want)
		}
	}
	got, err := client.AddNetwork(t.Context(), request("c2"))
	if err != nil || got.Success || got.Code != "AtLimit" || !strings.Contains(got.Reason, "t3.medium") {
		t.Errorf("on a full node: %v, %v", got, err)
	}
	del := &rpc.DelNetworkRequest{ContainerID: "c1", IfName: "eth0", NetworkName: "aws-cni", Reason: "PodDeleted",
		ClientVersion: "v9.9.9"}
	gone, err := client.DelNetwork(t.Context(), del)
	wantGone := &rpc.DelNetworkReply{Success: true, NetworkPolicyMode: "standard", IPAllocationMetadata: want.IPAllocationMetadata}
	if err != nil || !proto.Equal(gone, wantGone) {
		t.Errorf("%v\ngot  %v\nwant %v", err, gone, wantGone)
	}
	if _, err := client.DelNetwork(t.Context(), del); err == nil || !strings.Contains(err.Error(), "datastore: unknown pod") {
		t.Errorf("second DEL: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	wantCalls := "false//OK false//OK false//AtLimit true/PodDeleted/OK true/PodDeleted/UnknownPod"
	if got := strings.Join(calls, " "); got != wantCalls {
		t.Errorf("observed %q", got)
	}
}

func TestInvalidRequestsAreRefusedWithAReason(t *testing.T) {
	t.Parallel()
	_, conn, _ := start(t, Options{Allocator: newPool(9)})
	client := rpc.NewCNIBackendClient(conn)
	for _, tt := range []struct {
		name   string
		change func(*rpc.AddNetworkRequest)
		reason string
	}{
		{"no container", func(r *rpc.AddNetworkRequest) { r.ContainerID = "" }, "has no container id"},
		{"no network, no interface", func(r *rpc.AddNetworkRequest) { r.NetworkName, r.IfName = "", "" }, "has no network name, interface name"},
		{"multi-NIC", func(r *rpc.AddNetworkRequest) { r.RequiresMultiNICAttachment = true }, "ENABLE_MULTI_NIC is off"},
	} {
		req := request("c1")
		tt.change(req)
		got, err := client.AddNetwork(t.Context(), req)
		if err != nil || got.Success || got.Code != "InvalidRequest" || !strings.Contains(got.Reason, tt.reason) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestUnexpectedErrorIsARefusalWithItsText(t *testing.T) {
	t.Parallel()
	p := newPool(1)
	p.hook = func(context.Context) error { return errors.New("the disk is on fire") }
	_, conn, _ := start(t, Options{Allocator: p})
	got, err := rpc.NewCNIBackendClient(conn).AddNetwork(t.Context(), request("c1"))
	if err != nil || got.Success || got.Code != "Error" || got.Reason != "the disk is on fire" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestPanicIsAnError(t *testing.T) {
	t.Parallel()
	p := newPool(1)
	p.hook = func(context.Context) error { panic("bug") }
	_, conn, _ := start(t, Options{Allocator: p})
	client := rpc.NewCNIBackendClient(conn)
	for range 2 {
		if _, err := client.AddNetwork(t.Context(), request("c1")); status.Code(err) != codes.Internal {
			t.Errorf("%v", err)
		}
	}
}

func TestCallerThatGoesAway(t *testing.T) {
	t.Parallel()
	p := newPool(1)
	entered := make(chan struct{})
	p.hook = func(ctx context.Context) error {
		close(entered)
		<-ctx.Done() // the allocator hears of it
		return ctx.Err()
	}
	outcome := make(chan string, 1)
	_, conn, _ := start(t, Options{Allocator: p, Observe: func(c Call) { outcome <- c.Outcome }})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if _, err := rpc.NewCNIBackendClient(conn).AddNetwork(ctx, request("c1")); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	if got := <-outcome; got != OutcomeError {
		t.Errorf("outcome %s", got)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var degraded atomic.Bool
	_, conn, _ := start(t, Options{Allocator: newPool(0), Degraded: degraded.Load})
	client := healthpb.NewHealthClient(conn)
	check := func(name string, want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		got, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
		if err != nil || got.Status != want {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	for _, d := range []bool{false, true, false} {
		degraded.Store(d)
		check("", healthpb.HealthCheckResponse_SERVING)
		check(HealthName, healthpb.HealthCheckResponse_SERVING)
		if d {
			check(HealthUndegraded, healthpb.HealthCheckResponse_NOT_SERVING)
		} else {
			check(HealthUndegraded, healthpb.HealthCheckResponse_SERVING)
		}
	}
}

func TestAgentConfig(t *testing.T) {
	t.Parallel()
	_, conn, _ := start(t, Options{Allocator: newPool(0), Agent: AgentConfig{
		NetworkPolicyMode: "strict", NodeIPv4: "10.0.1.4", InstanceID: "i-1", Region: "eu-central-1"}})
	got, err := rpc.NewConfigServerBackendClient(conn).GetNetworkPolicyConfigs(t.Context(), &emptypb.Empty{})
	want := &rpc.NetworkPolicyAgentConfigReply{NetworkPolicyMode: "strict", NodeIPv4: "10.0.1.4", InstanceID: "i-1", Region: "eu-central-1"}
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestSocket(t *testing.T) {
	t.Parallel()
	server, conn, stop := start(t, Options{Allocator: newPool(1)})
	if _, err := rpc.NewCNIBackendClient(conn).AddNetwork(t.Context(), request("c1")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		server.socket:               os.ModeSocket | 0o660,
		filepath.Dir(server.socket): os.ModeDir | 0o755,
	} {
		info, err := os.Stat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if services := server.grpc.GetServiceInfo(); len(services) != 3 {
		t.Errorf("services %v", services)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// What a killed process leaves behind does not stop the next one.
	if _, err := os.Stat(server.socket); err != nil {
		t.Fatalf("socket file: %v", err)
	}
	next := New(Options{Socket: server.socket, Allocator: newPool(1), UID: uint32(os.Geteuid()), Log: server.log})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- next.Serve(ctx) }()
	if _, err := rpc.NewCNIBackendClient(dial(t, server.socket)).AddNetwork(t.Context(), request("c1")); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOtherUsersAreTurnedAway(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	creds := peerCredentials{uid: uint32(os.Geteuid()) + 1, log: slog.New(slog.NewTextHandler(&logged, nil))}
	ours, theirs := unixPair(t)
	if _, _, err := creds.ServerHandshake(ours); err == nil || !strings.Contains(err.Error(), "may not connect") {
		t.Errorf("%v", err)
	}
	if _, err := theirs.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if !strings.Contains(logged.String(), "connection refused") {
		t.Errorf("log: %s", &logged)
	}
	creds.uid--
	ours, _ = unixPair(t)
	if _, _, err := creds.ServerHandshake(ours); err != nil {
		t.Error(err)
	}
	tcp, _ := net.Pipe()
	if _, _, err := creds.ServerHandshake(tcp); err == nil {
		t.Error("a connection without a socket was accepted")
	}
}

func unixPair(t *testing.T) (server, client net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen(t.Context(), filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	client, err = net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = client.Close(), server.Close()
		_ = l.Close()
		_ = os.RemoveAll(dir)
	})
	return server, client
}

func TestConnectionsAreLimited(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	inner, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	l := limitConnections(inner, 1)
	for range 2 {
		if c, err := net.Dial("unix", path); err != nil {
			t.Fatal(err)
		} else {
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	first, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("a second connection was accepted (%v)", err)
	case <-time.After(20 * time.Millisecond):
	}
	_ = first.Close()
	_ = first.Close() // frees its place once
	if err := <-second; err != nil {
		t.Error(err)
	}
	third := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		third <- err
	}()
	_ = l.Close()
	if err := <-third; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept on a closed listener: %v", err)
	}
}

// A DEL gets through while ADDs wait, and the end of the server ends them.
func TestWaitingAddsDoNotStopADel(t *testing.T) {
	t.Parallel()
	p := newPool(1)
	waiting := make(chan struct{}, 8)
	p.hook = func(ctx context.Context) error {
		waiting <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	p.held[ipamd.Sandbox{NetworkName: "aws-cni", ContainerID: "old", IfName: "eth0"}] = netip.MustParseAddr("10.0.1.9")
	_, conn, stop := start(t, Options{Allocator: p})
	client := rpc.NewCNIBackendClient(conn)
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			_, err := client.AddNetwork(context.Background(), request(fmt.Sprint(i)))
			errs <- err
		}()
	}
	for range 8 {
		<-waiting
	}
	if _, err := client.DelNetwork(t.Context(), &rpc.DelNetworkRequest{ContainerID: "old", IfName: "eth0", NetworkName: "aws-cni"}); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for range 8 {
		if err := <-errs; err == nil {
			t.Error("a waiting ADD succeeded")
		}
	}
}

// An ADD and a DEL write one line each at INFO.
func TestLogVolume(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	_, conn, stop := start(t, Options{Allocator: newPool(1),
		Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelInfo}))})
	client := rpc.NewCNIBackendClient(conn)
	if _, err := client.AddNetwork(t.Context(), request("c1")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.DelNetwork(t.Context(), &rpc.DelNetworkRequest{ContainerID: "c1", IfName: "eth0", NetworkName: "aws-cni"}); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(logged.String(), "\n"); lines != 4 { // serving, the plugin's version, assigned, released
		t.Errorf("%d lines:\n%s", lines, &logged)
	}
}

// An address is prepared before its plugin knows of it, also if that takes a while; a refusal has none.
func TestAddressesArePrepared(t *testing.T) {
	t.Parallel()
	prepared := make(chan netip.Addr)
	_, conn, _ := start(t, Options{Allocator: newPool(1), Prepare: func(_ context.Context, a netip.Addr) { prepared <- a }})
	client := rpc.NewCNIBackendClient(conn)
	replies := make(chan *rpc.AddNetworkReply, 1)
	go func() {
		reply, err := client.AddNetwork(t.Context(), &rpc.AddNetworkRequest{ContainerID: "c1", IfName: "eth0", NetworkName: "aws-cni"})
		if err != nil {
			t.Error(err)
		}
		replies <- reply
	}()
	select {
	case <-replies:
		t.Error("the address was handed out first")
	case a := <-prepared:
		if got := (<-replies).GetIPAllocationMetadata(); len(got) != 1 || got[0].GetIPv4Addr() != a.String() {
			t.Errorf("%s was prepared, %v handed out", a, got)
		}
	}
	if reply, err := client.AddNetwork(t.Context(), &rpc.AddNetworkRequest{ContainerID: "c2", IfName: "eth0", NetworkName: "aws-cni"}); err != nil || reply.GetSuccess() {
		t.Errorf("%v, %v", reply, err)
	}
}
