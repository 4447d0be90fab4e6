package main

import (
	"strings"
	"testing"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/nstest"
	"vpccni/rpc"
)

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
		"namespace is gone":         {func(_ *node, s *sandbox) { s.netns = "/run/netns/gone" }, "no such file", false},
		"namespace is no netns":     {func(_ *node, s *sandbox) { s.netns = "/dev/null" }, "invalid argument", true},
		"name is taken":             {taken, "file exists", true},
		"answer without address":    {edit(func(r *rpc.AddNetworkReply) { r.IPAllocationMetadata = nil }), "no address", true},
		"answer with bad address":   {edit(func(r *rpc.AddNetworkReply) { r.IPAllocationMetadata[0] = &rpc.IPAllocationMetadata{} }), "no usable address", true},
		"answer with a bad address": {edit(func(r *rpc.AddNetworkReply) { r.IPAllocationMetadata[0].IPv4Addr = "10.0.0.256" }), "no usable address", true},
		"answer with a multicast":   {edit(func(r *rpc.AddNetworkReply) { r.IPAllocationMetadata[0].IPv4Addr = "224.0.0.1" }), "no address for a pod", true},
		"second interface fails": {edit(func(r *rpc.AddNetworkReply) {
			r.IPAllocationMetadata = append(r.IPAllocationMetadata, &rpc.IPAllocationMetadata{IPv4Addr: "0.0.0.0"})
		}), "no address for a pod", true},
		"policy agent is away": {edit(func(r *rpc.AddNetworkReply) { r.NetworkPolicyMode = "strict" }), "failed to setup network policy", true},
		"policy agent is away, rules per pod": {edit(func(r *rpc.AddNetworkReply) {
			r.NetworkPolicyMode, r.PerPodRules, r.IPAllocationMetadata[0].RouteTableId = "strict", true, 2
		}), "failed to setup network policy", true},
		// A kernel without VLANs says so; one with them misses the trunk.
		"branch ENI without its trunk": {edit(branchENI(func(r *rpc.AddNetworkReply) { r.ParentIfIndex = 4711 })), "add command: failed to setup network", true},
		"branch ENI without MAC":       {edit(branchENI(func(r *rpc.AddNetworkReply) { r.PodENIMAC = "" })), "no usable branch ENI", true},
		"branch ENI without gateway":   {edit(branchENI(func(r *rpc.AddNetworkReply) { r.PodENISubnetGW = "" })), "no usable gateway", true},
		"branch ENI's VLAN is none":    {edit(branchENI(func(r *rpc.AddNetworkReply) { r.PodVlanId = 4095 })), "no number of a VLAN", true},
		"branch ENI's VLAN is less":    {edit(branchENI(func(r *rpc.AddNetworkReply) { r.PodVlanId = -1 })), "no number of a VLAN", true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ipamdtest.Config{})
			s := n.sandbox("c1", "web-0")
			tt.breakIt(n, &s)
			code, message := n.mustFail("ADD", s)
			if code != 999 || !strings.Contains(message, tt.want) {
				t.Errorf("got %d %q", code, message)
			}
			if n.pods() != 0 || n.routes() != "" || n.podRules() != "" || n.ipamd.Held() != 0 {
				t.Errorf("left behind: %d veths, %d addresses, routes %q, rules %q", n.pods(), n.ipamd.Held(), n.routes(), n.podRules())
			}
			if state := n.state(); strings.Contains(state, "vlan") || strings.Contains(state, "1536:") {
				t.Errorf("left behind:\n%s", state)
			}
			if dels := n.ipamd.Dels(); tt.released != (len(dels) == 1 && dels[0].GetReason() == "SetupNSFailed") {
				t.Errorf("ipamd was told %v", dels)
			}
		})
	}
}

// branchENI makes a reply that of a pod on a branch ENI, with a mistake.
func branchENI(mistake func(*rpc.AddNetworkReply)) func(*rpc.AddNetworkReply) {
	return func(r *rpc.AddNetworkReply) {
		ipamdtest.Branch{VLAN: 7, MAC: "02:00:00:00:07:07", Gateway: "10.0.0.1", Trunk: 1}.Fill(r)
		mistake(r)
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
		"unknown argument":    {conf: conf(``), args: "COLOUR=hunter2", code: 999},
		"no argument":         {conf: conf(``), args: "hunter2", code: 999},
		"two values":          {conf: conf(``), args: "K8S_POD_NAME=a=hunter2", code: 999},
		"neither nor":         {conf: conf(``), args: "IgnoreUnknown=hunter2", code: 999},
	} {
		t.Run(name, func(t *testing.T) {
			for _, command := range []string{"ADD", "DEL"} {
				s := n.sandbox("c1", "web-0")
				s.conf, s.args = tt.conf, tt.args
				code, message := n.mustFail(command, s)
				if code != tt.code {
					t.Errorf("%s: got %d %q, want %d", command, code, message, tt.code)
				}
				if name != "no argument" && strings.Contains(message, "hunter2") {
					t.Errorf("%s: the error has a value of CNI_ARGS: %s", command, message)
				}
			}
		})
	}
	// What only ADD needs keeps no pod from going.
	for _, more := range []string{`,"podSGEnforcingMode":"lenient"`, `,"podSourceCheck":"never"`} {
		s := n.sandbox("c1", "web-0")
		s.conf = conf(more)
		if code, message := n.mustFail("ADD", s); code != 7 || !strings.Contains(message, "must be one of") {
			t.Errorf("%s: got %d %q", more, code, message)
		}
	}
	if adds, dels := n.ipamd.Adds(), n.ipamd.Dels(); len(adds)+len(dels) != 0 {
		t.Errorf("ipamd was asked: %v %v", adds, dels)
	}
}

// An ipamd that cannot record a release, and no room for a note either: the runtime has to try again. Once there is
// room for the note the pod goes.
func TestDelThatNobodyCouldRecord(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	s := n.sandbox("c1", "web-0")
	s.prevResult = n.mustRun("ADD", s)
	n.ipamd.Configure(func(c *ipamdtest.Config) {
		c.DelError = "Storage: the release could not be recorded: no space left on device"
	})
	mend := n.breakNote("c1")
	if code, message := n.mustFail("DEL", s); code != 11 || !strings.Contains(message, "no space left") {
		t.Errorf("%d %s", code, message)
	}
	mend()
	n.mustRun("DEL", s)
	if notes := n.notes(); len(notes) != 1 {
		t.Errorf("notes %v", notes)
	}
}
