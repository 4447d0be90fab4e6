package plugin

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

func branchCall(t *testing.T, conf string) *call {
	t.Helper()
	c, err := parseConfig([]byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	return &call{
		args: &skel.CmdArgs{IfName: "eth0", Netns: "/run/netns/pod1", ContainerID: "c1"}, conf: c,
		pod: podArgs{podName: "sample-pod", podNamespace: "default"}, log: slog.New(slog.DiscardHandler),
	}
}

// Results of pods on branch ENIs are those of the predecessor to the letter, and are read back.
func TestBranchResults(t *testing.T) {
	t.Parallel()
	reply4 := addReply{addresses: []metadata{{ipv4: "192.168.1.1", device: -1}}, vlan: 7, branchMAC: "02:00:00:00:07:07", branchRouter: "192.168.0.1", trunk: 3}
	reply6 := addReply{addresses: []metadata{{ipv6: "2001:db8::1", device: -1}}, vlan: 7, branchMAC: "02:00:00:00:07:07", branchRouter: "fe80:ec2::1", trunk: 3}
	perPod := reply4
	perPod.perPodRules = true
	for _, tt := range []struct {
		file, mode string
		reply      addReply
		veth       string
		ruleTable  int
	}{
		{"v1.23-branch.json", `"standard"`, reply4, "enicc21c2d7785", 0},
		{"v1.23-branch.json", `"standard"`, perPod, "enicc21c2d7785", 107},
		{"v1.23-branch-v6.json", `"standard"`, reply6, "enicc21c2d7785", 0},
		{"v1.23-branch.json", `"strict"`, reply4, "vlancc21c2d7785", 0},
		{"v1.23-branch.json", `""`, perPod, "vlancc21c2d7785", 0},
		{"v1.23-branch-v6.json", `null`, reply6, "vlancc21c2d7785", 0},
	} {
		t.Run(tt.file+tt.mode, func(t *testing.T) {
			t.Parallel()
			c := branchCall(t, `{"cniVersion":"0.4.0","name":"aws-cni","type":"aws-cni","podSGEnforcingMode":`+tt.mode+`}`)
			list, interfaces, err := c.wanted(tt.reply)
			if err != nil {
				t.Fatal(err)
			}
			if got := interfaces[0].RuleTable; got != tt.ruleTable {
				t.Errorf("rules of its own with table %d, want %d", got, tt.ruleTable)
			}
			result, err := c.result(list, interfaces).GetAsVersion("0.4.0")
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := result.PrintTo(&out); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile("../testdata/previous/" + tt.file)
			if err != nil {
				t.Fatal(err)
			}
			text = []byte(strings.Replace(string(text), "enicc21c2d7785", tt.veth, 1))
			var got, want any
			if err := json.Unmarshal(out.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%s\nwant\n%s", &out, text)
			}
			again := branchCall(t, `{"cniVersion":"0.4.0","name":"aws-cni","type":"aws-cni","prevResult":`+out.String()+`}`)
			prev := again.previous()
			if prev == nil || prev.vlan != 7 || len(prev.interfaces) != 1 || prev.interfaces[0].hostVeth != tt.veth ||
				prev.interfaces[0].address != list[0].address || prev.interfaces[0].gateway.String() != tt.reply.branchRouter {
				t.Errorf("read back as %+v", prev)
			}
		})
	}
}

// The mode comes from the configuration alone; one that is not known wires nothing, whoever let it pass.
func TestUnknownEnforcingMode(t *testing.T) {
	t.Parallel()
	c := branchCall(t, `{"cniVersion":"0.4.0","name":"aws-cni","type":"aws-cni","podSGEnforcingMode":"lenient"}`)
	reply := addReply{addresses: []metadata{{ipv4: "192.168.1.1"}}, vlan: 7, branchMAC: "02:00:00:00:07:07", branchRouter: "192.168.0.1", trunk: 3}
	if _, _, err := c.wanted(reply); err == nil || !strings.Contains(err.Error(), "lenient") {
		t.Errorf("got %v", err)
	}
}

// GC takes what it knows to be nobody's: a VLAN link that names a sandbox which the runtime does not list.
func TestGarbageOfBranchENIs(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	owner := func(container, veth string, age time.Duration) podnet.Owner {
		return podnet.Owner{ContainerID: container, IfName: "eth0", HostVeth: veth, Since: now.Add(-age)}
	}
	list := []branchPod{
		{1, owner("alive", "vlan00000000001", time.Hour)},
		{2, owner("gone", "vlan00000000002", time.Hour)},
		{3, owner("young", "eni00000000003", time.Minute)},
		{4, owner("gone2", "eni00000000004", time.Hour)},
		{5, owner("renamed", "vlan00000000001", time.Hour)}, // its next sandbox has another VLAN, and lives
	}
	plan := collection{kept: map[string]bool{"00000000004": true}} // an ordinary pod of the same name lives
	gone := plan.sortBranches(list, map[types.GCAttachment]bool{{ContainerID: "alive", IfName: "eth0"}: true}, now)
	var vlans []int
	for _, b := range gone {
		vlans = append(vlans, b.vlan)
	}
	if !reflect.DeepEqual(vlans, []int{2, 4, 5}) {
		t.Errorf("VLANs %v are garbage, want 2, 4 and 5", vlans)
	}
	for link, want := range map[string]bool{
		"vlan00000000001": false, "vlan00000000002": true, "eni00000000003": false, "eni00000000004": false, "eni00000000009": true,
	} {
		if got := plan.isGarbage(link, "eni") || plan.isBranchGarbage(link, gone); got != want {
			t.Errorf("%s is garbage: %v, want %v", link, got, want)
		}
	}
}
