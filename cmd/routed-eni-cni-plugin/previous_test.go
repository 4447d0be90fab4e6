package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

// Results as versions of the predecessor printed them and a runtime hands them back, by file in testdata. Each is of
// the pod default/sample-pod with the address 192.168.1.1 (and 192.168.2.1).
var previousResults = []struct {
	file     string
	multiNIC bool
	vlan     int
}{
	{file: "v1.19.json"},
	{file: "v1.23.json"},
	{file: "v1.23-multi-nic.json", multiNIC: true},
	{file: "v1.23-egress.json"},
	{file: "v1.23-branch.json", vlan: 7},
	{file: "v1.23-branch-v6.json", vlan: 7},
}

// predecessor lays on the host what those versions made for such a pod, and returns the state of a host without it.
func (n *node) predecessor(netns string, vlan int, multiNIC bool) (bare string) {
	n.Helper()
	ip := func(args string) { n.Helper(); n.host.Run("ip", strings.Fields(args)...) }
	pod := func(index, table int, addr string) {
		veth := names.HostVeth("eni", "default", "sample-pod", index)
		family := "-4"
		if strings.Contains(addr, ":") {
			family = "-6"
		}
		ip(family + " route add " + addr + " dev " + veth + " scope link")
		ip(family + " rule add to " + addr + " lookup main prio 512")
		for _, to := range []string{"", " to 198.18.0.0/15"} { // long ago, a rule for each range of the VPC
			if family == "-6" && to != "" {
				continue
			}
			ip(fmt.Sprintf("%s rule add from %s%s lookup %d prio 1536", family, addr, to, table))
		}
	}
	for index, inside := range []string{"eth0", "mNicIf1"} {
		veth := names.HostVeth("eni", "default", "sample-pod", index)
		ip("link add " + veth + " type veth peer name " + inside + " netns " + netns)
		ip("link set " + veth + " up")
	}
	bare = n.state()
	switch {
	case vlan != 0:
		// A dummy in the place of the VLAN link: the kernel of the test machine may have no 8021q.
		ip("link add vlan.eth.7 type veth peer name trunk")
		ip("link set vlan.eth.7 up")
		for _, family := range []string{"-4", "-6"} {
			ip(family + " rule add iif vlan.eth.7 lookup 107 prio 10")
			ip(family + " rule add iif " + names.HostVeth("eni", "default", "sample-pod", 0) + " lookup 107 prio 10")
		}
		ip("route add default dev vlan.eth.7 table 107")
		ip("route add 192.168.1.1 dev " + names.HostVeth("eni", "default", "sample-pod", 0) + " table 107")
		pod(0, 107, "192.168.1.1")
		pod(0, 107, "2001:db8::1")
	case multiNIC:
		pod(0, 2, "192.168.1.1")
		pod(1, 10100, "192.168.2.1")
	default:
		pod(0, 2, "192.168.1.1")
	}
	return bare
}

// state is what pods have on the host.
func (n *node) state() string {
	return n.routes() + n.host.Run("sh", "-c", "ip rule; ip -6 rule; ip -br link | cut -d' ' -f1 | sort")
}

func (n *node) previous(file string) sandbox {
	n.Helper()
	text, err := os.ReadFile("testdata/previous/" + file)
	if err != nil {
		n.Fatal(err)
	}
	s := n.sandbox("c1", "sample-pod")
	s.prevResult = string(text)
	return s
}

func TestDelOfThePredecessorsPods(t *testing.T) {
	for _, tt := range previousResults {
		t.Run(tt.file, func(t *testing.T) {
			// All that is known is in prevResult.
			n := newNode(t, ipamdtest.Config{DelError: "another version's"})
			s := n.previous(tt.file)
			bare := n.predecessor(s.netns, tt.vlan, tt.multiNIC)
			if tt.vlan != 0 {
				// A late DEL: the VLAN may be a newer sandbox's.
				late := s
				late.netns = ""
				before := n.state()
				n.mustRun("DEL", late)
				if after := n.state(); after != before {
					t.Errorf("a DEL without namespace changed\n%s\nto\n%s", before, after)
				}
			}
			n.mustRun("DEL", s)
			got := n.state()
			if tt.vlan != 0 { // the pod has one family, and the other one is not known
				got, bare = family(tt.file, got), family(tt.file, bare)
			}
			if got != bare {
				t.Errorf("DEL leaves\n%s\nwant\n%s", got, bare)
			}
			if notes := n.notes(); len(notes) != 0 == (tt.vlan != 0) {
				t.Errorf("notes for ipamd: %v", notes)
			}
		})
	}
}

// family leaves the lines that a pod of the file's family can have.
func family(file, state string) string {
	var kept []string
	for line := range strings.Lines(state) {
		v6 := strings.Contains(line, "2001:db8") || strings.Contains(line, "prio 10")
		v4 := strings.Contains(line, "192.168.")
		if strings.Contains(file, "v6") && !v4 || !strings.Contains(file, "v6") && !v6 {
			if !strings.HasPrefix(line, "10:") {
				kept = append(kept, line)
			}
		}
	}
	return strings.Join(kept, "")
}

// With ipamd's answer prevResult is not needed, and what makes no sense in it does no harm.
func TestDelWithoutAUsablePreviousResult(t *testing.T) {
	for name, edit := range map[string]func(string) string{
		"none":            func(string) string { return "" },
		"VLAN is no one":  func(s string) string { return strings.Replace(s, `"mac": "0"`, `"mac": "many"`, 1) },
		"VLAN is too big": func(s string) string { return strings.Replace(s, `"mac": "0"`, `"mac": "99999"`, 1) },
		"no interfaces": func(string) string {
			return `{"cniVersion":"0.4.0","ips":[{"version":"4","address":"192.168.1.1/32"}]}`
		},
		"index is wild": func(s string) string { return strings.Replace(s, `"interface": 1`, `"interface": 77`, 1) },
		"foreign":       func(s string) string { return strings.ReplaceAll(s, "cc21c2d7785", "00000000000") },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, ipamdtest.Config{})
			s := n.sandbox("c1", "sample-pod")
			s.prevResult = edit(n.mustRun("ADD", s))
			n.mustRun("DEL", s)
			n.mustRun("DEL", s)
			if n.ipamd.Held() != 0 || n.routes() != "" {
				t.Errorf("left behind: %d addresses, routes %q", n.ipamd.Held(), n.routes())
			}
		})
	}
}

// CHECK of a pod that the predecessor wired asks where packets go, not who laid the routes.
func TestCheckOfAResultOfThePredecessor(t *testing.T) {
	n := newNode(t, ipamdtest.Config{})
	s := n.sandbox("c1", "sample-pod")
	s.prevResult = n.mustRun("ADD", s)
	n.host.Run("ip", "route", "flush", "table", "5120")
	for _, old := range []string{s.prevResult, strings.Replace(s.prevResult, `"mac": "254",`, "", 1)} {
		s.prevResult = old
		n.mustRun("CHECK", s)
	}
	s.prevResult = ""
	if code, message := n.mustFail("CHECK", s); code != 7 {
		t.Errorf("CHECK without prevResult: %d %s", code, message)
	}
	ns := nstest.New(t)
	s.prevResult, s.netns = n.mustRun("ADD", n.sandbox("c2", "other")), ns.Path()
	n.mustFail("CHECK", s)
}
