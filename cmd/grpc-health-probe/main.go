// grpc-health-probe asks a gRPC server for its health and says it in its exit code: what kubelet's probes run in the
// aws-node container.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Exit codes.
const (
	exitServing    = 0
	exitArguments  = 1
	exitConnect    = 2
	exitRPC        = 3
	exitNotServing = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

type options struct {
	addr           string
	service        string
	userAgent      string
	connectTimeout time.Duration
	rpcTimeout     time.Duration
	verbose        bool
}

func parse(args []string, out io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("grpc-health-probe", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&o.addr, "addr", "", "address of the server: host:port, or unix:///path")
	flags.StringVar(&o.service, "service", "", "service to ask for; empty asks for the server as a whole")
	flags.StringVar(&o.userAgent, "user-agent", "grpc-health-probe", "user agent of the request")
	flags.DurationVar(&o.connectTimeout, "connect-timeout", time.Second, "how long to try to connect")
	flags.DurationVar(&o.rpcTimeout, "rpc-timeout", time.Second, "how long to wait for the answer")
	flags.BoolVar(&o.verbose, "v", false, "say how long it took")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.addr == "":
		return o, errors.New("-addr is missing")
	case o.connectTimeout <= 0:
		return o, errors.New("-connect-timeout must be above zero")
	case o.rpcTimeout <= 0:
		return o, errors.New("-rpc-timeout must be above zero")
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) int {
	o, err := parse(args, out)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitServing
	case err != nil:
		fmt.Fprintln(out, "error:", err)
		return exitArguments
	}
	start := time.Now()
	conn, err := connect(ctx, o)
	if err != nil {
		fmt.Fprintln(out, "error:", err)
		return exitConnect
	}
	defer conn.Close()
	connected := time.Now()

	ctx, cancel := context.WithTimeout(ctx, o.rpcTimeout)
	defer cancel()
	reply, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: o.service})
	if err != nil {
		fmt.Fprintln(out, "error: health rpc:", err)
		return exitRPC
	}
	if o.verbose {
		fmt.Fprintf(out, "time: connect=%v rpc=%v\n", connected.Sub(start), time.Since(connected))
	}
	fmt.Fprintln(out, "status:", reply.Status)
	if reply.Status != healthpb.HealthCheckResponse_SERVING {
		return exitNotServing
	}
	return exitServing
}

// connect waits for the server to accept: one that is just starting is not one that is ill.
func connect(ctx context.Context, o options) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.connectTimeout)
	defer cancel()
	var d dialer
	conn, err := grpc.NewClient(target(o.addr),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(o.userAgent),
		grpc.WithContextDialer(d.dial))
	if err != nil {
		return nil, err
	}
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return conn, nil
		}
		conn.Connect()
		if !conn.WaitForStateChange(ctx, state) {
			return nil, errors.Join(fmt.Errorf("no connection to %q within %v", o.addr, o.connectTimeout), d.cause(), conn.Close())
		}
	}
}

// target keeps gRPC from looking host names up by itself: the dialer does it, with the system's resolver.
func target(addr string) string {
	if strings.Contains(addr, ":/") || strings.HasPrefix(addr, "unix:") {
		return addr
	}
	return "passthrough:///" + addr
}

// dialer keeps the reason of the last failure, which gRPC's state does not tell.
type dialer struct {
	mu   sync.Mutex
	last error
}

func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	network := "tcp"
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", strings.TrimPrefix(path, "//")
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = err
	return conn, err
}

func (d *dialer) cause() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}
