package slice

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/pkg/networkutils/names"
	"vpccni/test/upstream"
)

// TestRuleLayoutChaos: POD_RULE_LAYOUT changes there and back under pods with open connections, with an orderly
// restart and with a kill (CHAOS=1: more often). With rules per pod the node looks as upstream's end-to-end tests want it.
func TestRuleLayoutChaos(t *testing.T) {
	t.Parallel()
	l := lab(t, cluster.Spec{
		Nodes:       []cluster.NodeSpec{{Name: "n1", Type: "t3.medium", Env: map[string]string{}}, {Name: "n2", Type: "t3.medium"}},
		AttachDelay: 100 * time.Millisecond, DetachDelay: 100 * time.Millisecond,
		Env: map[string]string{"IP_COOLDOWN_PERIOD": "1"},
	})
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, 8) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	peer, err := l.PodAdd(t.Context(), "n2", namespace, "peer")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, "internet", hostDo(l, fabric.HostInternet), flowPort)
	var flows []*flow
	for _, p := range l.Pods("n1") {
		serve(t, p.Name, podDo(l, p), flowPort)
		flows = append(flows,
			openFlow(t, p.Name+" → internet", podDo(l, p), fabric.InternetAddr),
			openFlow(t, "peer → "+p.Name, podDo(l, peer), p.Address))
	}
	layouts := []string{"per-pod", "tables"}
	if os.Getenv("CHAOS") != "" {
		layouts = slices.Repeat(layouts, 4)
	}
	for i, layout := range layouts {
		orderly := i%4%3 == 0
		t.Logf("%s, orderly: %t", layout, orderly)
		if orderly {
			if err := n.StopIPAMD(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			n.KillIPAMD()
		}
		l.Spec().Nodes[0].Env["POD_RULE_LAYOUT"] = layout
		if err := n.StartIPAMD(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := l.PodAdd(t.Context(), "n1", namespace, "new"); err != nil {
			t.Fatal(err)
		}
		perPod := layout == "per-pod"
		eventually(t, time.Minute, "the rules are those of the layout", func() bool { return rulesAre(t, l, n, perPod) == nil })
		checkReachable(t, l)
		last := slices.DeleteFunc(hostPods(l, n), func(p upstream.HostPod) bool { return p.Veth != names.HostVeth("eni", namespace, "new", 0) })
		if err := l.PodDel(t.Context(), "n1", namespace, "new"); err != nil {
			t.Fatal(err)
		}
		// The veth goes with the pod's network namespace, in the kernel's own time.
		eventually(t, time.Minute, "nothing is left of the pod that went", func() bool {
			return n.OS().Do(func() error { return upstream.CheckTornDown(last[0]) }) == nil
		})
	}
	for _, f := range flows {
		f.close(t)
	}
	checkDrops(t, l)
	checkHolders(t, l, n)
}

// rulesAre compares the node's rules with a layout.
func rulesAre(t *testing.T, l *cluster.Cluster, n *cluster.Node, perPod bool) error {
	t.Helper()
	out, err := n.OS().Command(t.Context(), "ip", "rule").CombinedOutput()
	if err != nil {
		return err
	}
	if perPod == strings.Contains(string(out), "512:\tfrom all lookup 5120") {
		return fmt.Errorf("per pod: %t, but\n%s", perPod, out)
	}
	if !perPod {
		if strings.Contains(string(out), "1536:") || strings.Contains(string(out), "512:\tfrom all to") {
			return fmt.Errorf("rules of single pods are left:\n%s", out)
		}
		return nil
	}
	return n.OS().Do(func() error {
		for _, p := range hostPods(l, n) {
			if err := upstream.CheckSetUp(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// hostPods are the pods of a node as upstream's tests look for them.
func hostPods(l *cluster.Cluster, n *cluster.Node) []upstream.HostPod {
	var list []upstream.HostPod
	for _, p := range l.Pods(n.Name) {
		pod := upstream.HostPod{Address: p.Address, Veth: names.HostVeth("eni", p.Namespace, p.Name, 0), MTU: 9001}
		for _, e := range attachedENIs(l, n) {
			pod.Secondary = pod.Secondary || e.Attachment.Device > 0 && slices.Contains(e.Secondary, p.Address)
		}
		list = append(list, pod)
	}
	return list
}
