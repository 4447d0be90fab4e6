package cases

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
)

// private is a node in a subnet behind a NAT gateway, with pods on both ENIs.
var private = newShared(cluster.Spec{
	Name: "cases", Subnets: []cluster.Subnet{{Name: "private", CIDR: netip.MustParsePrefix("10.0.1.0/24"), Zone: "us-west-2a", Private: true}},
	Nodes: []cluster.NodeSpec{{Name: "n1", Type: "t3.medium"}},
}, 7)

func sourceNAT(t *testing.T) { sources(t, nil, false) }

func externalSourceNAT(t *testing.T) {
	sources(t, map[string]string{"AWS_VPC_K8S_CNI_EXTERNALSNAT": "true"}, true)
}

func excludedFromSNAT(t *testing.T) {
	excluded := netip.PrefixFrom(fabric.OnPremAddr, 24).Masked().String()
	sources(t, map[string]string{"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": excluded}, true)
}

// sources has every pod ask the internet, which sees the NAT gateway, and the network on premises, which sees the pod's
// address or the node's.
func sources(t *testing.T, env map[string]string, podSeen bool) {
	t.Helper()
	l := private.use(t)
	n := l.Nodes()[0]
	if env != nil {
		withEnv(t, l, n, env)
	}
	for host, name := range map[fabric.Host]string{fabric.HostInternet: "internet", fabric.HostOnPrem: "on-prem"} {
		server, err := probe.Serve(t.Context(), name, func(f func() error) error { return l.Fabric().Do(host, f) }, port)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Close() }()
	}
	on := map[bool]int{}
	for _, p := range l.Pods("n1") {
		on[device(l, n, p.Address) > 0]++
		if a, err := probe.TCP(t.Context(), podDo(l, p), netip.AddrPortFrom(fabric.InternetAddr, port), 10000, patient); err != nil || a.Source != fabric.NATAddr {
			t.Errorf("%s: the internet sees %s, %v", p.Name, a.Source, err)
		}
		want := n.Address
		if podSeen {
			want = p.Address
		}
		if a, err := probe.TCP(t.Context(), podDo(l, p), netip.AddrPortFrom(fabric.OnPremAddr, port), 10000, patient); err != nil || a.Source != want {
			t.Errorf("%s: on-prem sees %s, not %s, %v", p.Name, a.Source, want, err)
		}
	}
	if on[true] == 0 || on[false] == 0 {
		t.Errorf("%d pods on the primary ENI, %d on secondary ones", on[false], on[true])
	}
}

func randomizeSNAT(t *testing.T) {
	l := bare.use(t)
	n := l.Nodes()[0]
	list := func(what string) string {
		out, err := n.OS().Command(t.Context(), "sh", "-e", "-c", "nft list "+what).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	for _, setting := range []string{"prng", "none"} {
		withEnv(t, l, n, map[string]string{"AWS_VPC_K8S_CNI_RANDOMIZESNAT": setting})
		rule := "snat to " + n.Address.String()
		if setting == "prng" {
			rule += " fully-random"
		}
		eventually(t, "the rule for "+setting, func() error {
			if chain := list("chain ip vpc-cni postrouting"); !strings.Contains(chain, rule+"\n") {
				return errors.New(chain)
			}
			return nil
		})
	}
	if set := list("set ip vpc-cni exempt"); !strings.Contains(set, "elements = { "+l.Spec().CIDRs[0].String()+" }") {
		t.Errorf("the ranges of the VPC:\n%s", set)
	}
}
