package slice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"vpccni/lab/cluster"
	"vpccni/pkg/networkutils/names"
)

// criRuntime executes the plugin on a node as containerd does, but for what befalls it meanwhile.
type criRuntime struct {
	node *cluster.Node
	conf map[string]any // the plugin's, of the node's conflist
}

// box is a pod's sandbox.
type box struct {
	id, pod string
	netns   string   // a path on the node; empty once there is none
	ns      *os.File // its namespace, nil with it
	result  json.RawMessage
	address netip.Addr
}

// fate is what befalls a plugin that was started.
type fate struct {
	kind  fateKind
	after time.Duration // from its start
	// left is how long a stopped one stays so.
	left time.Duration
}

type fateKind string

const (
	spared    fateKind = ""
	killed    fateKind = "killed"    // SIGKILL
	abandoned fateKind = "abandoned" // SIGSTOP, and at the runtime's deadline SIGKILL
	delayed   fateKind = "delayed"   // SIGSTOP, and later SIGCONT
)

func newRuntime(n *cluster.Node) (*criRuntime, error) {
	r := &criRuntime{node: n}
	var list struct {
		CNIVersion string
		Name       string
		Plugins    []map[string]any
	}
	err := n.OS().Do(func() error {
		text, err := os.ReadFile(names.ConflistFile)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &list)
	})
	if err != nil {
		return nil, err
	}
	r.conf = list.Plugins[0]
	r.conf["name"], r.conf["cniVersion"] = list.Name, list.CNIVersion
	return r, nil
}

// create makes the network namespace of a new sandbox.
func (r *criRuntime) create(pod, id string) (*box, error) {
	b := &box{id: id, pod: pod, netns: "/run/netns/cni-" + id}
	var err error
	b.ns, err = r.node.OS().NewNetNS(b.netns)
	return b, err
}

// destroy takes the namespace away.
func (r *criRuntime) destroy(b *box) error {
	if b.ns == nil {
		return nil
	}
	err := errors.Join(b.ns.Close(), r.node.OS().RemoveNetNS(b.netns))
	b.ns, b.netns = nil, ""
	return err
}

// add runs ADD. Whatever fails is for the caller to delete.
func (r *criRuntime) add(ctx context.Context, b *box, f fate) error {
	out, err := r.run(ctx, "ADD", b, f)
	if err != nil {
		return err
	}
	result, err := types100.NewResult(out)
	if err != nil {
		// The stock conflist's version is an older one.
		var old struct{ IPs []struct{ Address string } }
		if err := json.Unmarshal(out, &old); err != nil || len(old.IPs) == 0 {
			return fmt.Errorf("result of ADD: %s: %w", out, err)
		}
		p, err := netip.ParsePrefix(old.IPs[0].Address)
		if err != nil {
			return err
		}
		b.result, b.address = out, p.Addr()
		return nil
	}
	b.result = out
	b.address, _ = netip.AddrFromSlice(result.(*types100.Result).IPs[0].Address.IP)
	b.address = b.address.Unmap()
	return nil
}

func (r *criRuntime) del(ctx context.Context, b *box, f fate) error {
	_, err := r.run(ctx, "DEL", b, f)
	return err
}

// run executes one verb and returns what it printed.
func (r *criRuntime) run(ctx context.Context, verb string, b *box, f fate) ([]byte, error) {
	conf := map[string]any{}
	for k, v := range r.conf {
		conf[k] = v
	}
	if b.result != nil && verb != "ADD" {
		conf["prevResult"] = b.result
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := r.node.OS().Command(ctx, "/opt/cni/bin/aws-cni")
	cmd.Env = append(cmd.Env, "CNI_COMMAND="+verb, "CNI_CONTAINERID="+b.id, "CNI_NETNS="+b.netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+namespace+";K8S_POD_NAME="+b.pod+";K8S_POD_INFRA_CONTAINER_ID="+b.id+";K8S_POD_UID="+b.id)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	befallen := make(chan struct{})
	go func() {
		defer close(befallen)
		f.befall(cmd.Process, ended)
	}()
	err = cmd.Wait()
	close(ended)
	<-befallen
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s %.12s (%s): %w %s%s", verb, b.id, b.pod, err, strings.Join(strings.Fields(stdout.String()), " "), &stderr)
	}
	return stdout.Bytes(), err
}

// befall lets the fate take its course until the process has ended.
func (f fate) befall(p *os.Process, ended <-chan struct{}) {
	wait := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ended:
		}
	}
	if f.kind == spared {
		return
	}
	wait(f.after)
	// To a process that has ended a signal is no error that matters.
	switch f.kind {
	case killed:
		_ = p.Kill()
	case abandoned:
		_ = p.Signal(unix.SIGSTOP)
		wait(f.left)
		_ = p.Kill()
	case delayed:
		_ = p.Signal(unix.SIGSTOP)
		wait(f.left)
		_ = p.Signal(unix.SIGCONT)
	}
}
