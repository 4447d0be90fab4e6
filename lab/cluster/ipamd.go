package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"vpccni/lab/node"
	"vpccni/pkg/conflist"
	"vpccni/pkg/networkutils/names"
)

const (
	// healthyTimeout is how long ipamd may take until it is healthy.
	healthyTimeout = 60 * time.Second
	// stopTimeout is how long ipamd may take to end when asked to.
	stopTimeout = 10 * time.Second
)

// IPAMDEnv is the environment that ipamd runs with, besides the node's own: as the manifest sets it, what the lab
// needs, then the spec's. An empty value there takes a variable away.
func (n *Node) IPAMDEnv() map[string]string {
	env := map[string]string{
		"ENABLE_IPv4":              "true",
		"MY_NODE_NAME":             n.HostName(),
		"CLUSTER_NAME":             n.cluster.spec.Name,
		"AWS_VPC_K8S_CNI_LOG_FILE": ipamdLog,
	}
	maps.Copy(env, n.cluster.spec.Env)
	maps.Copy(env, n.spec.Env)
	maps.DeleteFunc(env, func(_, value string) bool { return value == "" })
	return env
}

// StartIPAMD starts ipamd, waits until it is healthy and then, as the container's entrypoint does, puts the CNI
// configuration in place.
func (n *Node) StartIPAMD(ctx context.Context) error {
	n.starting.Lock()
	defer n.starting.Unlock()
	if n.IPAMDRunning() {
		return fmt.Errorf("ipamd is running on %s", n.Name)
	}
	if err := os.MkdirAll(n.disk(names.LogDir), 0o755); err != nil {
		return err
	}
	env := n.IPAMDEnv()
	if env["ENABLE_V6_EGRESS"] == "true" {
		if err := n.os.Do(forwardIPv6); err != nil {
			return err
		}
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	d, err := n.os.StartDaemon("ipamd", list, filepath.Join(node.BinDir, ipamdBinary))
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.ipamd = d
	n.mu.Unlock()
	if err := n.waitHealthy(ctx, d); err != nil {
		return err
	}
	return n.writeConflist(env)
}

// forwardIPv6 is what the init container does for a node whose pods reach IPv6 destinations.
func forwardIPv6() error {
	for path, value := range map[string]string{"all/forwarding": "1", "eth0/accept_ra": "2"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+path, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func ended(d *node.Daemon) bool {
	select {
	case <-d.Done():
		return true
	default:
		return false
	}
}

func (n *Node) writeConflist(env map[string]string) error {
	there := func(binary string) bool { _, err := os.Stat(n.disk(cniBin, binary)); return err == nil }
	text, err := networkList(env, n.Address6, installed{egress: there(egressBinary), portmap: there(portmapBinary)})
	if err != nil {
		return err
	}
	return conflist.Install(n.disk(names.ConflistFile), text)
}

// waitHealthy asks as kubelet's probe does, until ipamd says that it serves, ends, or takes too long.
func (n *Node) waitHealthy(ctx context.Context, d *node.Daemon) error {
	ctx, cancel := context.WithTimeoutCause(ctx, healthyTimeout, fmt.Errorf("not healthy within %s", healthyTimeout))
	defer cancel()
	ctx, died := context.WithCancelCause(ctx)
	defer died(nil)
	go func() {
		select {
		case <-d.Done():
			died(fmt.Errorf("it ended: %w", cmp.Or(d.Err(), errors.New("exit status 0"))))
		case <-ctx.Done():
		}
	}()
	conn, err := grpc.NewClient("passthrough:///ipamd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return n.os.DialContext(ctx, "unix", names.IPAMDSocket)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	reply, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err == nil && reply.GetStatus() == healthpb.HealthCheckResponse_SERVING {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err == nil {
		err = fmt.Errorf("it says %s", reply.GetStatus())
	}
	return fmt.Errorf("ipamd on %s: %w\n%s", n.Name, err, lastLines(n.IPAMDLog(), 15))
}

// daemon is the ipamd that was started last; nil if there was none.
func (n *Node) daemon() *node.Daemon {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ipamd
}

// StopIPAMD asks ipamd to end (SIGTERM) and waits for it.
func (n *Node) StopIPAMD(ctx context.Context) error {
	d := n.daemon()
	if d == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	return d.Stop(ctx)
}

// KillIPAMD ends ipamd without its help (SIGKILL) and returns when it is gone.
func (n *Node) KillIPAMD() {
	if d := n.daemon(); d != nil {
		d.Kill()
	}
}

// SignalIPAMD sends ipamd a signal.
func (n *Node) SignalIPAMD(sig syscall.Signal) error {
	d := n.daemon()
	if d == nil {
		return fmt.Errorf("ipamd was never started on %s", n.Name)
	}
	return d.Signal(sig)
}

// IPAMDRunning reports whether ipamd runs.
func (n *Node) IPAMDRunning() bool {
	d := n.daemon()
	return d != nil && !ended(d)
}

// IPAMDPID is ipamd's process id as the sandbox sees it; 0 if it does not run.
func (n *Node) IPAMDPID() int {
	d := n.daemon()
	if d == nil || ended(d) {
		return 0
	}
	return d.PID()
}

// IPAMDLog is ipamd's log file and what it printed besides.
func (n *Node) IPAMDLog() string {
	log, _ := os.ReadFile(n.disk(ipamdLog))
	printed, _ := os.ReadFile(n.disk("/var/log/ipamd.log"))
	return string(printed) + string(log)
}

// PluginLog is the CNI plugin's log file.
func (n *Node) PluginLog() string {
	log, _ := os.ReadFile(n.disk(pluginLog))
	return string(log)
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
