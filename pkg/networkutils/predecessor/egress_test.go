package predecessor

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"vpccni/pkg/networkutils/nstest"
)

// egressState is what the predecessor's egress plugin leaves for a pod, in a backend of iptables.
func egressState(program, version, addr, to string) string {
	multicast, family := "224.0.0.0/4", "IPv4"
	subnet := "169.254.172.0/22"
	if version == "6" {
		multicast, family, subnet = "ff00::/8", "IPv6", "fd00::ac:0/118"
	}
	chain := "CNI-E" + version + "-5740307710ebfd5fb24f5"
	comment := `-m comment --comment 'name: "aws-cni" id: "containerId-123"'`
	return fmt.Sprintf(`
%[1]s -t nat -N %[2]s
%[1]s -t nat -A %[2]s -d %[3]s %[4]s -j ACCEPT
%[1]s -t nat -A %[2]s %[4]s -j SNAT --to-source %[5]s --random-fully
%[1]s -t nat -A POSTROUTING -s %[6]s %[4]s -j %[2]s
%[1]s -t nat -N KUBE-POSTROUTING
%[1]s -t nat -A POSTROUTING -j KUBE-POSTROUTING
%[1]s -I FORWARD 1 -d %[7]s -m conntrack --ctstate NEW -m comment --comment "Block Node Local Pod access via %[8]s" -j REJECT
%[1]s -A FORWARD -d %[7]s -m comment --comment "another program" -j ACCEPT
`, program, chain, multicast, comment, to, addr, subnet, family)
}

// TestSweepEgress: chains of pods, the jumps to them and the rule that keeps pods apart go when ours stand; what is somebody
// else's stays, and everything stays while ours do not stand.
func TestSweepEgress(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		program, version, addr, to string
		on                         Options
	}{
		{"iptables-nft", "4", "169.254.172.2", "10.0.1.10", Options{EgressV4: true}},
		{"iptables-legacy", "4", "169.254.172.2", "10.0.1.10", Options{EgressV4: true}},
		{"ip6tables-nft", "6", "fd00::ac:2", "2001:db8::10", Options{EgressV6: true}},
	} {
		t.Run(tt.program, func(t *testing.T) {
			t.Parallel()
			ns := nstest.New(t)
			lock := filepath.Join(t.TempDir(), "lock")
			sh := func(script string) string {
				return ns.Run("sh", "-e", "-c", "export XTABLES_LOCKFILE="+lock+"\n"+script)
			}
			sh(egressState(tt.program, tt.version, tt.addr, tt.to))
			save := func() string { return sh(tt.program + "-save | grep -v -e '^#' -e '^:[A-Z]* [A-Z]* '; true") }
			before := save()
			off, on := Options{NetNS: ns.FD(), Lock: lock}, tt.on
			on.NetNS, on.Lock = ns.FD(), lock
			if r, err := Sweep(t.Context(), off, nil); err != nil || r.Any() || save() != before {
				t.Fatalf("without rules of ours: %+v %v\n%s", r, err, save())
			}
			r, err := Sweep(t.Context(), on, nil)
			if err != nil || !r.Any() {
				t.Fatalf("%+v %v", r, err)
			}
			var want strings.Builder
			for line := range strings.Lines(before) {
				if !strings.Contains(line, "CNI-E") && !strings.Contains(line, "Block Node Local") {
					want.WriteString(line)
				}
			}
			if got := save(); got != want.String() || !strings.Contains(got, "KUBE-POSTROUTING") || !strings.Contains(got, "another program") {
				t.Errorf("after the sweep:\n%s\nwant\n%s", got, &want)
			}
			if r, err := Sweep(t.Context(), on, nil); err != nil || r.Any() {
				t.Errorf("the second sweep: %+v %v", r, err)
			}
		})
	}
}
