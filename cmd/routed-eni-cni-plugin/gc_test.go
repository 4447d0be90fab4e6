package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/names"
)

// checkpoint writes ipamd's state file with the pods that hold something, allocated an hour ago.
func (n *node) checkpoint(entries ...string) {
	n.Helper()
	text := `{"version":"vpc-cni-ipam/1","allocations":[` + strings.Join(entries, ",") + `]}`
	if err := os.WriteFile(names.CheckpointFile, []byte(text), 0o600); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = os.Remove(names.CheckpointFile) })
}

func entry(network, container, pod string, age time.Duration) string {
	metadata := `{"k8sPodNamespace":"default","k8sPodName":"` + pod + `"}`
	if pod == "" {
		metadata = "{}"
	}
	return fmt.Sprintf(`{"networkName":%q,"containerID":%q,"ifName":"eth0","ipv4":"10.0.0.1","allocationTimestamp":%d,"metadata":%s}`,
		network, container, time.Now().Add(-age).UnixNano(), metadata)
}

// gc is a configuration for GC.
func gc(n *node, valid string) sandbox {
	s := sandbox{version: "1.1.0"}
	s.conf = `{"cniVersion":"1.1.0","name":"aws-cni","type":"aws-cni","pluginLogFile":"` + n.log + `"` + valid + `}`
	return s
}

func TestGCTakesBackWhatTheRuntimeDoesNotKnow(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	for i, pod := range []string{"alive", "gone", "young", "reused", "other"} {
		n.mustRun("ADD", n.sandbox(fmt.Sprintf("c%d", i), pod))
	}
	n.mustRun("ADD", n.sandbox("c9", "reused")) // the same pod's next sandbox took over the name
	// A pod whose DEL found neither ipamd nor prevResult, and whose namespace somebody holds.
	stray := names.HostVeth("eni", "default", "stray", 0)
	n.host.Run("ip", "link", "add", stray, "type", "veth", "peer", "name", "peer0")
	// Links that only look like ours.
	foreign := []string{"eni0123456789", "eni0123456789ag", "cali0123456789a"}
	for i, name := range foreign {
		n.host.Run("ip", "link", "add", name, "type", "veth", "peer", "name", fmt.Sprintf("foreign%d", i))
	}
	file := []string{
		entry("aws-cni", "c0", "alive", time.Hour), entry("aws-cni", "c1", "gone", time.Hour), entry("aws-cni", "c2", "young", time.Minute),
		entry("aws-cni", "c3", "reused", time.Hour), entry("aws-cni", "c9", "reused", time.Hour), entry("second", "c4", "other", time.Hour),
	}
	n.checkpoint(file...)
	valid := gc(n, `,"cni.dev/valid-attachments":[{"containerID":"c0","ifname":"eth0"},{"containerID":"c9","ifname":"eth0"}]`)
	for range 2 {
		n.mustRun("GC", valid)
	}
	links := n.host.Run("ip", "-o", "link")
	for name, want := range map[string]bool{
		names.HostVeth("eni", "default", "alive", 0): true, names.HostVeth("eni", "default", "gone", 0): false,
		names.HostVeth("eni", "default", "young", 0): true, names.HostVeth("eni", "default", "reused", 0): true,
		names.HostVeth("eni", "default", "other", 0): true, stray: false,
		foreign[0]: true, foreign[1]: true, foreign[2]: true,
	} {
		if strings.Contains(links, " "+name+"@") != want {
			t.Errorf("link %s is there: %t", name, !want)
		}
	}
	if held := n.ipamd.Held(); held != 4 {
		t.Errorf("ipamd holds %d addresses, want 4: all but those of gone and the first reused", held)
	}
	if routes := n.routes(); strings.Count(routes, "10.0.0.") != 2*4 {
		t.Errorf("routes to others than alive, young, reused and other:\n%s", routes)
	}
	n.checkLog(8)
}

func TestGCIsCarefulWithoutCertainty(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	stray := names.HostVeth("eni", "default", "stray", 0)
	n.host.Run("ip", "link", "add", stray, "type", "veth", "peer", "name", "peer0")
	there := func(why string) {
		t.Helper()
		if !strings.Contains(n.host.Run("ip", "-o", "link"), stray) {
			t.Errorf("%s: the link is gone", why)
		}
	}
	all := gc(n, `,"cni.dev/valid-attachments":null`)
	n.mustRun("GC", all)
	there("no state file")
	n.checkpoint(entry("aws-cni", "link:eni1", "", time.Hour))
	n.mustRun("GC", all)
	there("an allocation without names")
	n.checkpoint()
	n.host.Run("ip", "link", "add", "vlan.eth.7", "type", "veth", "peer", "name", "trunk")
	n.mustRun("GC", all)
	there("pods on branch ENIs")
	n.host.Run("ip", "link", "del", "vlan.eth.7")
	if code, message := n.mustFail("GC", gc(n, "")); code != 7 {
		t.Errorf("GC without a list: %d %s", code, message)
	}
	there("no list")
	if err := os.WriteFile(names.CheckpointFile, []byte(`{"version":"vpc-cni-ipam/2"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, message := n.mustFail("GC", all); code != 999 {
		t.Errorf("GC with an unknown state file: %d %s", code, message)
	}
	there("an unknown state file")
	n.checkpoint()
	n.mustRun("GC", all)
	if strings.Contains(n.host.Run("ip", "-o", "link"), stray) {
		t.Error("the link is left")
	}
}

func TestGCWithoutIPAMD(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	for i, pod := range []string{"a", "b"} {
		n.mustRun("ADD", n.sandbox(fmt.Sprintf("c%d", i), pod))
	}
	n.checkpoint(entry("aws-cni", "c0", "a", time.Hour), entry("aws-cni", "c1", "b", time.Hour))
	n.ipamd.Stop()
	n.mustRun("GC", gc(n, `,"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]`))
	notes := n.notes()
	if note := notes["c0"]; len(notes) != 1 || note.Pod != "a" || n.pods() != 1 {
		t.Errorf("notes %v, %d pods", notes, n.pods())
	}
}
