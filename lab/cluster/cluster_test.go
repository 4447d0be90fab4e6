package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vpccni/lab/fabric"
	"vpccni/lab/program"
	"vpccni/lab/sandbox"
)

func TestMain(m *testing.M) { sandbox.TestMain(m) }

// scriptPlugin gives every pod an address of 10.0.9.0/24 by its number in the name, and notes what it was asked.
const scriptPlugin = `#!/bin/sh
cat > /dev/null
echo "$CNI_COMMAND $CNI_ARGS $CNI_NETNS $CNI_IFNAME" >> /var/log/script.log
[ -e /run/broken ] && { echo '{"cniVersion":"0.4.0","code":11,"msg":"broken on purpose"}'; exit 1; }
case $CNI_COMMAND in
ADD)
	n=${CNI_ARGS##*K8S_POD_NAME=pod}; n=${n%%;*}
	nsenter --net=$CNI_NETNS ip link add $CNI_IFNAME type veth peer name x0 || exit 1
	echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.9.'$n'/32"}]}';;
DEL) rm -f /run/deleted; echo $CNI_CONTAINERID >> /run/deleted;;
esac
`

func bare(t *testing.T, nodes int) *Cluster {
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c, err := New(t.Context(), Spec{Name: "test", NoIPAMD: true, Nodes: make([]NodeSpec, nodes)}, Hooks{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func run(t *testing.T, n *Node, script string) string {
	t.Helper()
	out, err := n.OS().Command(t.Context(), "sh", "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s on %s: %v\n%s", script, n.Name, err, out)
	}
	return strings.TrimSpace(string(out))
}

func token(t *testing.T, n *Node) http.Header {
	t.Helper()
	got := fetch(t, n, http.MethodPut, "http://169.254.169.254/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}}, "")
	return http.Header{"X-Aws-Ec2-Metadata-Token": {got}}
}

// fetch makes a request from a node that trusts the lab's authority.
func fetch(t *testing.T, n *Node, method, url string, header http.Header, body string) string {
	t.Helper()
	ca, err := os.ReadFile(n.cluster.CAPath())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{DialContext: n.OS().DialContext, TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	}
	req.Header = header
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestBareNodesReachTheCloud(t *testing.T) {
	c := bare(t, 2)
	a, b := c.Nodes()[0], c.Nodes()[1]
	if got := run(t, a, "hostname"); got != "ip-10-0-1-10" || a.Address != netip.MustParseAddr("10.0.1.10") {
		t.Errorf("host name %s, address %s", got, a.Address)
	}
	for _, n := range c.Nodes() {
		if got := fetch(t, n, http.MethodGet, "http://169.254.169.254/latest/meta-data/instance-id", token(t, n), ""); got != n.InstanceID {
			t.Errorf("IMDS tells %s that it is %q, not %s", n.Name, got, n.InstanceID)
		}
	}
	for _, url := range []string{Endpoint, EndpointTLS} {
		if got := fetch(t, a, http.MethodPost, url, nil, "Action=DescribeVpcs&Version=2016-11-15"); !strings.Contains(got, "<Code>") {
			t.Errorf("unsigned request to %s: %s", url, got)
		}
	}
	// Refused by the other node, which is an answer; nobody listens there.
	if _, err := a.OS().DialContext(t.Context(), "tcp", b.Address.String()+":1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("node to node: %v", err)
	}
	drops, err := c.Fabric().Drops()
	if err != nil || len(drops) != 0 {
		t.Errorf("drops %v, %v", drops, err)
	}
	if len(c.IMDS().Requests()) < 4 || len(c.Cloud().Requests()) < 2 {
		t.Errorf("%d requests to IMDS, %d to EC2", len(c.IMDS().Requests()), len(c.Cloud().Requests()))
	}
	l, err := c.ListenOn(t.Context(), fabric.HostInternet, "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

func withScript(t *testing.T) *Cluster {
	t.Helper()
	c := bare(t, 1)
	n := c.Nodes()[0]
	conf := `{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[{"type":"script","capabilities":{"io.kubernetes.cri.pod-annotations":true}}]}`
	for path, text := range map[string]string{cniBin + "/script": scriptPlugin, cniConf + "/10-script.conflist": conf} {
		if err := program.Write(n.disk(path), strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func TestPodsInParallel(t *testing.T) {
	c := withScript(t)
	n := c.Nodes()[0]
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			name := fmt.Sprintf("pod%d", i+1)
			p, err := c.PodAdd(t.Context(), "n1", "default", name)
			if err != nil {
				t.Error(err)
				return
			}
			if want := fmt.Sprintf("10.0.9.%d", i+1); p.Address.String() != want {
				t.Errorf("address %s, want %s", p.Address, want)
			}
			cmd, err := c.PodCommand(t.Context(), "n1", "default", name, "ls", "/sys/class/net")
			if err != nil {
				t.Error(err)
				return
			}
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != "eth0\nlo\nx0\n" {
				t.Errorf("interfaces of the pod: %q, %v", out, err)
			}
			if err := c.PodDo("n1", "default", name, func() error {
				_, err := os.Stat(p.NetNS)
				return err
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	pods := c.Pods("")
	if len(pods) != 12 || pods[0].Name != "pod1" || len(c.Pods("n2")) != 0 {
		t.Errorf("pods: %v", pods)
	}
	if _, err := c.PodAdd(t.Context(), "n1", "default", "pod1"); err == nil {
		t.Error("the same pod twice")
	}
	log := run(t, n, "head -n1 /var/log/script.log")
	for _, want := range []string{"ADD IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod", ";K8S_POD_INFRA_CONTAINER_ID=", ";K8S_POD_UID=", " /run/netns/cni-", " eth0"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in %q", want, log)
		}
	}
	if got := run(t, n, "ls /var/lib/cni/results | wc -l"); got != "12" {
		t.Errorf("%s cached results", got)
	}
	for _, p := range pods {
		wg.Go(func() {
			if err := c.PodDel(t.Context(), p.Node, p.Namespace, p.Name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := run(t, n, "ls -A /run/netns /var/lib/cni/results"); got != "/run/netns:\n\n/var/lib/cni/results:" {
		t.Errorf("left: %s", got)
	}
	if err := c.PodDel(t.Context(), "n1", "default", "pod1"); err != nil {
		t.Errorf("deleting what is gone: %v", err)
	}
}

func TestBrokenPodsAreCollected(t *testing.T) {
	c := withScript(t)
	n := c.Nodes()[0]
	run(t, n, "touch /run/broken")
	_, err := c.PodAdd(t.Context(), "n1", "default", "pod7")
	if err == nil || !strings.Contains(err.Error(), "broken on purpose") {
		t.Errorf("error %v", err)
	}
	if len(c.Broken()) != 1 || len(c.Pods("")) != 0 {
		t.Errorf("broken %v", c.Broken())
	}
	run(t, n, "rm /run/broken")
	// As kubelets do: a new sandbox, and the old one's DEL until it succeeds.
	if _, err := c.PodAdd(t.Context(), "n1", "default", "pod7"); err != nil {
		t.Error(err)
	}
	if err := c.CollectGarbage(t.Context()); err != nil || len(c.Broken()) != 0 || len(c.Pods("")) != 1 {
		t.Errorf("%v, broken %v, pods %v", err, c.Broken(), c.Pods(""))
	}
	// A power cut takes pods; their DEL comes after the boot.
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PodAdd(t.Context(), "n1", "default", "pod8"); err == nil {
		t.Error("a pod on a dead node")
	}
	if err := n.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.CollectGarbage(t.Context()); err != nil || len(c.Broken()) != 0 || len(c.Pods("")) != 0 {
		t.Errorf("%v, broken %v, pods %v", err, c.Broken(), c.Pods(""))
	}
	run(t, n, "ip -4 addr show dev eth0 | grep -q 10.0.1.10")
}

// Two clusters in one sandbox do not meet, and leave no files.
func TestClustersSideBySide(t *testing.T) {
	a, b := bare(t, 1), bare(t, 1)
	run(t, a.Nodes()[0], "echo a > /var/log/mark; grep -q CERTIFICATE "+CAFile)
	if out := run(t, b.Nodes()[0], "ls /var/log"); out != "" {
		t.Errorf("a's files on b: %s", out)
	}
	dir := a.dir
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
	run(t, b.Nodes()[0], "true")
	if err := a.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}

func TestConflist(t *testing.T) {
	t.Parallel()
	v6 := netip.MustParseAddr("2001:db8::10")
	for _, tc := range []struct {
		name string
		env  map[string]string
		node netip.Addr
		have installed
		want string // types, mtu, prefix of veths, source check; of egress-cni enabled and nodeIP
	}{
		{name: "defaults", have: installed{true, true}, want: "aws-cni egress-cni portmap 9001 eni strict false"},
		{name: "nothing else", want: "aws-cni 9001 eni strict"},
		{name: "environment", env: map[string]string{"AWS_VPC_ENI_MTU": "1500", "AWS_VPC_K8S_CNI_VETHPREFIX": "pod"}, want: "aws-cni 1500 pod strict"},
		{name: "pod mtu first", env: map[string]string{"AWS_VPC_ENI_MTU": "1500", "POD_MTU": "1400"}, want: "aws-cni 1400 eni strict"},
		{name: "source check", env: map[string]string{"POD_SOURCE_CHECK": "pod"}, want: "aws-cni 9001 eni pod"},
		{name: "egress", env: map[string]string{"ENABLE_V6_EGRESS": "true"}, node: v6, have: installed{egress: true}, want: "aws-cni egress-cni 9001 eni strict true 2001:db8::10"},
		{name: "egress without an address", env: map[string]string{"ENABLE_V6_EGRESS": "true"}, have: installed{egress: true}, want: "aws-cni egress-cni 9001 eni strict false"},
		{name: "no egress", node: v6, have: installed{egress: true}, want: "aws-cni egress-cni 9001 eni strict false"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			text, err := networkList(tc.env, tc.node, tc.have)
			if err != nil {
				t.Fatal(err)
			}
			var list struct {
				CNIVersion   string
				Name         string
				DisableCheck bool
				Plugins      []struct{ Type, MTU, VethPrefix, PodSourceCheck, Enabled, NodeIP string }
			}
			if err := json.Unmarshal(text, &list); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range list.Plugins {
				got = append(got, p.Type)
			}
			got = append(got, list.Plugins[0].MTU, list.Plugins[0].VethPrefix, list.Plugins[0].PodSourceCheck)
			for _, p := range list.Plugins {
				if p.Enabled != "" {
					got = append(got, strings.TrimSpace(p.Enabled+" "+p.NodeIP))
				}
			}
			if strings.Join(got, " ") != tc.want || list.CNIVersion != "0.4.0" || list.Name != "aws-cni" || !list.DisableCheck {
				t.Errorf("%s", text)
			}
			if strings.Contains(string(text), "__") {
				t.Errorf("placeholder left:\n%s", text)
			}
		})
	}
}

func TestSpec(t *testing.T) {
	t.Parallel()
	s, err := ParseSpec([]byte("nodes:\n- {name: a, subnet: private, type: m5.large}\n- {}\nsubnets:\n- {name: public, cidr: 10.0.1.0/24}\n- {name: private, cidr: 10.0.2.0/24, private: true}\nattachDelay: 8s\n"))
	if err == nil {
		err = s.Complete()
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.AttachDelay.Seconds() != 8 || s.Nodes[0].Address.String() != "10.0.2.10" || s.Nodes[1].Name != "n2" || s.Nodes[1].Subnet != "private" || s.Nodes[1].Address.String() != "10.0.2.11" || s.Nodes[1].Type != DefaultType {
		t.Errorf("%+v", s)
	}
	if _, err := ParseSpec([]byte(`{"knots": 3}`)); err == nil || !strings.Contains(err.Error(), "knots") {
		t.Errorf("unknown key: %v", err)
	}
	wrong := Spec{Subnets: []Subnet{{Name: "a"}}, Nodes: []NodeSpec{{Name: "x", Subnet: "b"}, {Name: "y"}, {Name: "y"}}}
	err = wrong.Complete()
	for _, want := range []string{`no subnet "b"`, "node y is there twice", "name and cidr"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if _, err := New(context.Background(), Spec{BinDir: "/nonexistent"}, Hooks{}); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("missing binaries: %v", err)
	}
}
