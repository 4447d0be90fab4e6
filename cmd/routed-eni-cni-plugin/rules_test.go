package main

import (
	"net/netip"
	"strings"
	"testing"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/rpc"
)

// podRules are the rules that do not belong to the kernel.
func (n *node) podRules() string {
	n.Helper()
	return n.host.Run("sh", "-c", "for f in -4 -6; do ip $f rule | grep -vE 'lookup (local|main|default) *$' ; ip $f rule | grep -E '^(512|1536):.*lookup main *$'; done | sort -u; true")
}

// With ipamd's word for it, pods get the rules of the other layout; DEL takes them in any case.
func TestRulesPerPod(t *testing.T) {
	for _, first := range []string{"10.0.0.1", "fd00:db8::1"} {
		t.Run(first, func(t *testing.T) {
			perPod := func(r *rpc.AddNetworkReply) { r.PerPodRules = true }
			n := newNode(t, ipamdtest.Config{First: netip.MustParseAddr(first), Tables: []int{254, 2, 0, 10101}, Edit: perPod})
			second := strings.TrimSuffix(first, "1") + "2"
			// A DEL that was cut short has left a rule of the address's last pod.
			family := "-4"
			if strings.Contains(first, ":") {
				family = "-6"
			}
			n.host.Run("ip", family, "rule", "add", "from", second, "lookup", "3", "priority", "1536")
			var pods []sandbox
			for _, name := range []string{"web-1", "web-2", "web-3", "web-4"} {
				s := n.sandbox("c-"+name, name)
				s.prevResult = n.mustRun("ADD", s)
				n.mustRun("ADD", s)
				n.mustRun("CHECK", s)
				pods = append(pods, s)
			}
			want := strings.ReplaceAll(`1536:	from A2 lookup 2
1536:	from A4 lookup 10101
512:	from all to A1 lookup main
512:	from all to A2 lookup main
512:	from all to A3 lookup main
512:	from all to A4 lookup main
`, "A", strings.TrimSuffix(first, "1"))
			if got := n.podRules(); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			// A pod of the other layout is a neighbour.
			n.ipamd.Configure(func(c *ipamdtest.Config) { c.Edit = nil })
			other := n.sandbox("c-other", "other")
			other.prevResult = n.mustRun("ADD", other)
			if got := n.podRules(); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			n.mustRun("DEL", other)
			for _, s := range pods[:2] {
				n.mustRun("DEL", s)
			}
			// Without ipamd's word, what the ADD reported says it.
			n.ipamd.Configure(func(c *ipamdtest.Config) { c.DelError = "datastore: unknown pod" })
			for _, s := range pods[2:] {
				n.mustRun("DEL", s)
			}
			if got := n.podRules(); got != "" || n.routes() != "" {
				t.Errorf("left:\n%s%s", got, n.routes())
			}
		})
	}
}

// CHECK asks where packets go, so it finds a missing rule wherever something else catches the packet then.
func TestCheckWithRulesPerPod(t *testing.T) {
	n := newNode(t, ipamdtest.Config{First: netip.MustParseAddr("10.0.0.1"), Edit: func(r *rpc.AddNetworkReply) { r.PerPodRules = true }})
	s := n.sandbox("c1", "web-1")
	s.prevResult = n.mustRun("ADD", s)
	// As ipamd lays it down for addresses that no pod has.
	n.host.Run("sh", "-e", "-c", "ip route add unreachable 10.0.0.1 table 5121; ip rule add priority 513 lookup 5121")
	n.mustRun("CHECK", s)
	n.host.Run("ip", "rule", "del", "to", "10.0.0.1")
	if code, message := n.mustFail("CHECK", s); code != 999 || !strings.Contains(message, "route to 10.0.0.1") {
		t.Errorf("got %d %s", code, message)
	}
	n.host.Run("ip", "rule", "add", "priority", "512", "lookup", "5120")
	n.mustRun("CHECK", s)
}
