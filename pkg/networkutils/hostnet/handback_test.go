package hostnet

import (
	"strings"
	"testing"
)

// IPv6 and dual-stack pods are handed back with rules of their own, and go on.
func TestHandBackOfIPv6(t *testing.T) {
	t.Parallel()
	v := newVPC(t, 1)
	v.applyTwice(with(v.configDual(), func(c *Config) { c.BranchPods = BranchStrict }))
	for _, pods := range []int{2, 0} {
		done, err := v.host.HandBack(t.Context(), true)
		if err != nil || !done.Marks || done.Pods != pods {
			t.Fatalf("%+v, %v", done, err)
		}
		if got := sortRules(v.Run("ip", "-6", "-details", "rule")); got != `0:	from fe80:ec2::1 ipproto ipv6-icmp lookup local proto unspec
20:	from all lookup local proto unspec
512:	from all to 2001:db8:10:1:a::11 lookup main proto unspec
512:	from all to 2001:db8:10:1:b::31 lookup main proto unspec
1024:	from all fwmark 0x80/0x80 lookup main proto unspec
1536:	from 2001:db8:10:1:b::31 lookup 2 proto unspec
32765:	from 2001:db8:10:1::30 lookup 2 proto unspec
32766:	from all lookup main proto kernel` {
			t.Fatalf("rules:\n%s", got)
		}
	}
	routes := v.Run("sh", "-c", "ip -6 route show table 5120; ip -6 route show table 5121; ip -6 route")
	for _, want := range []string{plan6.pod0 + " dev eni0000000000a metric 1024", plan6.pod1 + " dev eni0000000000b metric 1024"} {
		if strings.Count(routes, want) != 1 {
			t.Errorf("not once in main alone %q:\n%s", want, routes)
		}
	}
	if strings.Contains(routes, "unreachable") {
		t.Errorf("what the predecessor does not know of:\n%s", routes)
	}
	if done, err := v.host.HandBack(t.Context(), false); err != nil || done.Marks {
		t.Fatalf("%+v, %v", done, err)
	}
	if tables := v.Run("nft", "list", "tables"); strings.Contains(tables, "vpc-cni") {
		t.Errorf("tables left:\n%s", tables)
	}
	for _, c := range []struct{ from, to, seen string }{
		{"pod0", plan6.peer, plan6.pod0}, {"pod1", plan6.peer, plan6.pod1}, {"pod1", plan6.internet, plan6.pod1},
		{"pod0", plan6.pod1, plan6.pod0}, {"pod1", plan6.node, plan6.pod1}, {"pod1", plan4.peer, plan4.pod1},
	} {
		ns := v.pod0
		if c.from == "pod1" {
			ns = v.pod1
		}
		if seen, err := seenBy(ns, "", on(c.to, 80)); err != nil || seen != c.seen {
			t.Errorf("%s to %s: seen as %q, want %q (%v)", c.from, c.to, seen, c.seen, err)
		}
	}
	v.noneDropped()
	v.applyTwice(v.configDual())
	v.paths(plan6)
}
