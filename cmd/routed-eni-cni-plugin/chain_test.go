package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/nstest"

	"github.com/containernetworking/cni/libcni"
)

// passThrough stands in for a plugin that somebody else has added to the list: it keeps what those before it said.
const passThrough = `#!/bin/sh
conf=$(cat)
case $CNI_COMMAND in
ADD) printf '%s' "$conf" | sed 's/.*"prevResult":\({.*}\),"type".*/\1/' ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}' ;;
esac
`

// TestChains runs lists of plugins as a runtime does, with the released plugins behind ours: ADD, CHECK and DEL pass,
// what the others promise is there, and nothing is left. Building the plugins takes most of its time.
func TestChains(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin,
		"github.com/containernetworking/plugins/plugins/meta/portmap", "github.com/containernetworking/plugins/plugins/meta/bandwidth",
		"github.com/containernetworking/plugins/plugins/meta/tuning", "github.com/containernetworking/plugins/plugins/main/loopback",
		"github.com/containernetworking/plugins/plugins/main/ptp", "github.com/containernetworking/plugins/plugins/ipam/host-local")
	build.Dir, build.Env = "../../test/cniplugins", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	leases := t.TempDir()
	hostLocal := `{"type":"host-local","dataDir":"` + leases + `","ranges":[[{"subnet":"10.99.0.0/24"}]]}`
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "aws-cni")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "foreign.new"), []byte(passThrough), 0o755); err != nil {
		t.Fatal(err)
	}
	// Renamed, so that nothing that forks meanwhile holds it open for writing.
	if err := os.Rename(filepath.Join(bin, "foreign.new"), filepath.Join(bin, "foreign")); err != nil {
		t.Fatal(err)
	}
	t.Setenv(pluginVar, "1")
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	ours := `{"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict","pluginLogFile":"` + n.log + `",` +
		`"capabilities":{"io.kubernetes.cri.pod-annotations":true}}`
	for i, tt := range []struct {
		name, version, plugins string
		inPod, onHost          [2]string // a command, and what it must print
	}{
		{name: "stock", version: "0.4.0", plugins: ours + `,{"type":"portmap","capabilities":{"portMappings":true},"snat":true}`,
			onHost: [2]string{"nft list ruleset; iptables-save 2>/dev/null || true", "8080"}},
		{name: "all", version: "1.0.0", plugins: ours + `,{"type":"portmap","capabilities":{"portMappings":true},"snat":true},` +
			`{"type":"bandwidth","capabilities":{"bandwidth":true}},{"type":"tuning","sysctl":{"net.core.somaxconn":"500"},"mtu":1400}`,
			inPod: [2]string{"cat /proc/sys/net/core/somaxconn; ip link show eth0", "mtu 1400"}, onHost: [2]string{"tc qdisc || ip link", "tbf"}},
		{name: "foreign entries", version: "1.1.0", plugins: ours + `,{"type":"foreign","kubernetes":{"exclude_namespaces":["istio-system"]},"log_level":"info"}`},
		{name: "minimal", version: "0.3.1", plugins: `{"name":"aws-cni","type":"aws-cni"},{"type":"foreign","enable-debug":false}`},
		// Whose addresses are given by host-local is somebody else's interface, not this one's.
		{name: "ipam is not ours", version: "1.0.0", plugins: `{"type":"aws-cni","ipam":` + hostLocal + `}`,
			inPod: [2]string{"ip -br addr show dev eth0", "10.0.0."}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list, err := libcni.ConfListFromBytes([]byte(fmt.Sprintf(`{"cniVersion":%q,"name":"aws-cni","plugins":[%s]}`, tt.version, tt.plugins)))
			if err != nil {
				t.Fatal(err)
			}
			netns := nstest.New(t)
			before := n.host.Run("sh", "-c", "ip -br link | cut -d' ' -f1 | sort; ip rule; ip route show table all type unicast")
			config := libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
			pod := &libcni.RuntimeConf{
				ContainerID: fmt.Sprintf("c%d", i), NetNS: netns.Path(), IfName: "eth0",
				Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", fmt.Sprintf("web-%d", i)}},
				CapabilityArgs: map[string]any{
					"portMappings":                      []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
					"bandwidth":                         map[string]any{"ingressRate": 1000000, "ingressBurst": 1000000},
					"io.kubernetes.cri.pod-annotations": map[string]string{"secret": "hunter2"},
				},
			}
			cni := func(what string, f func(context.Context) error) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := n.host.Do(func() error { return f(ctx) }); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
			lo, err := libcni.ConfListFromBytes([]byte(`{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}`))
			if err != nil {
				t.Fatal(err)
			}
			loopback := *pod
			loopback.IfName = "lo"
			// A second network of the pod, as Multus adds one, with addresses of the node's own.
			second, err := libcni.ConfListFromBytes([]byte(`{"cniVersion":"1.0.0","name":"second","plugins":[{"type":"ptp","ipam":` + hostLocal + `}]}`))
			if err != nil {
				t.Fatal(err)
			}
			net1 := *pod
			net1.IfName, net1.CapabilityArgs = "net1", nil
			cni("ADD of loopback", func(ctx context.Context) error { _, err := config.AddNetworkList(ctx, lo, &loopback); return err })
			for range 2 { // a repeated ADD is the runtime's right
				cni("ADD", func(ctx context.Context) error { _, err := config.AddNetworkList(ctx, list, pod); return err })
				if tt.name == "all" || tt.name == "stock" {
					break // but not that of every plugin
				}
			}
			cni("ADD of a second network", func(ctx context.Context) error { _, err := config.AddNetworkList(ctx, second, &net1); return err })
			if got := netns.Run("sh", "-c", "ip -br addr show net1; ip route show default"); !strings.Contains(got, "10.99.0.") || !strings.Contains(got, "default via 169.254.1.1 dev eth0") {
				t.Errorf("beside a second network: %s", got)
			}
			if got := netns.Run("sh", "-c", "ip link show eth0; "+tt.inPod[0]); !strings.Contains(got, tt.inPod[1]) {
				t.Errorf("in the pod: %s, want %q", got, tt.inPod[1])
			}
			if got := n.host.Run("sh", "-c", "true; "+tt.onHost[0]); !strings.Contains(got, tt.onHost[1]) {
				t.Errorf("on the host: %s, want %q", got, tt.onHost[1])
			}
			if tt.version >= "0.4.0" {
				cni("CHECK", func(ctx context.Context) error { return config.CheckNetworkList(ctx, list, pod) })
			}
			cni("DEL of the second network", func(ctx context.Context) error { return config.DelNetworkList(ctx, second, &net1) })
			if leases, _ := filepath.Glob(leases + "/*/10.99.0.*"); len(leases) > 0 {
				t.Errorf("host-local still holds %q", leases)
			}
			for range 2 {
				cni("DEL", func(ctx context.Context) error { return config.DelNetworkList(ctx, list, pod) })
			}
			cni("DEL of loopback", func(ctx context.Context) error { return config.DelNetworkList(ctx, lo, &loopback) })
			// The veth goes with the namespace.
			netns.Run("ip", "link", "del", "eth0")
			after := n.host.Run("sh", "-c", "ip -br link | cut -d' ' -f1 | sort; ip rule; ip route show table all type unicast")
			if before != after || n.ipamd.Held() != 0 {
				t.Errorf("left behind: %d addresses; before\n%s\nafter\n%s", n.ipamd.Held(), before, after)
			}
		})
	}
	n.checkLog(20)
}
