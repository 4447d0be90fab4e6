package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func serve(t *testing.T, network, addr string) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	h := health.NewServer()
	h.SetServingStatus("ill", healthpb.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, h)
	done := make(chan struct{})
	go func() { _ = server.Serve(l); close(done) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return l.Addr().String()
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := serve(t, "unix", filepath.Join(dir, "s.sock"))
	tcp := serve(t, "tcp", "127.0.0.1:0")
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		output string
	}{
		{"unix socket", []string{"-addr=unix://" + socket}, exitServing, "status: SERVING"},
		{"unix socket, short form", []string{"-addr", "unix:" + socket}, exitServing, "status: SERVING"},
		{"as in the manifest", []string{"-addr=unix://" + socket, "-connect-timeout=5s", "-rpc-timeout=5s"}, exitServing, "SERVING"},
		{"tcp", []string{"-addr", tcp, "-v", "-user-agent=x"}, exitServing, "time: connect="},
		{"ill", []string{"-addr=unix://" + socket, "-service=ill"}, exitNotServing, "status: NOT_SERVING"},
		{"unknown service", []string{"-addr=unix://" + socket, "-service=other"}, exitRPC, "unknown service"},
		{"nobody there", []string{"-addr=unix://" + dir + "/none", "-connect-timeout=50ms"}, exitConnect, "no such file"},
		{"no address", nil, exitArguments, "-addr is missing"},
		{"bad timeout", []string{"-addr=x", "-rpc-timeout=0s"}, exitArguments, "-rpc-timeout"},
		{"negative timeout", []string{"-addr=x", "-connect-timeout=-1s"}, exitArguments, "-connect-timeout"},
		{"unknown flag", []string{"-tls"}, exitArguments, "-tls"},
		{"argument", []string{"-addr=x", "more"}, exitArguments, "more"},
		{"help", []string{"-h"}, exitServing, "-connect-timeout"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			if code := run(t.Context(), tt.args, &out); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(out.String(), tt.output) {
				t.Errorf("output %q lacks %q", &out, tt.output)
			}
		})
	}
}
