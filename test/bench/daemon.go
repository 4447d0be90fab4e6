package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"vpccni/lab/cluster"
	"vpccni/pkg/networkutils/names"
	"vpccni/rpc"
	"vpccni/test/bench/stats"
)

// Pods that ipamd serves when it is measured. 700 fit on a daemonType without prefixes.
var daemonLevels = []int{0, 250, 700}

const (
	daemonType = "m5.24xlarge"
	// ec2RoundTrip is what each EC2 call of the measured ipamd takes at least.
	ec2RoundTrip = 50 * time.Millisecond
	// atOnce is how many pods are started together.
	atOnce = 8
)

// daemonRow is what ipamd costs at one level.
type daemonRow struct {
	Pods int `json:"pods"`
	// Resident memory in MB (10⁶ bytes), after the idle time: all, of its own, and of its program file.
	RSS     float64 `json:"rssMB"`
	RSSAnon float64 `json:"rssAnonMB"`
	RSSFile float64 `json:"rssFileMB"`
	// RSSPeak is the most it ever was, mostly while the pods started.
	RSSPeak float64 `json:"rssPeakMB"`
	// IdleCPU is in thousandths of a CPU, over IdleSeconds without a request.
	IdleCPU     float64 `json:"idleMilliCPU"`
	IdleSeconds float64 `json:"idleSeconds"`
	// Start is from the start of the process to the answer of the first ADD, in milliseconds.
	Start stats.Figure `json:"startMilliseconds"`
	// Journal tells whether the starts found the last run's state. Without it, EC2 is asked before anything is served.
	Journal bool `json:"journal"`
}

// measureDaemon measures the ipamd binary on a node of the lab.
func measureDaemon(ctx context.Context, o options) ([]daemonRow, error) {
	var rows []daemonRow
	for _, pods := range daemonLevels {
		progress("ipamd: a node with %d pods", pods)
		row, err := daemonAt(ctx, o, pods)
		if err != nil {
			return nil, fmt.Errorf("ipamd with %d pods: %w", pods, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func daemonAt(ctx context.Context, o options, pods int) (row daemonRow, err error) {
	row = daemonRow{Pods: pods, Journal: pods > 0}
	var starts []float64
	if pods == 0 {
		// The first start of an instance's life, each time on another one.
		for range o.effort().starts {
			l, err := daemonLab(ctx, o, true)
			if err != nil {
				return row, err
			}
			ms, err := firstAddress(ctx, l.Nodes()[0])
			if err = errors.Join(err, l.Close()); err != nil {
				return row, err
			}
			starts = append(starts, ms)
		}
	}
	l, err := daemonLab(ctx, o, false)
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	n := l.Nodes()[0]
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range pods {
		group.Go(func() error {
			_, err := l.PodAdd(groupCtx, n.Name, podNamespace, fmt.Sprintf("pod-%d", i))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return row, err
	}
	if err := row.idle(ctx, o, n); err != nil {
		return row, err
	}
	if pods > 0 {
		for range o.effort().starts {
			n.KillIPAMD()
			ms, err := firstAddress(ctx, n)
			if err != nil {
				return row, err
			}
			starts = append(starts, ms)
		}
	}
	row.Start = stats.Over(starts)
	return row, nil
}

// daemonLab is a lab with one node, and no ipamd on it if it is to be bare.
func daemonLab(ctx context.Context, o options, bare bool) (*cluster.Cluster, error) {
	return cluster.New(ctx, cluster.Spec{
		Subnets:    []cluster.Subnet{{Name: "subnet-a", CIDR: netip.MustParsePrefix("10.0.0.0/20"), Zone: "us-west-2a"}},
		Nodes:      []cluster.NodeSpec{{Name: "n1", Type: daemonType}},
		APILatency: ec2RoundTrip, AttachDelay: time.Second, DetachDelay: time.Second,
		BinDir: filepath.Dir(o.ipamd), NoIPAMD: bare,
	}, cluster.Hooks{})
}

// idle measures what ipamd takes when nobody wants anything.
func (r *daemonRow) idle(ctx context.Context, o options, n *cluster.Node) error {
	// The pool has come to rest when ipamd has used next to no CPU for a while.
	pid := n.IPAMDPID()
	pause := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	if err := pause(o.effort().settle); err != nil {
		return err
	}
	before, err := cpuTime(pid)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(o.effort().idle); err != nil {
		return err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return err
	}
	took := time.Since(began)
	r.IdleSeconds = took.Seconds()
	r.IdleCPU = 1000 * (after - before).Seconds() / took.Seconds()
	memory, err := residentMemory(pid)
	r.RSS, r.RSSAnon, r.RSSFile, r.RSSPeak = memory["VmRSS"], memory["RssAnon"], memory["RssFile"], memory["VmHWM"]
	return err
}

// cpuTime is what a process has used so far: fields 14 and 15 of its stat, in ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, text, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(text)
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat of process %d: %q", pid, stat)
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// residentMemory reads the sizes in a process's status, in MB.
func residentMemory(pid int) (map[string]float64, error) {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	out := map[string]float64{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		name, text, _ := strings.Cut(lines.Text(), ":")
		if kib, ok := strings.CutSuffix(strings.TrimSpace(text), " kB"); ok {
			n, err := strconv.ParseFloat(kib, 64)
			if err != nil {
				return nil, err
			}
			out[name] = n * 1024 / 1e6
		}
	}
	return out, lines.Err()
}

// firstAddress starts ipamd and asks it for an address all the while. It returns the milliseconds from before the start
// of the process to the answer, and gives the address back.
func firstAddress(ctx context.Context, n *cluster.Node) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///ipamd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return n.OS().DialContext(ctx, "unix", names.IPAMDSocket)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1, MaxDelay: 2 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	began := time.Now()
	started := make(chan error, 1)
	go func() { started <- n.StartIPAMD(ctx) }()
	client := rpc.NewCNIBackendClient(conn)
	const id = "first"
	reply, err := client.AddNetwork(ctx, &rpc.AddNetworkRequest{
		K8S_POD_NAME: id, K8S_POD_NAMESPACE: podNamespace, ContainerID: id, IfName: "eth0", NetworkName: names.NetworkName,
	}, grpc.WaitForReady(true))
	took := milliseconds(time.Since(began))
	if err == nil && !reply.GetSuccess() {
		err = fmt.Errorf("ADD: %s %s", reply.GetCode(), reply.GetReason())
	}
	if err := errors.Join(err, <-started); err != nil {
		return 0, err
	}
	_, err = client.DelNetwork(ctx, &rpc.DelNetworkRequest{
		K8S_POD_NAME: id, K8S_POD_NAMESPACE: podNamespace, ContainerID: id, IfName: "eth0", NetworkName: names.NetworkName,
	})
	return took, err
}
