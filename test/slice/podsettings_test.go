package slice

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/names"
)

// TestPodSettingsChange: the veth prefix and the pods' MTU change while pods run. Pods of before keep their links, their
// addresses and their packets over restarts of ipamd and are deleted as ever; pods of after have the new ones.
func TestPodSettingsChange(t *testing.T) {
	t.Parallel()
	env := map[string]string{"WARM_ENI_TARGET": "0"}
	l := lab(t, one(100*time.Millisecond, env))
	n := l.Nodes()[0]
	add := func(pod string) {
		t.Helper()
		if _, err := l.PodAdd(t.Context(), "n1", namespace, pod); err != nil {
			t.Fatal(err)
		}
	}
	add("old1")
	add("old2")
	if err := n.StopIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
	env["AWS_VPC_K8S_CNI_VETHPREFIX"], env["POD_MTU"] = "pod", "1400"
	if err := n.StartIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
	add("new1")
	var links string
	show := func() string {
		t.Helper()
		err := n.OS().Do(func() error {
			out, err := exec.CommandContext(t.Context(), "ip", "-o", "link").CombinedOutput()
			links = string(out)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return links
	}
	show()
	for pod, want := range map[string]struct{ prefix, mtu string }{"old1": {"eni", "9001"}, "old2": {"eni", "9001"}, "new1": {"pod", "1400"}} {
		name := names.HostVeth(want.prefix, namespace, pod, 0)
		found := false
		for line := range strings.Lines(links) {
			found = found || strings.Contains(line, " "+name+"@") && strings.Contains(line, " mtu "+want.mtu+" ")
		}
		if !found {
			t.Errorf("no link %s with an MTU of %s:\n%s", name, want.mtu, links)
		}
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
	if err := l.PodDel(t.Context(), "n1", namespace, "old1"); err != nil {
		t.Fatal(err)
	}

	// What another start finds of them on the host is known by the end of its name.
	n.KillIPAMD()
	if err := n.StartIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
	add("new2")
	checkHolders(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
	for _, pod := range []string{"old2", "new1", "new2"} {
		if err := l.PodDel(t.Context(), "n1", namespace, pod); err != nil {
			t.Fatal(err)
		}
	}
	checkHolders(t, l, n)
	eventually(t, time.Minute, "no pod's link is left", func() bool {
		show()
		for _, name := range []string{
			names.HostVeth("eni", namespace, "old1", 0), names.HostVeth("eni", namespace, "old2", 0),
			names.HostVeth("pod", namespace, "new1", 0), names.HostVeth("pod", namespace, "new2", 0),
		} {
			if strings.Contains(links, name) {
				return false
			}
		}
		return true
	})
}
