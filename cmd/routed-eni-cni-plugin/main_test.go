package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
	"vpccni/pkg/version"
	"vpccni/rpc"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// pluginVar makes the test binary be the plugin: what runs is the real main, in a process of its own, as a runtime
// would start it.
const pluginVar = "VPCCNI_TEST_BE_THE_PLUGIN"

func TestMain(m *testing.M) {
	if os.Getenv(pluginVar) != "" {
		version.Version = "v1.2.3-test"
		main()
		return
	}
	nstest.Main(m)
}

// privateRun hides the machine's /run, where the plugin's sockets are; the mount namespace is the test binary's own.
var privateRun = sync.OnceValue(func() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	if dir, err := filepath.EvalSymlinks("/var/run"); err != nil || dir != "/run" {
		return unix.Mount("/run", "/var/run", "", unix.MS_BIND, "")
	}
	return nil
})

// node is a host with the plugin on it. Its tests share /run and thus do not run in parallel.
type node struct {
	*testing.T
	host  *nstest.NS
	ipamd *ipamdtest.Server
	log   string
}

func newNode(t *testing.T, conf ipamdtest.Config) *node {
	t.Helper()
	n := &node{T: t, log: filepath.Join(t.TempDir(), "log", "plugin.log")}
	if err := privateRun(); err != nil {
		t.Fatal(err)
	}
	n.host = nstest.New(t)
	n.host.Run("ip", "link", "add", "eth0", "type", "veth")
	n.startIPAMD(conf)
	return n
}

func (n *node) startIPAMD(conf ipamdtest.Config) {
	n.Helper()
	ipamd, err := ipamdtest.Start(conf)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(ipamd.Stop)
	n.ipamd = ipamd
}

// sandbox is one execution's parameters.
type sandbox struct {
	id, pod    string
	netns      string
	conf       string // overrides the stock configuration
	args       string // overrides the stock CNI_ARGS
	prevResult string
	version    string
}

func (n *node) sandbox(id, pod string) sandbox {
	return sandbox{id: id, pod: pod, netns: nstest.New(n.T).Path(), version: "0.4.0"}
}

func (n *node) stdin(s sandbox) string {
	if s.conf != "" {
		return s.conf
	}
	conf := map[string]any{
		"cniVersion": s.version, "name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001",
		"podSGEnforcingMode": "strict", "pluginLogFile": n.log, "pluginLogLevel": "DEBUG",
		"runtimeConfig": map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{"secret": "hunter2"}},
	}
	if s.prevResult != "" {
		conf["prevResult"] = json.RawMessage(s.prevResult)
	}
	text, err := json.Marshal(conf)
	if err != nil {
		n.Fatal(err)
	}
	return string(text)
}

// run executes the plugin on the host and returns what it printed and whether it exited with 0.
func (n *node) run(command string, s sandbox) (string, bool) {
	n.Helper()
	if s.args == "" {
		s.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + s.pod + ";K8S_POD_INFRA_CONTAINER_ID=" + s.id + ";K8S_POD_UID=uid-" + s.pod
	}
	var stdout, stderr bytes.Buffer
	var failed *exec.ExitError
	err := n.host.Do(func() error {
		cmd := exec.CommandContext(n.Context(), "/proc/self/exe")
		cmd.Env = []string{
			pluginVar + "=1", "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.netns, "CNI_IFNAME=eth0",
			"CNI_PATH=/opt/cni/bin", "CNI_ARGS=" + s.args,
			"GORACE=atexit_sleep_ms=0", // a race build would sleep a second in each of the executions
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(n.stdin(s)), &stdout, &stderr
		return cmd.Run()
	})
	if err != nil && !errors.As(err, &failed) {
		n.Fatal(err)
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
		Code int
		Msg  string
	}
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		n.Fatalf("%s prints no CNI error: %s", command, out)
	}
	if ok {
		n.Fatalf("%s exits with 0: %s", command, out)
	}
	return e.Code, e.Msg
}

// routes are the host's routes to pods, in every table.
func (n *node) routes() string {
	return n.host.Run("sh", "-c", "ip -4 route show table all | grep -v 'table local' || true; ip -6 route show table all | grep -v -e local -e fe80 -e multicast || true")
}

func (n *node) pods() int {
	return strings.Count(n.host.Run("ip", "-o", "link", "show", "type", "veth"), ": eni")
}

func TestAddPrintsTheResultThatOtherVersionsRead(t *testing.T) {
	n := newNode(t, ipamdtest.Config{First: netip.MustParseAddr("192.168.1.1"), Tables: []int{254, 2}})
	first := n.sandbox("c0", "other")
	n.mustRun("ADD", first)
	s := n.sandbox("c1", "sample-pod")
	out := n.mustRun("ADD", s)
	want := `{
    "cniVersion": "0.4.0",
    "interfaces": [
        {
            "name": "enicc21c2d7785"
        },
        {
            "name": "eth0",
            "mac": "2",
            "sandbox": "` + s.netns + `"
        },
        {
            "name": "dummycc21c2d7785",
            "mac": "0",
            "sandbox": "1"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 1,
            "address": "192.168.1.2/32"
        }
    ],
    "dns": {}
}`
	if strings.TrimSpace(out) != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	// The same sandbox again.
	if again := n.mustRun("ADD", s); again != out {
		t.Errorf("the repeated ADD prints\n%s", again)
	}
	if got := n.pods(); got != 2 {
		t.Errorf("%d pods on the host, want 2", got)
	}
	request := n.ipamd.Adds()[1]
	if got := fmt.Sprint(request.GetK8S_POD_NAME(), request.GetK8S_POD_NAMESPACE(), request.GetK8S_POD_INFRA_CONTAINER_ID(),
		request.GetNetns(), request.GetIfName(), request.GetNetworkName(), request.GetContainerID()); got !=
		fmt.Sprint("sample-pod", "default", "c1", s.netns, "eth0", "aws-cni", "c1") {
		t.Errorf("ipamd was asked %s", got)
	}
	if v := n.ipamd.Versions(); len(v) == 0 || v[0] != "v1.2.3-test" {
		t.Errorf("versions in the metadata: %q", v)
	}

	s.prevResult = out
	n.mustRun("CHECK", s)
	n.mustRun("DEL", s)
	n.mustRun("DEL", s)
	if routes := n.routes(); strings.Contains(routes, "192.168.1.2") {
		t.Errorf("routes after DEL:\n%s", routes)
	}
	if code, message := n.mustFail("CHECK", s); code != 999 || !strings.Contains(message, "check cmd") {
		t.Errorf("CHECK after DEL: %d %s", code, message)
	}
	if held := n.ipamd.Held(); held != 1 {
		t.Errorf("%d addresses are held, want 1", held)
	}
	if del := n.ipamd.Dels()[0]; del.GetReason() != "PodDeleted" || del.GetK8S_POD_UID() != "uid-sample-pod" {
		t.Errorf("ipamd was told %v", del)
	}
	n.checkLog(6)
}

// checkLog holds the log's bounds: JSON, nothing secret, at most 3 lines for people per execution.
func (n *node) checkLog(executions int) {
	n.Helper()
	log, err := os.ReadFile(n.log)
	if err != nil {
		n.Fatal(err)
	}
	if bytes.Contains(log, []byte("hunter2")) {
		n.Errorf("the log holds the pod's annotations:\n%s", log)
	}
	if lines := bytes.Count(log, []byte(`"level":"info"`)); lines > 3*executions {
		n.Errorf("%d INFO lines for %d executions", lines, executions)
	}
	for line := range bytes.Lines(log) {
		if !json.Valid(line) {
			n.Errorf("no JSON: %s", line)
		}
	}
}

func TestAddInEveryVersionAndFamily(t *testing.T) {
	for _, tt := range []struct{ version, first, want string }{
		{"0.3.1", "10.0.0.1", `"version": "4"`},
		{"0.4.0", "fd00:db8::1", `"version": "6"`},
		{"1.0.0", "10.0.0.1", `"address": "10.0.0.1/32"`},
		{"1.1.0", "fd00:db8::1", `"address": "fd00:db8::1/128"`},
	} {
		t.Run(tt.version, func(t *testing.T) {
			n := newNode(t, ipamdtest.Config{First: netip.MustParseAddr(tt.first)})
			s := n.sandbox("c1", "web-0")
			s.version = tt.version
			out := n.mustRun("ADD", s)
			if !strings.Contains(out, tt.want) || !strings.Contains(out, `"cniVersion": "`+tt.version+`"`) {
				t.Error(out)
			}
			s.prevResult = out
			if tt.version >= "0.4.0" {
				n.mustRun("CHECK", s)
			}
			n.mustRun("DEL", s)
			if routes := n.routes(); strings.Contains(routes, tt.first) {
				t.Errorf("routes after DEL:\n%s", routes)
			}
		})
	}
}

func TestAddsInParallel(t *testing.T) {
	n := newNode(t, ipamdtest.Config{Tables: []int{254, 2, 3}})
	const pods = 32
	var wg sync.WaitGroup
	for i := range pods {
		s := n.sandbox(fmt.Sprintf("c%d", i), fmt.Sprintf("web-%d", i))
		wg.Go(func() {
			if out, ok := n.run("ADD", s); !ok {
				t.Error(out)
			}
		})
	}
	wg.Wait()
	if got := n.pods(); got != pods {
		t.Errorf("%d pods on the host", got)
	}
	if got := strings.Count(n.routes(), "dev eni"); got != 2*pods {
		t.Errorf("%d routes to pods", got)
	}
}

func TestDelWithoutIPAMD(t *testing.T) {
	if testing.Short() {
		t.Skip("waits as long as a DEL waits for ipamd")
	}
	n := newNode(t, ipamdtest.Config{First: netip.MustParseAddr("10.0.0.1"), Tables: []int{254, 2}})
	current := n.sandbox("c1", "web-1")
	current.prevResult = n.mustRun("ADD", current)
	// As versions up to 1.19 wrote it: no route table in the container interface's mac.
	old := n.sandbox("c2", "web-2")
	old.prevResult = strings.Replace(n.mustRun("ADD", old), `"mac": "2",`, "", 1)
	if strings.Contains(old.prevResult, `"mac": "2"`) {
		t.Fatal(old.prevResult)
	}
	// With a plugin behind ours in the chain.
	chained := n.sandbox("c3", "web-3")
	chained.prevResult = n.mustRun("ADD", chained)
	var result map[string]any
	if err := json.Unmarshal([]byte(chained.prevResult), &result); err != nil {
		t.Fatal(err)
	}
	result["interfaces"] = append(result["interfaces"].([]any), map[string]any{"name": "v4if0"}, map[string]any{"name": "v4if0", "sandbox": chained.netns})
	result["ips"] = append(result["ips"].([]any), map[string]any{"version": "4", "interface": 4, "address": "169.254.172.2/22"})
	text, _ := json.Marshal(result)
	chained.prevResult = string(text)
	// Without any: the routes stay until the namespace goes.
	bare := n.sandbox("c4", "web-4")
	n.mustRun("ADD", bare)
	// One whose address is another pod's by now.
	stale := n.sandbox("c5", "web-5")
	stale.prevResult = strings.ReplaceAll(n.mustRun("ADD", stale), "10.0.0.5/32", "10.0.0.4/32")
	n.ipamd.Stop()

	var wg sync.WaitGroup
	for _, s := range []sandbox{current, current, old, chained, bare, stale} {
		wg.Go(func() {
			if out, ok := n.run("DEL", s); !ok || out != "" {
				t.Errorf("DEL of %s: %s", s.pod, out)
			}
		})
	}
	wg.Wait()
	routes := n.routes()
	for addr, want := range map[string]bool{"10.0.0.1 ": false, "10.0.0.2 ": false, "10.0.0.3 ": false, "10.0.0.4 ": true, "10.0.0.5 ": true} {
		if strings.Contains(routes, addr) != want {
			t.Errorf("route to %s: %t, want %t\n%s", addr, !want, want, routes)
		}
	}
}

func TestAddWaitsForIPAMD(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	n.ipamd.Stop()
	s := n.sandbox("c1", "web-0")
	type outcome struct {
		out string
		ok  bool
	}
	done := make(chan outcome)
	go func() {
		out, ok := n.run("ADD", s)
		done <- outcome{out, ok}
	}()
	select {
	case got := <-done:
		t.Fatalf("ADD ended without ipamd: %v", got)
	case <-time.After(300 * time.Millisecond):
	}
	n.startIPAMD(ipamdtest.Config{})
	if got := <-done; !got.ok {
		t.Error(got.out)
	}
}

func TestRefusalsReachKubelet(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	s := n.sandbox("c1", "web-0")
	for _, tt := range []struct {
		code, reason string
		want         int
	}{
		{"AtLimit", "t3.medium: 3×(6−1) addresses, all held", 11},
		{"Denied", "ec2:AssignPrivateIpAddresses is denied", 999},
		{"InvalidRequest", "no container id", 999},
	} {
		n.ipamd.Configure(func(c *ipamdtest.Config) { c.Refusal.Code, c.Refusal.Reason = tt.code, tt.reason })
		code, message := n.mustFail("ADD", s)
		want := "add cmd: failed to assign an IP address to container: " + tt.code + ": " + tt.reason
		if code != tt.want || message != want {
			t.Errorf("got %d %q, want %d %q", code, message, tt.want, want)
		}
	}
	if n.pods() != 0 || n.routes() != "" {
		t.Errorf("left behind:\n%s", n.routes())
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	taken := func(n *node, s *sandbox) {
		ns := nstest.New(n.T)
		ns.Run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
		s.netns = ns.Path()
	}
	edit := func(change func(*rpc.AddNetworkReply)) func(*node, *sandbox) {
		return func(n *node, _ *sandbox) {
			n.ipamd.Configure(func(c *ipamdtest.Config) { c.Edit = change })
		}
	}
	for name, tt := range map[string]struct {
		breakIt  func(*node, *sandbox)
		want     string
		released bool // ipamd was asked, so it must be told
	}{
		"namespace is gone":       {func(_ *node, s *sandbox) { s.netns = "/run/netns/gone" }, "no such file", false},
		"namespace is no netns":   {func(_ *node, s *sandbox) { s.netns = "/dev/null" }, "invalid argument", true},
		"name is taken":           {taken, "file exists", true},
		"answer without address":  {edit(func(r *rpc.AddNetworkReply) { r.IPAllocationMetadata = nil }), "no address", true},
		"answer with bad address": {edit(func(r *rpc.AddNetworkReply) { r.IPAllocationMetadata[0] = &rpc.IPAllocationMetadata{} }), "no usable address", true},
		"branch ENI":              {edit(func(r *rpc.AddNetworkReply) { r.PodVlanId = 7 }), "branch ENI", true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ipamdtest.Config{})
			s := n.sandbox("c1", "web-0")
			tt.breakIt(n, &s)
			code, message := n.mustFail("ADD", s)
			if code != 999 || !strings.Contains(message, tt.want) {
				t.Errorf("got %d %q", code, message)
			}
			if n.pods() != 0 || n.routes() != "" || n.ipamd.Held() != 0 {
				t.Errorf("left behind: %d veths, %d addresses, routes %q", n.pods(), n.ipamd.Held(), n.routes())
			}
			if dels := n.ipamd.Dels(); tt.released != (len(dels) == 1 && dels[0].GetReason() == "SetupNSFailed") {
				t.Errorf("ipamd was told %v", dels)
			}
		})
	}
}

func TestMalformedInput(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	conf := func(more string) string {
		return `{"cniVersion":"0.4.0","name":"aws-cni","type":"aws-cni","pluginLogFile":"` + n.log + `"` + more + `}`
	}
	for name, tt := range map[string]struct {
		conf, args string
		code       int
	}{
		"no JSON":             {conf: `{`, code: 6},
		"no name":             {conf: `{"cniVersion":"0.4.0"}`, code: 7},
		"unknown version":     {conf: `{"cniVersion":"9.9.9","name":"aws-cni"}`, code: 1},
		"long veth prefix":    {conf: conf(`,"vethPrefix":"toolong"`), code: 7},
		"empty veth prefix":   {conf: conf(`,"vethPrefix":""`), code: 7},
		"veth prefix is path": {conf: conf(`,"vethPrefix":"../"`), code: 7},
		"MTU is a number":     {conf: conf(`,"mtu":9001`), code: 6},
		"bad prevResult":      {conf: conf(`,"prevResult":{"cniVersion":"0.4.0","ips":7}`), code: 6},
		"unknown argument":    {conf: conf(``), args: "COLOUR=red", code: 999},
	} {
		t.Run(name, func(t *testing.T) {
			for _, command := range []string{"ADD", "DEL"} {
				s := n.sandbox("c1", "web-0")
				s.conf, s.args = tt.conf, tt.args
				if code, message := n.mustFail(command, s); code != tt.code {
					t.Errorf("%s: got %d %q, want %d", command, code, message, tt.code)
				}
			}
		})
	}
	if adds, dels := n.ipamd.Adds(), n.ipamd.Dels(); len(adds)+len(dels) != 0 {
		t.Errorf("ipamd was asked: %v %v", adds, dels)
	}
}

func TestReadOnlySysctlsAreTolerated(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	s := n.sandbox("c1", "web-0")
	const sys = "/proc/sys"
	if err := unix.Mount(sys, sys, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(sys, unix.MNT_DETACH) }()
	if err := unix.Mount("", sys, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		t.Fatal(err)
	}
	n.mustRun("ADD", s)
	log, err := os.ReadFile(n.log)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte("setting left alone")) {
		t.Errorf("the log does not say so:\n%s", log)
	}
}

func TestDelOfAPodWhoseNamespaceIsGone(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	for i, netns := range []string{"", "/run/netns/gone"} {
		s := n.sandbox(fmt.Sprintf("c%d", i), fmt.Sprintf("web-%d", i))
		n.mustRun("ADD", s)
		s.netns = netns
		n.mustRun("DEL", s)
	}
	if n.ipamd.Held() != 0 || n.routes() != "" {
		t.Errorf("left behind: %d addresses, routes %q", n.ipamd.Held(), n.routes())
	}
}

func TestStatusAndVersion(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	s := n.sandbox("", "")
	s.version = "1.1.0"
	n.mustRun("STATUS", s)
	n.mustRun("GC", s)
	n.ipamd.Stop()
	if code, message := n.mustFail("STATUS", s); code != 50 {
		t.Errorf("STATUS before ipamd's first start: %d %s", code, message)
	}
	// ipamd has run and is away: pods wait for it, the node stays ready.
	if err := os.WriteFile(names.CheckpointFile, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(names.CheckpointFile)
	n.mustRun("STATUS", s)
	var versions struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}
	if err := json.Unmarshal([]byte(n.mustRun("VERSION", s)), &versions); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(versions.SupportedVersions); versions.CNIVersion != "1.1.0" || got != "[0.1.0 0.2.0 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0]" {
		t.Errorf("%s %s", versions.CNIVersion, got)
	}
}

// agent is a network policy agent.
type agent struct {
	rpc.UnimplementedNPBackendServer
	mu    sync.Mutex
	calls []string
	deny  bool
}

func (a *agent) EnforceNpToPod(_ context.Context, r *rpc.EnforceNpRequest) (*rpc.EnforceNpReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, fmt.Sprintf("enforce %s/%s %s %d", r.GetK8S_POD_NAMESPACE(), r.GetK8S_POD_NAME(), r.GetNETWORK_POLICY_MODE(), r.GetInterfaceCount()))
	return &rpc.EnforceNpReply{Success: !a.deny}, nil
}

func (a *agent) DeletePodNp(_ context.Context, r *rpc.DeleteNpRequest) (*rpc.DeleteNpReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls = append(a.calls, fmt.Sprintf("delete %s/%s", r.GetK8S_POD_NAMESPACE(), r.GetK8S_POD_NAME()))
	return &rpc.DeleteNpReply{Success: true}, nil
}

func TestNetworkPolicyAgentIsAsked(t *testing.T) {
	n := newNode(t, ipamdtest.Config{PolicyMode: "strict"})
	s := n.sandbox("c1", "web-0")
	if _, message := n.mustFail("ADD", s); !strings.Contains(message, "add cmd: failed to setup network policy") {
		t.Errorf("ADD without the agent: %s", message)
	}
	listener, err := ipamdtest.Listen("/var/run/aws-node/npa.sock")
	if err != nil {
		t.Fatal(err)
	}
	a, server := &agent{deny: true}, grpc.NewServer()
	rpc.RegisterNPBackendServer(server, a)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { server.Stop(); <-served }()
	if _, message := n.mustFail("ADD", s); !strings.Contains(message, "failed to setup network policy") {
		t.Errorf("ADD that the agent refuses: %s", message)
	}
	a.mu.Lock()
	a.deny = false
	a.mu.Unlock()
	n.mustRun("ADD", s)
	n.mustRun("DEL", s)
	want := []string{"enforce default/web-0 strict 1", "enforce default/web-0 strict 1", "delete default/web-0"}
	if fmt.Sprint(a.calls) != fmt.Sprint(want) {
		t.Errorf("the agent was told %q", a.calls)
	}
}
