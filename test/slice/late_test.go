package slice

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/plugin"
	"vpccni/lab/node"
	"vpccni/pkg/networkutils/names"
)

// TestPluginStoppedPastItsDeadlineChaos: a plugin is stopped (SIGSTOP) before ipamd's answer comes. Its pod is deleted,
// and another pod gets its address. When it goes on after its 90 s it does not touch the host. It waits that long, so it
// runs with CHAOS=1 only; the plugin's own tests have the same with a shorter limit, at many points of an ADD.
func TestPluginStoppedPastItsDeadlineChaos(t *testing.T) {
	t.Parallel()
	if os.Getenv("CHAOS") == "" {
		t.Skip("takes as long as a plugin has: CHAOS=1 runs it; see TestStoppedPluginWritesNothing in cmd/routed-eni-cni-plugin")
	}
	t.Parallel()
	// Five addresses, of which four are taken.
	l := lab(t, one(100*time.Millisecond, map[string]string{"MAX_ENI": "1", "IP_COOLDOWN_PERIOD": "1"}))
	n := l.Nodes()[0]
	for i := range 4 {
		if _, err := l.PodAdd(t.Context(), "n1", namespace, podName(i)); err != nil {
			t.Fatal(err)
		}
	}
	const late, netns = "late", "/run/netns/late"
	ns, err := n.OS().NewNetNS(netns)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	var out bytes.Buffer
	command := func(verb string) *node.Cmd {
		cmd := n.OS().Command(context.WithoutCancel(t.Context()), "/opt/cni/bin/aws-cni")
		cmd.Env = append(cmd.Env, "CNI_COMMAND="+verb, "CNI_CONTAINERID="+late, "CNI_NETNS="+netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
			"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+namespace+";K8S_POD_NAME="+late+";K8S_POD_INFRA_CONTAINER_ID="+late)
		cmd.Stdin = strings.NewReader(`{"cniVersion": "0.4.0", "name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001",
			"pluginLogFile": "/var/log/aws-routed-eni/plugin.log"}`)
		cmd.Stdout, cmd.Stderr = &out, &out
		return cmd
	}

	if err := n.SignalIPAMD(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	add := command("ADD")
	if err := add.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(plugin.Timeout)
	connected := fmt.Sprintf("/proc/%d/net/unix", add.Process.Pid)
	eventually(t, 30*time.Second, "the plugin has asked", func() bool {
		text, err := os.ReadFile(connected)
		return err == nil && strings.Count(string(text), names.IPAMDSocket) > 1
	})
	if err := add.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the plugin is stopped", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", add.Process.Pid))
		return err == nil && strings.Contains(string(stat), ") T ")
	})
	if err := n.SignalIPAMD(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the address is the stopped plugin's", func() bool { return allocations(t, n)[late].IsValid() })
	address := allocations(t, n)[late]

	// What a runtime does whose patience has ended.
	if err := command("DEL").Run(); err != nil {
		t.Fatalf("DEL: %v %s", err, &out)
	}
	other, err := l.PodAdd(t.Context(), "n1", namespace, "other")
	if err != nil {
		t.Fatal(err)
	}
	if other.Address != address {
		t.Errorf("the other pod has %s, not %s", other.Address, address)
	}
	state := func() string {
		text, err := n.OS().Command(t.Context(), "sh", "-e", "-c", "ip -o link | cut -d@ -f1; ip rule; ip -4 route show table all").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return string(text)
	}
	before := state()
	<-time.After(time.Until(deadline))
	out.Reset()
	if err := add.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := add.Wait(); err == nil {
		t.Errorf("the late ADD succeeded: %s", &out)
	} else {
		t.Logf("the late ADD ended with %v: %s", err, &out)
	}
	if after := state(); after != before {
		t.Errorf("written after the deadline: before\n%s\nafter\n%s", before, after)
	}
	if veth := names.HostVeth("eni", namespace, late, 0); strings.Contains(before, veth) {
		t.Errorf("%s is there although its plugin was stopped before ipamd's answer", veth)
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
}
