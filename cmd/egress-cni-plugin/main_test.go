package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/hostnet"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
	"vpccni/pkg/networkutils/podnet"
)

// pluginVar makes the test binary be the plugin: what runs is the real main, in a process of its own, as a runtime would
// start it. timeoutVar is a shorter time limit than the plugin's own, with half of it as grace.
const (
	pluginVar  = "VPCCNI_TEST_BE_THE_PLUGIN"
	timeoutVar = "VPCCNI_TEST_TIMEOUT"
)

func TestMain(m *testing.M) {
	if os.Getenv(pluginVar) != "" {
		if timeout, err := time.ParseDuration(os.Getenv(timeoutVar)); err == nil {
			run(timeout, timeout/2)
		} else {
			main()
		}
		return
	}
	nstest.Main(m)
}

// direction is one of the two ways out.
type direction struct {
	name, subnet, first, ifName string
	nodeIP, outside             netip.Addr
	flag                        string // of ip
}

var (
	v6 = direction{"v6", "fd00::ac:00/118", "fd00::ac:2", "v6if0", netip.MustParseAddr("2001:db8:1::10"), netip.MustParseAddr("2001:db8:9::9"), "-6"}
	v4 = direction{"v4", "169.254.172.0/22", "169.254.172.2", "v4if0", netip.MustParseAddr("10.0.1.10"), netip.MustParseAddr("198.51.100.9"), "-4"}
)

// node is a host with the plugin, ipamd's rules and a link to the outside.
type node struct {
	*testing.T
	direction
	host, out *nstest.NS
	net       *hostnet.Host
	data, log string
	enabled   string
	wrapper   []string // a command that runs the plugin; without it the plugin is run as it is
}

var outMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

func newNode(t *testing.T, d direction) *node {
	t.Helper()
	n := &node{T: t, direction: d, host: nstest.New(t), out: nstest.New(t), enabled: "true"}
	dir := t.TempDir()
	n.data, n.log = filepath.Join(dir, "ipam"), filepath.Join(dir, "log")
	n.host.Run("sh", "-e", "-c", `
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo 0 >/proc/sys/net/ipv4/ip_forward
ip link add eth0 address `+outMAC.String()+` type veth peer vpc netns `+n.out.Path()+`
ip address add 10.0.1.10/24 dev eth0; ip address add 2001:db8:1::10/64 dev eth0 nodad; ip link set eth0 up
ip route add default via 10.0.1.1; ip -6 route add default via 2001:db8:1::1`)
	n.out.Run("sh", "-e", "-c", `
ip address add 10.0.1.1/24 dev vpc; ip address add 2001:db8:1::1/64 dev vpc nodad
ip address add 198.51.100.9/32 dev vpc; ip address add 2001:db8:9::9/128 dev vpc nodad; ip link set vpc up`)
	var err error
	n.net, err = hostnet.New(hostnet.Options{NetNS: n.host.FD(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.net.Close)
	return n
}

// rules has ipamd's part done.
func (n *node) rules(on bool) {
	n.Helper()
	cfg := hostnet.Config{
		ENIs: []hostnet.ENI{{ID: "eni-0", MAC: outMAC, Primary: true,
			Address: netip.MustParseAddr("10.0.1.10"), SubnetCIDR: netip.MustParsePrefix("10.0.1.0/24"),
			Address6: netip.MustParseAddr("2001:db8:1::10"), SubnetCIDR6: netip.MustParsePrefix("2001:db8:1::/64")}},
		VPCCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, NodePort: true,
		PrimaryMark: names.DefaultPrimaryMark, ENIMask: names.DefaultENIMask, VethPrefix: "eni",
		IPv4: n.direction == v6, IPv6: n.direction == v4,
	}
	if on {
		cfg.Egress = []hostnet.Egress{{Range: netip.MustParsePrefix(n.subnet), To: n.nodeIP}}
	}
	report, err := n.net.Apply(n.Context(), cfg)
	if err != nil || len(report.NotReady) > 0 {
		n.Fatalf("%v %v", err, report.NotReady)
	}
}

// sandbox is a pod with the interface that aws-cni has made for it.
type sandbox struct {
	id, netns string
	ns        *nstest.NS
	prev      string
	conf      map[string]any // overrides
}

func (n *node) sandbox(id string, address string) sandbox {
	n.Helper()
	s := sandbox{id: id, ns: nstest.New(n.T)}
	s.netns = s.ns.Path()
	pod := podnet.Pod{Netns: s.netns, ContainerID: id, Interfaces: []podnet.Interface{{
		Name: "eth0", HostVeth: names.HostVeth("eni", "default", id, 0), Address: netip.MustParsePrefix(address), MTU: 9001, SourceCheck: true,
	}}}
	if err := n.host.Do(func() error { _, err := podnet.Setup(n.Context(), pod); return err }); err != nil {
		n.Fatal(err)
	}
	s.prev = fmt.Sprintf(`{"cniVersion":"1.0.0","interfaces":[{"name":%q},{"name":"eth0","mac":"254","sandbox":%q}],`+
		`"ips":[{"interface":1,"address":%q}],"dns":{}}`, pod.Interfaces[0].HostVeth, s.netns, address)
	return s
}

func (n *node) pod(id string) sandbox {
	n.Helper()
	if n.direction == v6 {
		return n.sandbox(id, "10.0.1.11/32")
	}
	return n.sandbox(id, "2001:db8:1::11/128")
}

func (n *node) stdin(s sandbox) string {
	conf := map[string]any{
		"cniVersion": "1.0.0", "name": "aws-cni", "type": "egress-cni", "mtu": "9001", "enabled": n.enabled, "randomizeSNAT": "prng",
		"nodeIP": n.nodeIP.String(), "pluginLogFile": n.log, "pluginLogLevel": "DEBUG",
		"ipam": map[string]any{"type": "host-local", "ranges": [][]map[string]string{{{"subnet": n.subnet}}},
			"routes": []map[string]string{{"dst": "::/0"}}, "dataDir": n.data},
	}
	if s.prev != "" {
		conf["prevResult"] = json.RawMessage(s.prev)
	}
	for key, value := range s.conf {
		if conf[key] = value; value == nil {
			delete(conf, key)
		}
	}
	text, err := json.Marshal(conf)
	if err != nil {
		n.Fatal(err)
	}
	return string(text)
}

func (n *node) command(command string, s sandbox) *exec.Cmd {
	cmd := exec.CommandContext(n.Context(), "/proc/self/exe")
	if len(n.wrapper) > 0 {
		cmd = exec.CommandContext(n.Context(), n.wrapper[0], n.wrapper[1:]...)
	}
	cmd.Env = []string{pluginVar + "=1", "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.netns, "CNI_IFNAME=eth0",
		"CNI_PATH=/opt/cni/bin", "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=" + s.id,
		"GORACE=atexit_sleep_ms=0", // a race build would sleep a second in each of the executions
	}
	cmd.Stdin = strings.NewReader(n.stdin(s))
	return cmd
}

func (n *node) run(command string, s sandbox) (string, bool) {
	n.Helper()
	var stdout, stderr bytes.Buffer
	var failed *exec.ExitError
	cmd := n.command(command, s)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := n.host.Do(cmd.Run); err != nil && !errors.As(err, &failed) {
		n.Error(err)
	}
	if stderr.Len() > 0 {
		n.Logf("%s wrote to stderr: %s", command, &stderr)
	}
	return stdout.String(), failed == nil
}

func (n *node) mustRun(command string, s sandbox) string {
	n.Helper()
	out, ok := n.run(command, s)
	if !ok {
		n.Fatalf("%s fails: %s", command, out)
	}
	return out
}

// mustFail returns the CNI error that the command ends in.
func (n *node) mustFail(command string, s sandbox) (code int, message string) {
	n.Helper()
	out, ok := n.run(command, s)
	var e struct {
		Code         int
		Msg, Details string
	}
	if err := json.Unmarshal([]byte(out), &e); err != nil || ok || e.Code == 0 {
		n.Fatalf("%s exits with %t and prints no CNI error: %s", command, ok, out)
	}
	return e.Code, e.Msg + e.Details
}

// held are the addresses in use, by the files that say so.
func (n *node) held() []string {
	n.Helper()
	entries, err := os.ReadDir(filepath.Join(n.data, "aws-cni"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			list = append(list, e.Name())
		}
	}
	return list
}

// left is what egress pods have on the host.
func (n *node) left() string {
	return n.host.Run("sh", "-c", "ip -o link | grep -o 'veth-[0-9a-f]*' || true; ip -4 route | grep -e 'veth-' || true; ip -6 route | grep 'veth-' | grep -v fe80 || true")
}
