package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"vpccni/lab/ec2"
	"vpccni/lab/node"
	"vpccni/pkg/networkutils/names"
)

// Files of the CNI on a node.
const (
	ipamdLog  = names.LogDir + "/ipamd.log"
	pluginLog = names.LogDir + "/plugin.log"
	cniBin    = "/opt/cni/bin"
	cniConf   = "/etc/cni/net.d"
	cniCache  = "/var/lib/cni"
)

// Binaries that nodes run.
const (
	ipamdBinary   = "aws-k8s-agent"
	pluginBinary  = "aws-cni"
	portmapBinary = "portmap"
)

const (
	// healthyTimeout is how long ipamd may take until it is healthy.
	healthyTimeout = 60 * time.Second
	// stopTimeout is how long ipamd may take to end when asked to.
	stopTimeout = 10 * time.Second
)

// Node is an instance of the lab.
type Node struct {
	Name       string
	InstanceID string
	Address    netip.Addr // primary private address

	spec    NodeSpec
	cluster *Cluster
	os      *node.Node

	starting sync.Mutex // held while ipamd starts, so that it starts once; taken before mu
	mu       sync.Mutex // guards ipamd
	ipamd    *node.Daemon
}

// checkBinaries says what is missing before anything is started.
func checkBinaries(dir string) error {
	for _, name := range []string{ipamdBinary, pluginBinary} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%s is not in %s: build it (make build), name its directory (--bin-dir), or leave nodes bare (--no-ipamd)",
				name, cmp.Or(dir, "the current directory"))
		}
	}
	return nil
}

// launch has EC2 run the instance. Its interface waits for boot.
func (c *Cluster) launch(spec NodeSpec) (*Node, error) {
	i := slices.IndexFunc(c.spec.Subnets, func(s Subnet) bool { return s.Name == spec.Subnet })
	instance, err := c.vpc.cloud.RunInstance(ec2.InstanceSpec{
		Type: spec.Type, SubnetID: c.vpc.subnets[spec.Subnet], PrivateIP: spec.Address,
		PublicIP: !c.spec.Subnets[i].Private, Tags: map[string]string{"Name": spec.Name},
	})
	if err != nil {
		return nil, fmt.Errorf("run instance %s: %w", spec.Name, err)
	}
	n := &Node{Name: spec.Name, InstanceID: instance.ID, spec: spec, cluster: c}
	for _, e := range c.vpc.cloud.ENIsOf(instance.ID) {
		if e.Attachment.Device == 0 && e.Attachment.Card == 0 {
			n.Address = e.Primary
		}
	}
	return n, nil
}

// HostName is the node's host name, as EC2 gives it by default.
func (n *Node) HostName() string { return "ip-" + strings.ReplaceAll(n.Address.String(), ".", "-") }

// boot starts the node's operating system and plugs its ENIs in.
func (n *Node) boot(ctx context.Context) error {
	binds := map[string]string{shareDir: n.cluster.share()}
	if n.cluster.spec.BinDir != "" {
		binds[node.BinDir] = n.cluster.spec.BinDir
	}
	var err error
	n.os, err = node.Start(ctx, node.Options{
		Name: n.HostName(), Disk: filepath.Join(n.cluster.dir, "nodes", n.Name), RPFilter: *n.spec.RPFilter, Binds: binds,
		Hosts: n.Address.String() + " " + n.HostName() + "\n",
		Env:   n.awsEnv(),
	})
	if err != nil {
		return err
	}
	return n.plug()
}

func (n *Node) plug() error {
	netns, err := n.os.NetNS()
	if err != nil {
		return err
	}
	defer func() { _ = netns.Close() }()
	if err := n.cluster.vpc.fabric.AddNode(n.InstanceID, netns); err != nil {
		return fmt.Errorf("plug in node %s: %w", n.Name, err)
	}
	return nil
}

// awsEnv is what AWS's SDKs and CLI need on the node. The key comes from IMDS.
func (n *Node) awsEnv() []string {
	region := n.cluster.vpc.cloud.Region()
	return []string{"AWS_ENDPOINT_URL_EC2=" + Endpoint, "AWS_REGION=" + region, "AWS_DEFAULT_REGION=" + region}
}

// installCNI puts the plugins where the runtime looks for them.
func (n *Node) installCNI() error {
	for _, name := range []string{pluginBinary, portmapBinary} {
		err := copyFile(filepath.Join(n.cluster.spec.BinDir, name), n.disk(cniBin, name), 0o755)
		if err != nil && (name != portmapBinary || !errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("install %s on %s: %w", name, n.Name, err)
		}
	}
	return nil
}

// disk is where a persistent file of the node is in the sandbox.
func (n *Node) disk(path ...string) string { return filepath.Join(n.os.Disk(), filepath.Join(path...)) }

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	// A running program's file cannot be written to, but replaced.
	out, err := os.OpenFile(to+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(to+".tmp", to)
}

// IPAMDEnv is the environment that ipamd runs with, besides the node's own: as the manifest sets it, what the lab
// needs, then the spec's.
func (n *Node) IPAMDEnv() map[string]string {
	env := map[string]string{
		"ENABLE_IPv4":              "true",
		"MY_NODE_NAME":             n.HostName(),
		"CLUSTER_NAME":             n.cluster.spec.Name,
		"AWS_VPC_K8S_CNI_LOG_FILE": ipamdLog,
	}
	maps.Copy(env, n.cluster.spec.Env)
	maps.Copy(env, n.spec.Env)
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

func ended(d *node.Daemon) bool {
	select {
	case <-d.Done():
		return true
	default:
		return false
	}
}

func (n *Node) writeConflist(env map[string]string) error {
	_, err := os.Stat(n.disk(cniBin, portmapBinary))
	text, err := conflist(env, err == nil)
	if err != nil {
		return err
	}
	path := n.disk(names.ConflistFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
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

// OS is the node's operating system: for programs on the node, and functions in its namespaces.
func (n *Node) OS() *node.Node { return n.os }

// Type is the node's instance type.
func (n *Node) Type() string { return n.spec.Type }

// Subnet is the name of the node's subnet.
func (n *Node) Subnet() string { return n.spec.Subnet }

// Kill cuts the node's power: ipamd and all pods are gone at once. Its ENIs stay attached.
func (n *Node) Kill() error {
	n.cluster.vpc.fabric.RemoveNode(n.InstanceID)
	err := n.os.Kill()
	n.cluster.losePods(n)
	return err
}

// Boot starts a node whose power was cut, and ipamd on it if the lab has one.
func (n *Node) Boot(ctx context.Context) error {
	if err := n.os.Boot(ctx); err != nil {
		return err
	}
	if err := n.plug(); err != nil {
		return err
	}
	if n.cluster.spec.NoIPAMD {
		return nil
	}
	return n.StartIPAMD(ctx)
}
