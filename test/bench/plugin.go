package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/names"
	"vpccni/rpc"
	"vpccni/test/bench/stats"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Pods that are on the node before the plugin is measured.
var pluginLevels = []int{10, 250, 700}

// burst is how many plugins run at once in the parallel half.
const burst = 32

// pluginNode is a node with some pods on it, and empty sandboxes for the ones to come: one for each member of a storm.
type pluginNode struct {
	pods      int
	host      namespace
	sandboxes []namespace
}

// execution is what one process cost.
type execution struct {
	wall, cpu, system float64 // milliseconds
	err               error
}

// cell collects the executions of one operation at one level: all of them, and a median for each round.
type cell struct {
	wall     []float64
	cpu      []float64
	cpuRuns  []float64
	wallRuns []float64
	rate     []float64
	failures int
}

func (c *cell) add(round []execution, took time.Duration) error {
	var wall, cpu []float64
	for _, e := range round {
		if e.err != nil {
			if c.failures++; c.failures == 1 {
				progress("failed: %v", e.err)
			}
			continue
		}
		wall, cpu = append(wall, e.wall), append(cpu, e.cpu)
	}
	if len(wall) == 0 {
		return fmt.Errorf("every execution failed, the first one with: %w", round[0].err)
	}
	c.wall, c.cpu = append(c.wall, wall...), append(c.cpu, cpu...)
	c.wallRuns = append(c.wallRuns, stats.Median(wall))
	c.cpuRuns = append(c.cpuRuns, stats.Median(cpu))
	c.rate = append(c.rate, float64(len(wall))/took.Seconds())
	return nil
}

// cells has the measurements by operation and level.
type cells map[cellKey]*cell

type cellKey struct {
	pods     int
	parallel int
	op       string
}

// The operations. The empty program is the floor of the others.
const (
	opEmpty = "empty"
	opAdd   = "ADD"
	opDel   = "DEL"
	opAdd6  = "ADD IPv6"
)

var operations = []string{opEmpty, opAdd, opDel, opAdd6}

func (c cells) at(pods, parallel int, op string) *cell {
	key := cellKey{pods, parallel, op}
	if c[key] == nil {
		c[key] = &cell{}
	}
	return c[key]
}

// measurePlugin measures the plugin binary against an ipamd that answers from memory.
func measurePlugin(ctx context.Context, o options) (*pluginReport, error) {
	ipamd, err := ipamdtest.Start(ipamdtest.Config{
		First: netip.MustParseAddr("10.1.0.1"), First6: netip.MustParseAddr("2001:db8::1"), Tables: []int{254, 2, 3}, EditFor: answer,
	})
	if err != nil {
		return nil, err
	}
	defer ipamd.Stop()
	var nodes []*pluginNode
	for _, pods := range pluginLevels {
		progress("plugin: a node with %d pods", pods)
		node, err := newPluginNode(ctx, pods)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, node)
	}
	measured, spent := cells{}, steps{}
	for round := range o.effort().rounds {
		progress("plugin: round %d of %d", round+1, o.effort().rounds)
		for _, node := range nodes {
			if err := node.measure(ctx, o, 1, o.effort().samples, measured); err != nil {
				return nil, err
			}
			if err := node.measure(ctx, o, burst, o.effort().bursts, measured); err != nil {
				return nil, err
			}
		}
		if err := nodes[0].measureSteps(ctx, o, spent); err != nil {
			return nil, err
		}
	}
	report := &pluginReport{Rows: pluginRows(measured), Steps: stepRows(spent)}
	most := nodes[len(nodes)-1]
	for run := range stormRuns {
		progress("plugin: %d ADDs, %d at once, with %d pods: run %d of %d", stormSize, burst, most.pods, run+1, stormRuns)
		storm, err := most.storm(ctx, o)
		if err != nil {
			return nil, err
		}
		report.Storms = append(report.Storms, storm)
	}
	if report.Trace, err = most.trace(ctx, o); err != nil {
		return nil, err
	}
	report.RSS, err = most.residentMemory(ctx, o)
	report.judge()
	return report, err
}

// The ends of names of pods that are answered differently, see answer.
const (
	onlyV6  = "-v6"
	refused = "-refused"
)

// answer gives a pod its one address, of the family that its name asks for, or none.
func answer(request *rpc.AddNetworkRequest, reply *rpc.AddNetworkReply) {
	m := reply.IPAllocationMetadata[0]
	switch name := request.GetK8S_POD_NAME(); {
	case strings.HasSuffix(name, onlyV6):
		m.IPv4Addr = ""
	case strings.HasSuffix(name, refused):
		reply.Success, reply.IPAllocationMetadata = false, nil
		reply.Code, reply.Reason = "AtLimit", "all addresses are held"
	default:
		m.IPv6Addr = ""
	}
}

func newPluginNode(ctx context.Context, pods int) (*pluginNode, error) {
	host, err := newNamespace()
	if err != nil {
		return nil, err
	}
	crowd, err := newNamespace()
	if err != nil {
		return nil, err
	}
	if err := host.ip("link", "add", "eth0", "type", "veth"); err != nil {
		return nil, err
	}
	if err := fill(ctx, host, crowd, addresses(netip.MustParseAddr("10.9.0.1"), pods)); err != nil {
		return nil, err
	}
	sandboxes, err := newNamespaces(stormSize)
	return &pluginNode{pods: pods, host: host, sandboxes: sandboxes}, err
}

// measure runs the operations in turn, each as many times at once as parallel says.
func (n *pluginNode) measure(ctx context.Context, o options, parallel, repeats int, measured cells) error {
	round := map[string][]execution{}
	took := map[string]time.Duration{}
	for range repeats {
		for _, op := range operations {
			if err := ctx.Err(); err != nil {
				return err
			}
			executions := make([]execution, parallel)
			var wg sync.WaitGroup
			start := time.Now()
			for i := range executions {
				wg.Go(func() { executions[i] = n.execute(o.program(op), op, n.podOf(op, i)) })
			}
			wg.Wait()
			took[op] += time.Since(start)
			round[op] = append(round[op], executions...)
		}
		if err := n.clear(); err != nil {
			return err
		}
	}
	for _, op := range operations {
		if err := measured.at(n.pods, parallel, op).add(round[op], took[op]); err != nil {
			return err
		}
	}
	return nil
}

// benchPod is a pod that is measured, in one of the node's sandboxes.
type benchPod struct {
	name    string
	sandbox namespace
}

// podOf is the i-th pod of an operation: pods of different families are in different sandboxes.
func (n *pluginNode) podOf(op string, i int) benchPod {
	if op == opAdd6 {
		return benchPod{n.podName(i) + onlyV6, n.sandboxes[burst+i]}
	}
	return benchPod{n.podName(i), n.sandboxes[i]}
}

func (o options) program(op string) []string {
	if op == opEmpty {
		return []string{o.empty}
	}
	return []string{o.plugin}
}

// execute runs a program on the node, as a runtime would the plugin.
func (n *pluginNode) execute(program []string, op string, pod benchPod) execution {
	var e execution
	cmd := n.command(program, op, pod)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	e.err = n.host.do(func() error {
		start := time.Now()
		err := cmd.Run()
		e.wall = milliseconds(time.Since(start))
		return err
	})
	if state := cmd.ProcessState; state != nil {
		e.system = milliseconds(state.SystemTime())
		e.cpu = e.system + milliseconds(state.UserTime())
	}
	if e.err != nil {
		e.err = fmt.Errorf("%s: %w: %s", op, e.err, out.Bytes())
	}
	return e
}

// command is an execution as a runtime prepares it, to be started on the node.
func (n *pluginNode) command(program []string, op string, pod benchPod) *exec.Cmd {
	verb, _, _ := strings.Cut(op, " ")
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + pod.name, "CNI_NETNS=" + pod.sandbox.path(), "CNI_IFNAME=eth0",
		"CNI_PATH=/opt/cni/bin", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + podNamespace + ";K8S_POD_NAME=" + pod.name + ";K8S_POD_INFRA_CONTAINER_ID=" + pod.name + ";K8S_POD_UID=" + pod.name,
	}
	cmd.Stdin = bytes.NewReader(stdin)
	return cmd
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// stdin is the stock network configuration, with logging as it is by default.
var stdin = func() []byte {
	conf, _ := json.Marshal(map[string]any{
		"cniVersion": "0.4.0", "name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001",
		"podSGEnforcingMode": "strict", "pluginLogFile": "/var/log/aws-routed-eni/plugin.log", "pluginLogLevel": "DEBUG",
		"capabilities": map[string]bool{"io.kubernetes.cri.pod-annotations": true},
	})
	return conf
}()

// clear takes the measured pods' interfaces away, as the end of their namespaces would, so that the number of pods
// stays what it is. One message removes them all: one by one, each waits for RCU.
func (n *pluginNode) clear() error {
	const group = 77
	return n.host.do(func() error {
		for _, name := range n.vethNames() {
			request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
			request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
			request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
			if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("mark a measured pod's interface: %w", err)
			}
		}
		request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
		if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove the measured pods' interfaces: %w", err)
		}
		return nil
	})
}

// vethNames are those that measured pods may have on the host.
func (n *pluginNode) vethNames() []string {
	var list []string
	for i := range n.sandboxes {
		list = append(list, names.HostVeth("eni", podNamespace, n.podName(i), 0))
	}
	for i := range burst {
		list = append(list, names.HostVeth("eni", podNamespace, n.podOf(opAdd6, i).name, 0))
	}
	return list
}

const podNamespace = "bench"

func (n *pluginNode) podName(i int) string { return fmt.Sprintf("pod-%d-%d", n.pods, i) }
