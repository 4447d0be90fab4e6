package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"vpccni/pkg/networkutils/nstest"
	"vpccni/pkg/networkutils/podnet"
)

// TestAddAndDel: the result is what aws-cni said and two interfaces, and of the pod nothing is left, whichever way it goes:
// with its namespace, without, twice, when the plugin is not enabled any more, without prevResult.
func TestAddAndDel(t *testing.T) {
	t.Parallel()
	for _, d := range []direction{v6, v4} {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, d)
			n.rules(true)
			for name, change := range map[string]func(*sandbox){
				"with its namespace":    func(*sandbox) {},
				"without its namespace": func(s *sandbox) { s.netns = "" },
				"not enabled any more":  func(s *sandbox) { s.conf = map[string]any{"enabled": "false", "nodeIP": "", "mtu": "x"} },
				"without prevResult":    func(s *sandbox) { s.prev = "" },
				"with another range": func(s *sandbox) {
					s.conf = map[string]any{"ipam": map[string]any{"dataDir": n.data, "ranges": "of a later version"}}
				},
			} {
				s := n.pod("c-" + strings.ReplaceAll(name, " ", "-"))
				before := s.prev
				s.prev = n.mustRun("ADD", s)
				n.checkResult(before, s)
				n.mustRun("CHECK", s)
				if got := n.held(); len(got) != 1 {
					t.Errorf("%s: in use after ADD: %s", name, got)
				}
				del := s
				change(&del)
				n.mustRun("DEL", del)
				n.mustRun("DEL", del)
				if got := n.held(); len(got) != 0 {
					t.Errorf("%s: in use after DEL: %s", name, got)
				}
				if got := n.left(); strings.Contains(got, " dev ") {
					t.Errorf("%s: routes after DEL: %s", name, got)
				}
				if _, message := n.mustFail("CHECK", s); !strings.Contains(message, "check cmd") {
					t.Errorf("%s: CHECK after DEL: %s", name, message)
				}
				s.ns.Run("ip", "link", "delete", d.ifName) // as it goes with the namespace
			}
			if got := strings.TrimSpace(n.left()); got != "" {
				t.Errorf("left on the host: %s", got)
			}
		})
	}
}

// checkResult compares the result of an ADD with the previous one.
func (n *node) checkResult(before string, s sandbox) {
	n.Helper()
	var prev, now map[string]any
	if err := json.Unmarshal([]byte(before), &prev); err != nil {
		n.Fatal(err)
	}
	if err := json.Unmarshal([]byte(s.prev), &now); err != nil {
		n.Fatal(err)
	}
	list, _ := now["interfaces"].([]any)
	was, _ := prev["interfaces"].([]any)
	if len(list) != len(was)+2 {
		n.Fatalf("interfaces: %v", list)
	}
	host, _ := list[len(was)].(map[string]any)
	pod, _ := list[len(was)+1].(map[string]any)
	mac := regexp.MustCompile(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`)
	if host["name"] != podnet.EgressVeth(s.id) || pod["name"] != n.ifName || pod["sandbox"] != s.netns || host["sandbox"] != nil ||
		!mac.MatchString(fmt.Sprint(host["mac"])) || !mac.MatchString(fmt.Sprint(pod["mac"])) {
		n.Errorf("new interfaces: %v %v", host, pod)
	}
	if link := s.ns.Run("ip", "link", "show", n.ifName); !strings.Contains(link, fmt.Sprint(pod["mac"])) || !strings.Contains(link, "mtu 9001") {
		n.Errorf("in the pod: %s", link)
	}
	if link := n.host.Run("ip", "link", "show", podnet.EgressVeth(s.id)); !strings.Contains(link, fmt.Sprint(host["mac"])) {
		n.Errorf("on the host: %s", link)
	}
	now["interfaces"] = was
	if !reflect.DeepEqual(prev, now) {
		n.Errorf("the rest of the result: %v, want %v", now, prev)
	}
}

// TestPreviousResultPassesThrough: in its own version and with what is not known here, enabled or not.
func TestPreviousResultPassesThrough(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for _, enabled := range []string{"true", "false", "", "True", "1"} {
			s := n.pod("c" + version + enabled)
			ips := `[{"interface":1,"address":"10.0.1.11/32","x":[1]}]`
			if version < "1.0.0" {
				ips = `[{"version":"4","interface":1,"address":"10.0.1.11/32","x":[1]}]`
			}
			s.prev = fmt.Sprintf(`{"cniVersion":%q,"interfaces":[{"name":"enix"},{"name":"eth0","sandbox":%q,"mtu":9001,"foreign":{"a":"b"}},`+
				`{"name":"dummyx","mac":"0","sandbox":"1"}],"ips":%s,"routes":[{"dst":"0.0.0.0/0"}],"dns":{"search":["x"]},"ztunnel":true}`, version, s.netns, ips)
			s.conf = map[string]any{"cniVersion": version, "enabled": enabled}
			before := s.prev
			s.prev = n.mustRun("ADD", s)
			if enabled == "true" {
				n.checkResult(before, s)
			} else {
				var want, got any
				if err := json.Unmarshal([]byte(before), &want); err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal([]byte(s.prev), &got); err != nil || !reflect.DeepEqual(want, got) {
					t.Errorf("%s, enabled %q: %s (%v)", version, enabled, s.prev, err)
				}
			}
			if version >= "0.4.0" {
				n.mustRun("CHECK", s)
			}
			n.mustRun("DEL", s)
		}
	}
	if got := n.held(); len(got) != 0 {
		t.Errorf("in use: %s", got)
	}
}

// TestConfigErrors: what ADD refuses, in upstream's words where it has any, and that nothing is left then.
func TestConfigErrors(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	ipam := func(change map[string]any) map[string]any {
		conf := map[string]any{"type": "host-local", "dataDir": n.data, "ranges": [][]map[string]string{{{"subnet": n.subnet}}}}
		for k, v := range change {
			conf[k] = v
		}
		return map[string]any{"ipam": conf}
	}
	for name, tt := range map[string]struct {
		conf map[string]any
		want string
	}{
		"not chained":                {map[string]any{"prevResult": nil}, "must be called as a chained plugin"},
		"not chained, not enabled":   {map[string]any{"prevResult": nil, "enabled": "false"}, "must be called as a chained plugin"},
		"mtu":                        {map[string]any{"mtu": "jumbo"}, "mtu"},
		"mtu, not enabled":           {map[string]any{"mtu": "", "enabled": "false"}, "mtu"},
		"mtu too large":              {map[string]any{"mtu": "70000"}, "mtu"},
		"no nodeIP":                  {map[string]any{"nodeIP": ""}, "nodeIP"},
		"nodeIP not global":          {map[string]any{"nodeIP": "fe80::1"}, "nodeIP"},
		"nodeIP of the other family": {map[string]any{"nodeIP": "10.0.1.10"}, "different families"},
		"another ipam":               {ipam(map[string]any{"type": "dhcp"}), "host-local"},
		"no directory":               {ipam(map[string]any{"dataDir": ""}), "dataDir"},
		"no range":                   {ipam(map[string]any{"ranges": [][]map[string]string{}}), "one range"},
		"two ranges":                 {ipam(map[string]any{"ranges": [][]map[string]string{{{"subnet": n.subnet}}, {{"subnet": n.subnet}}}}), "one range"},
		"no subnet":                  {ipam(map[string]any{"ranges": [][]map[string]string{{{"subnet": "fd00::ac:00"}}}}), "subnet"},
		"prevResult is null inside":  {map[string]any{"prevResult": map[string]any{"cniVersion": "1.0.0", "interfaces": []any{nil}}}, "prevResult"},
	} {
		s := n.pod("c1")
		s.conf = tt.conf
		if _, message := n.mustFail("ADD", s); !strings.Contains(message, tt.want) {
			t.Errorf("%s: %s", name, message)
		}
	}
	s := n.pod("c1")
	s.netns = "/run/netns/gone"
	if _, message := n.mustFail("ADD", s); !strings.Contains(message, "network namespace") {
		t.Errorf("without a namespace: %s", message)
	}
	if left := strings.TrimSpace(n.left()); left != "" || len(n.held()) != 0 {
		t.Errorf("left behind: %s %s", left, n.held())
	}
}

// TestAddWithoutRule: a pod that would send with an address that nobody can answer to is not made; ADD waits for ipamd's
// rule before that, and the test as long.
func TestAddWithoutRule(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(false)
	s := n.pod("c1")
	if code, message := n.mustFail("ADD", s); code != 11 || !strings.Contains(message, "source NAT") {
		t.Errorf("%d %s", code, message)
	}
	if left := strings.TrimSpace(n.left()); left != "" || len(n.held()) != 0 {
		t.Errorf("left behind: %s %s", left, n.held())
	}
	done := make(chan bool)
	go func() {
		_, ok := n.run("ADD", s)
		done <- ok
	}()
	n.rules(true)
	if !<-done {
		t.Error("ADD does not wait for the rule")
	}
}

// TestFailedAddIsTakenBack: a name that is taken in the pod, the last thing that can go wrong.
func TestFailedAddIsTakenBack(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	s := n.pod("c1")
	s.ns.Run("ip", "link", "add", "v6if0", "type", "veth", "peer", "other")
	n.mustFail("ADD", s)
	if left := strings.TrimSpace(n.left()); left != "" || len(n.held()) != 0 {
		t.Errorf("left behind: %s %s", left, n.held())
	}
	s.ns.Run("ip", "link", "delete", "v6if0")
	n.mustRun("ADD", s)
	again := n.mustRun("ADD", s) // the runtime may repeat an ADD
	if len(n.held()) != 1 || !strings.Contains(again, podnet.EgressVeth("c1")) {
		t.Errorf("the repeated ADD: %s %s", n.held(), again)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	var wg sync.WaitGroup
	pods := make([]sandbox, 32)
	for i := range pods {
		pods[i] = n.sandbox(fmt.Sprint("c", i), fmt.Sprintf("10.0.1.%d/32", 11+i))
	}
	all := func(command string) {
		for _, s := range pods {
			wg.Go(func() {
				if out, ok := n.run(command, s); !ok {
					t.Errorf("%s of %s: %s", command, s.id, out)
				}
			})
		}
		wg.Wait()
	}
	all("ADD")
	if got := len(n.held()); got != len(pods) {
		t.Errorf("%d addresses for %d pods", got, len(pods))
	}
	if got := strings.Count(n.left(), "fd00::ac:"); got != len(pods) {
		t.Errorf("%d routes for %d pods", got, len(pods))
	}
	all("DEL")
	if got := n.held(); len(got) != 0 || strings.Contains(n.left(), "fd00") {
		t.Errorf("left behind: %s %s", got, n.left())
	}
}

// TestExhaustion: a full range gives back what belongs to nobody on this host, but nothing that is young or has a route;
// then it refuses, for the runtime to try again.
func TestExhaustion(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	dir := filepath.Join(n.data, "aws-cni")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	file := func(i int) string { return filepath.Join(dir, fmt.Sprintf("fd00::ac:%x", i)) }
	fill := func(i int, at time.Time) {
		t.Helper()
		if err := os.WriteFile(file(i), fmt.Appendf(nil, "gone%d\r\neth0", i), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file(i), at, at); err != nil {
			t.Fatal(err)
		}
	}
	for i := 2; i < 1024; i++ {
		fill(i, time.Now())
	}
	s := n.pod("c1")
	if code, message := n.mustFail("ADD", s); code != 11 || !strings.Contains(message, "no address") {
		t.Errorf("a range of young addresses: %d %s", code, message)
	}
	for _, i := range []int{7, 9, 11} {
		fill(i, old)
	}
	n.host.Run("ip", "-6", "route", "add", "fd00::ac:7", "dev", "eth0")
	n.mustRun("ADD", s)
	for i, want := range map[int]bool{7: true, 9: true, 11: false} { // 9 is the new pod's
		if _, err := os.Stat(file(i)); (err == nil) != want {
			t.Errorf("fd00::ac:%x is in use: %t", i, !want)
		}
	}
	if text, err := os.ReadFile(file(9)); err != nil || string(text) != "c1\r\neth0" {
		t.Errorf("fd00::ac:9: %q %v", text, err)
	}
}

// TestGC: what the runtime does not list goes, unless it may be an ADD at work; without a list nothing does.
func TestGC(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	pods := map[string]sandbox{}
	for i, id := range []string{"living", "gone", "young"} {
		s := n.sandbox(id, fmt.Sprintf("10.0.1.%d/32", 11+i))
		n.mustRun("ADD", s)
		pods[id] = s
	}
	old := time.Now().Add(-time.Hour)
	for _, addr := range n.held()[:2] {
		if err := os.Chtimes(filepath.Join(n.data, "aws-cni", addr), old, old); err != nil {
			t.Fatal(err)
		}
	}
	gc := sandbox{conf: map[string]any{"cniVersion": "1.1.0"}}
	n.mustFail("GC", gc)
	gc.conf["cni.dev/valid-attachments"] = []map[string]string{{"containerID": "living", "ifname": "eth0"}}
	n.mustRun("GC", gc)
	n.mustRun("GC", gc)
	if got := fmt.Sprint(n.held()); got != "[fd00::ac:2 fd00::ac:4]" {
		t.Errorf("in use after GC: %s", got)
	}
	if left := n.left(); strings.Contains(left, "fd00::ac:3") || strings.Contains(left, podnet.EgressVeth("gone")) ||
		!strings.Contains(left, podnet.EgressVeth("living")) || !strings.Contains(left, podnet.EgressVeth("young")) {
		t.Errorf("on the host after GC: %s", left)
	}
	status := sandbox{conf: map[string]any{"cniVersion": "1.1.0"}}
	n.mustRun("STATUS", status)
	status.conf["nodeIP"] = "nobody"
	n.mustFail("STATUS", status)
	status.conf["enabled"] = "false"
	n.mustRun("STATUS", status)
}

// killStep is how much later each ADD is killed than the one before.
const killStep = 2 * time.Millisecond

// TestKilledAnywhere: an ADD that is killed at any moment leaves nothing that the runtime's DEL does not take away, and the
// next ADD of the sandbox works.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	finished := 0
	for i := 0; finished < 3; i++ {
		s := n.sandbox("c1", "10.0.1.11/32")
		var out strings.Builder
		cmd := n.command("ADD", s)
		cmd.Stdout = &out
		if err := n.host.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		killed := time.AfterFunc(time.Duration(i)*killStep, func() { _ = cmd.Process.Kill() })
		if cmd.Wait() == nil {
			finished++
		}
		killed.Stop()
		if i%2 == 0 { // else the sandbox is tried again
			s.netns = ""
			n.mustRun("DEL", s)
			if got := n.held(); len(got) != 0 {
				t.Fatalf("killed after %d steps: %s in use", i, got)
			}
			if left := n.left(); strings.Contains(left, "fd00") {
				t.Fatalf("killed after %d steps: %s", i, left)
			}
			continue
		}
		s.prev = n.mustRun("ADD", s)
		n.mustRun("CHECK", s)
		if got := n.held(); len(got) != 1 {
			t.Fatalf("killed after %d steps, tried again: %s in use", i, got)
		}
		n.mustRun("DEL", s)
	}
}

// TestHostLocal: the real plugin finds our addresses and we find its, as pods of one version are deleted by another.
func TestHostLocal(t *testing.T) {
	t.Parallel()
	n := newNode(t, v6)
	n.rules(true)
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/containernetworking/plugins/plugins/ipam/host-local")
	build.Dir, build.Env = "../../test/cniplugins", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	real := func(command string, s sandbox) (string, error) {
		cmd := n.command(command, s)
		cmd.Path, cmd.Args = filepath.Join(bin, "host-local"), []string{"host-local"}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for i, want := range []string{"fd00::ac:2", "fd00::ac:3", "fd00::ac:4", "fd00::ac:5"} {
		s := sandbox{id: fmt.Sprint("c", i), netns: "/run/netns/c", prev: `{"cniVersion":"1.0.0"}`}
		if i%2 == 0 {
			s = n.pod(s.id)
			n.mustRun("ADD", s)
		} else if out, err := real("ADD", s); err != nil || !strings.Contains(out, want+"/118") {
			t.Fatalf("host-local: %v %s", err, out)
		}
		if got := n.held(); got[len(got)-1] != want {
			t.Errorf("in use after ADD %d: %s", i, got)
		}
	}
	// A pod whose wiring is another version's, with a veth of a random name.
	other := nstest.New(t)
	n.host.Run("sh", "-e", "-c", "ip link add veth1a2b3c4d type veth peer v6if0 netns "+other.Path()+
		"; ip link set veth1a2b3c4d up; ip -6 route add fd00::ac:3 dev veth1a2b3c4d")
	n.mustRun("DEL", sandbox{id: "c1"})
	if out, err := real("DEL", sandbox{id: "c2", netns: other.Path()}); err != nil {
		t.Errorf("host-local: %v %s", err, out)
	}
	if got := fmt.Sprint(n.held()); got != "[fd00::ac:2 fd00::ac:5]" {
		t.Errorf("in use after two DELs: %s", got)
	}
	if routes := n.host.Run("ip", "-6", "route"); strings.Contains(routes, "fd00::ac:3") {
		t.Errorf("after DEL of another version's pod: %s", routes)
	}
}

// TestSyscalls: what an ADD or a DEL asks of the kernel does not depend on what else is on the node, and waits for no disk:
// no program is started, nothing is dumped, synced or deleted.
func TestSyscalls(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is not installed (scripts/deps.sh net installs it)")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []direction{v6, v4} {
		n := newNode(t, d)
		n.rules(true)
		s := n.pod("c1")
		trace := filepath.Join(t.TempDir(), "trace")
		n.wrapper = []string{strace, "-f", "-qq", "-o", trace, "-s", "4096", "-v", "-e", "trace=execve,fork,vfork,fsync,fdatasync,sync,syncfs,sendto,sendmsg,unshare", self}
		for _, command := range []string{"ADD", "DEL"} {
			n.mustRun(command, s)
			text, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			calls := string(text)
			if got := strings.Count(calls, "execve("); got != 1 {
				t.Errorf("%s %s: %d programs are started, want 1, the plugin itself", d.name, command, got)
			}
			for _, never := range []string{"fsync(", "fdatasync(", "sync(", "syncfs(", "unshare(", "fork(", "NLM_F_DUMP", "NLM_F_ACK|0x300", "RTM_DELLINK", "RTM_SETLINK"} {
				if strings.Contains(calls, never) {
					t.Errorf("%s %s: %s\n%s", d.name, command, never, calls)
				}
			}
		}
	}
}
