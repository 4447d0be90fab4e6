package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/delnote"
	"vpccni/pkg/networkutils/nstest"
	"vpccni/pkg/version"

	"golang.org/x/sys/unix"
)

// pluginVar makes the test binary be the plugin: what runs is the real main, in a process of its own, as a runtime
// would start it.
const pluginVar = "VPCCNI_TEST_BE_THE_PLUGIN"

// timeoutVar is a shorter time limit than the plugin's own, with half of it as grace.
const timeoutVar = "VPCCNI_TEST_TIMEOUT"

func TestMain(m *testing.M) {
	if os.Getenv(pluginVar) != "" {
		version.Version = "v1.2.3-test"
		if timeout, err := time.ParseDuration(os.Getenv(timeoutVar)); err == nil {
			run(timeout, timeout/2)
		} else {
			main()
		}
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
	// wrapper is a command that runs the plugin; without it the plugin is run as it is.
	wrapper []string
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
	n.Cleanup(func() { _ = os.RemoveAll(string(delnote.Node)) })
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
	more       map[string]any // keys of the configuration beside the stock ones, or in their place
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
	maps.Copy(conf, s.more)
	if s.prevResult != "" {
		conf["prevResult"] = json.RawMessage(s.prevResult)
	}
	text, err := json.Marshal(conf)
	if err != nil {
		n.Fatal(err)
	}
	return string(text)
}

// command is an execution of the plugin, to be started on the host.
func (n *node) command(command string, s sandbox) *exec.Cmd {
	n.Helper()
	if s.args == "" {
		s.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + s.pod + ";K8S_POD_INFRA_CONTAINER_ID=" + s.id + ";K8S_POD_UID=uid-" + s.pod
	}
	cmd := exec.CommandContext(n.Context(), "/proc/self/exe")
	if len(n.wrapper) > 0 {
		cmd = exec.CommandContext(n.Context(), n.wrapper[0], n.wrapper[1:]...)
	}
	cmd.Env = []string{
		pluginVar + "=1", "CNI_COMMAND=" + command, "CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.netns, "CNI_IFNAME=eth0",
		"CNI_PATH=/opt/cni/bin", "CNI_ARGS=" + s.args,
		"GORACE=atexit_sleep_ms=0", // a race build would sleep a second in each of the executions
	}
	cmd.Stdin = strings.NewReader(n.stdin(s))
	return cmd
}

// run executes the plugin on the host and returns what it printed and whether it exited with 0.
func (n *node) run(command string, s sandbox) (string, bool) {
	n.Helper()
	var stdout, stderr bytes.Buffer
	var failed *exec.ExitError
	cmd := n.command(command, s)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := n.host.Do(cmd.Run)
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

// notes are the notes of DELs without ipamd, by container.
func (n *node) notes() map[string]delnote.Note {
	n.Helper()
	list, problems := delnote.Node.Read(time.Now())
	if len(problems) > 0 {
		n.Error(problems)
	}
	notes := map[string]delnote.Note{}
	for _, note := range list {
		notes[note.ContainerID] = note
	}
	return notes
}

// breakNote puts something in the place of a container's note that no file can replace, until mend takes it away.
func (n *node) breakNote(container string) (mend func()) {
	n.Helper()
	key := delnote.Key{NetworkName: "aws-cni", ContainerID: container, IfName: "eth0"}
	if err := delnote.Node.Write(delnote.Note{Key: key, Time: time.Now()}); err != nil {
		n.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(string(delnote.Node), "*"))
	if err != nil || len(files) != 1 {
		n.Fatalf("%q, %v", files, err)
	}
	if err := errors.Join(os.Remove(files[0]), os.Mkdir(files[0], 0o700)); err != nil {
		n.Fatal(err)
	}
	return func() {
		n.Helper()
		if err := os.Remove(files[0]); err != nil {
			n.Error(err)
		}
	}
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
