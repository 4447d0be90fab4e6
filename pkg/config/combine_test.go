package config

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// TestReferenceNames: whoever comes from upstream finds every variable, and what we added is marked as ours.
func TestReferenceNames(t *testing.T) {
	t.Parallel()
	f, err := os.Open("testdata/reference-names.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	reference := map[string]bool{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name := strings.TrimSpace(lines.Text()); name != "" && !strings.HasPrefix(name, "#") {
			reference[name] = true
		}
	}
	if len(reference) < 70 {
		t.Fatalf("only %d names in the list", len(reference))
	}
	for _, v := range table {
		r := v.describe()
		if reference[r.name] == (r.status == string(ours)) {
			t.Errorf("%s: in the reference %v, status %q", r.name, reference[r.name], r.status)
		}
		delete(reference, r.name)
		if r.kind == "" || r.valid == "" || r.invalid == "" || r.effect == "" {
			t.Errorf("%s: a column is empty: %+v", r.name, r)
		}
	}
	for name := range reference {
		t.Errorf("%s is not in the table", name)
	}
}

func TestContradictions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		env  []string
		want []string // each a line of the error
	}{
		{"no family", nil, []string{"ENABLE_IPv4 and ENABLE_IPv6: neither is true"}},
		{"both families", []string{"ENABLE_IPv4=1", "ENABLE_IPv6=1", "ENABLE_PREFIX_DELEGATION=1", "WARM_PREFIX_TARGET=1"},
			[]string{"ENABLE_IPv4 and ENABLE_IPv6: both are true"}},
		{"IPv6 with what it does not go with", []string{"ENABLE_IPv6=1", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=1", "AWS_VPC_ENI_MTU=1279", "POD_MTU=600"},
			[]string{"ENABLE_IPv6: needs ENABLE_PREFIX_DELEGATION=true", "ENABLE_IPv6 and AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG: cannot both be true",
				"AWS_VPC_ENI_MTU=1279: IPv6 needs 1280", "POD_MTU=600: IPv6 needs 1280"}},
		{"prefixes without a target", []string{"ENABLE_IPv4=1", "ENABLE_PREFIX_DELEGATION=1"}, []string{"ENABLE_PREFIX_DELEGATION: needs one of"}},
		{"an unknown way to enforce security groups", []string{"ENABLE_IPv4=1", "ENABLE_POD_ENI=1", "POD_SECURITY_GROUP_ENFORCING_MODE=loose"},
			[]string{"POD_SECURITY_GROUP_ENFORCING_MODE: with ENABLE_POD_ENI=true"}},
		{"a mark that leaves no room", []string{"ENABLE_IPv4=1", "AWS_VPC_K8S_CNI_CONNMARK=0x18"}, []string{"AWS_VPC_K8S_CNI_CONNMARK=0x18: leaves no 4 adjacent bits"}},
		{"the plugin's output is the runtime's", []string{"ENABLE_IPv4=1", "AWS_VPC_K8S_PLUGIN_LOG_FILE=stdout"}, []string{`AWS_VPC_K8S_PLUGIN_LOG_FILE="stdout"`}},
		{"an empty MTU", []string{"ENABLE_IPv4=1", "POD_MTU="}, []string{`POD_MTU=""`}},
	} {
		_, err := Load(env(tc.env...))
		if err == nil {
			t.Errorf("%s: accepted", tc.name)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains("\n"+err.Error(), "\n"+want) {
				t.Errorf("%s: no line %q in\n%v", tc.name, want, err)
			}
		}
	}
}

// What works, but not as whoever set it may think, is said on the variable itself.
func TestOverruled(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		env  string // separated by spaces; the note is on the first
		note string // empty: none
	}{
		{"AWS_VPC_K8S_CNI_CONNMARK=0x4000", "kube-proxy"},
		{"AWS_VPC_K8S_CNI_CONNMARK=0x8000", "kube-proxy"},
		{"AWS_VPC_K8S_CNI_CONNMARK=0x2000", "portmap"},
		{"AWS_VPC_K8S_CNI_CONNMARK=0x200", "Cilium"},
		{"AWS_VPC_K8S_CNI_CONNMARK=0x10000", "Calico"},
		{"AWS_VPC_K8S_CNI_CONNMARK=0x80", ""},
		{"MINIMUM_IP_TARGET=3 WARM_IP_TARGET=3", "has no effect: WARM_IP_TARGET=3"},
		{"MINIMUM_IP_TARGET=4 WARM_IP_TARGET=3", ""},
		{"MINIMUM_IP_TARGET=4", "only when a pod waits"},
		{"WARM_PREFIX_TARGET=1", "ENABLE_PREFIX_DELEGATION is false"},
		{"WARM_PREFIX_TARGET=1 ENABLE_PREFIX_DELEGATION=true MINIMUM_IP_TARGET=1", "MINIMUM_IP_TARGET is set"},
		{"ENI_CONFIG_LABEL_DEF=zone", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG is false"},
		{"POD_SECURITY_GROUP_ENFORCING_MODE=standard", "ENABLE_POD_ENI is false"},
		{"POD_SECURITY_GROUP_ENFORCING_MODE=strict", ""},
		{"INTROSPECTION_BIND_ADDRESS=0.0.0.0:61679", "not a loopback"},
		{"INTROSPECTION_BIND_ADDRESS=:61679", "not a loopback"},
		{"INTROSPECTION_BIND_ADDRESS=127.0.0.1:61678", "has this port"},
		{"INTROSPECTION_BIND_ADDRESS=127.0.0.1:61678 DISABLE_METRICS=1", ""},
		{"INTROSPECTION_BIND_ADDRESS=[::1]:1", ""},
		{"AWS_VPC_K8S_CNI_RANDOMIZESNAT=none AWS_VPC_K8S_CNI_EXTERNALSNAT=1", "EXTERNALSNAT is true"},
		{"POD_MTU=9001 AWS_VPC_ENI_MTU=1500", "larger than AWS_VPC_ENI_MTU=1500"},
		{"POD_MTU=1400 AWS_VPC_ENI_MTU=1500", ""},
		{"ENABLE_NFTABLES=true", "has no effect"},
		{"VPC_ID=vpc-1", ""},
		{"AWS_MAX_ATTEMPTS=5", ""},
	} {
		pairs := strings.Fields(tc.env)
		name, _, _ := strings.Cut(pairs[0], "=")
		got := value(t, load(t, pairs...), name)
		if got.Origin != FromEnv || (tc.note == "") != (got.Note == "") || !strings.Contains(got.Note, tc.note) {
			t.Errorf("%s: %+v, want a note with %q", tc.env, got, tc.note)
		}
	}
}

func TestPodMTU(t *testing.T) {
	t.Parallel()
	c := load(t, "AWS_VPC_ENI_MTU=1500")
	if got := value(t, c, "POD_MTU"); c.PodMTU != 1500 || got.Value != "1500" || got.Origin != FromOthers {
		t.Errorf("%d, %+v", c.PodMTU, got)
	}
	if c := load(t, "POD_MTU=1300"); c.PodMTU != 1300 {
		t.Errorf("%d", c.PodMTU)
	}
}

// Variables of another pod are documented, but are not this process's values.
func TestHelperVariablesAreNotOurs(t *testing.T) {
	t.Parallel()
	for _, v := range load(t, "METRIC_UPDATE_INTERVAL=soon").Effective() {
		if v.Name == "METRIC_UPDATE_INTERVAL" || v.Name == "USE_CLOUDWATCH" {
			t.Errorf("%+v", v)
		}
	}
}
