package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"

	"golang.org/x/sys/unix"
)

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
	if notes := n.notes(); len(notes) != 0 {
		t.Fatalf("notes of DELs that did not happen: %v", notes)
	}

	// One whose note cannot be written.
	silent := n.sandbox("c6", "web-6")
	mend := n.breakNote("c6")

	began := time.Now()
	var wg sync.WaitGroup
	for _, s := range []sandbox{current, current, old, chained, bare, stale, silent} {
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

	mend()
	notes := n.notes()
	for _, s := range []sandbox{current, old, chained, bare, stale} {
		note, ok := notes[s.id]
		if !ok || note.NetworkName != "aws-cni" || note.IfName != "eth0" || note.Namespace != "default" || note.Pod != s.pod ||
			note.Time.Before(began) || note.Time.After(time.Now()) {
			t.Errorf("note of %s: %t %+v", s.pod, ok, note)
		}
	}
	if len(notes) != 5 {
		t.Errorf("%d notes, want 5", len(notes))
	}
	// A sandbox that is set up again is not gone, one that ipamd is asked about needs no note.
	n.startIPAMD(ipamdtest.Config{})
	n.mustRun("ADD", bare)
	n.mustRun("DEL", bare)
	n.mustRun("DEL", bare)
	if _, ok := n.notes()["c4"]; ok {
		t.Error("the note of a sandbox that was set up again is left")
	}
	if notes := n.notes(); len(notes) != 4 {
		t.Errorf("%d notes, want 4", len(notes))
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
