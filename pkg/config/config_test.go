package config

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"vpccni/pkg/networkutils/names"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md")

const docFile = "../../docs/configuration.md"

func env(pairs ...string) func(string) (string, bool) {
	m := map[string]string{}
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		m[name] = value
	}
	return func(name string) (string, bool) {
		v, ok := m[name]
		return v, ok
	}
}

func load(t *testing.T, pairs ...string) Config {
	t.Helper()
	c, err := Load(env(append([]string{"ENABLE_IPv4=true"}, pairs...)...))
	if err != nil {
		t.Fatalf("Load(%q): %v", pairs, err)
	}
	return c
}

func value(t *testing.T, c Config, name string) Value {
	t.Helper()
	for _, v := range c.Effective() {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("no value of %s", name)
	return Value{}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	got := load(t)
	got.values = nil
	want := Config{
		WarmENITarget: 1, IPCooldown: 30 * time.Second, AddWait: time.Minute, ShrinkDelay: time.Minute,
		IPv4: true, SecurityGroupMode: SecurityGroupStrict, SubnetDiscovery: true, ManageUntaggedENIs: true,
		HTTPTimeout:    10 * time.Second,
		CheckpointFile: "/var/run/aws-node/ipam.json", IntrospectionAddress: "127.0.0.1:61679",
		LogLevel: slog.LevelDebug, LogFile: "/host/var/log/aws-routed-eni/ipamd.log",
		SNATRandom: SNATRandomFully, NodePort: true, PrimaryMark: 0x80, ENIMask: 0x7f, MTU: 9001, VethPrefix: "eni", RuleLayout: RuleLayoutTables,
		ENIConfigLabel: "k8s.amazonaws.com/eniConfig", ENIConfigAnnotation: "k8s.amazonaws.com/eniConfig",
		BinDir: "/host/opt/cni/bin", ConfDir: "/host/etc/cni/net.d", PodMTU: 9001, SourceCheck: SourceCheckStrict,
		PluginLogFile: "/var/log/aws-routed-eni/plugin.log", PluginLogLevel: "Debug", V4Egress: true,
		EgressV4LogFile: "/var/log/aws-routed-eni/egress-v4-plugin.log", EgressV6LogFile: "/var/log/aws-routed-eni/egress-v6-plugin.log",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// The predecessor replaces these values by the default, some of them without a word.
func TestTolerated(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		set    string
		value  string
		origin Origin
	}{
		{"WARM_ENI_TARGET=", "1", FromDefault},
		{"WARM_ENI_TARGET=-1", "1", FromInvalid},
		{"WARM_ENI_TARGET=two", "1", FromInvalid},
		{"WARM_ENI_TARGET=0", "0", FromEnv},
		{"MAX_ENI=0", "0", FromInvalid},
		{"MAX_ENI=-1", "0", FromInvalid},
		{"MAX_ENI=3", "3", FromEnv},
		{"AWS_VPC_K8S_CNI_EXTERNALSNAT=TRUE", "true", FromEnv},
		{"AWS_VPC_K8S_CNI_EXTERNALSNAT=TrUe", "false", FromInvalid},
		{"AWS_VPC_K8S_CNI_EXTERNALSNAT=yes", "false", FromInvalid},
		{"AWS_VPC_CNI_NODE_PORT_SUPPORT=off", "true", FromInvalid},
		{"HTTP_TIMEOUT=9", "10", FromInvalid},
		{"HTTP_TIMEOUT=30", "30", FromEnv},
		{"ADDITIONAL_ENI_TAGS={", "{}", FromInvalid},
		{`ADDITIONAL_ENI_TAGS={"a":"b","x.k8s.amazonaws.com/y":"z"}`, `{"a":"b"}`, FromEnv},
		{"AWS_VPC_K8S_CNI_LOGLEVEL=INFO", "info", FromEnv},
		{"AWS_VPC_K8S_CNI_LOGLEVEL=loud", "debug", FromInvalid},
		{"AWS_VPC_K8S_CNI_LOG_FILE=", "/host/var/log/aws-routed-eni/ipamd.log", FromDefault},
		{"AWS_VPC_K8S_CNI_RANDOMIZESNAT=random", "prng", FromInvalid},
		{"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS=10.9.1.1/16, fd00::/8,nonsense,,10.1.0.0/24", "10.9.0.0/16,10.1.0.0/24", FromEnv},
		{"AWS_VPC_K8S_CNI_CONNMARK=0x40000", "0x40000", FromEnv},
		{"AWS_VPC_K8S_CNI_CONNMARK=0", "0x80", FromInvalid},
		{"AWS_VPC_K8S_CNI_CONNMARK=0x100000000", "0x80", FromInvalid},
		{"INTROSPECTION_BIND_ADDRESS=", "127.0.0.1:61679", FromDefault},
		{"INTROSPECTION_BIND_ADDRESS=unix:/run/x.sock", "unix:/run/x.sock", FromEnv},
		{"AWS_VPC_K8S_CNI_VETHPREFIX=", "eni", FromDefault},
		{"NETWORK_POLICY_ENFORCING_MODE=Standard", "standard", FromEnv},
	} {
		name, _, _ := strings.Cut(tc.set, "=")
		got := value(t, load(t, tc.set), name)
		if got.Value != tc.value || got.Origin != tc.origin {
			t.Errorf("%s: got %q (%s), want %q (%s)", tc.set, got.Value, got.Origin, tc.value, tc.origin)
		}
		if tc.origin != FromEnv && got.Note == "" {
			t.Errorf("%s: no note says why the value is not in force", tc.set)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, set := range []string{
		"IP_COOLDOWN_PERIOD=", "IP_COOLDOWN_PERIOD=-1", "IP_COOLDOWN_PERIOD=30s",
		"ADD_WAIT_TIMEOUT=81", "ADD_WAIT_TIMEOUT=1m",
		"AWS_VPC_ENI_MTU=", "AWS_VPC_ENI_MTU=575", "AWS_VPC_ENI_MTU=9002",
		"AWS_VPC_K8S_CNI_VETHPREFIX=eth", "AWS_VPC_K8S_CNI_VETHPREFIX=vlan", "AWS_VPC_K8S_CNI_VETHPREFIX=veths",
		"NETWORK_POLICY_ENFORCING_MODE=", "NETWORK_POLICY_ENFORCING_MODE=on", "NETWORK_POLICY_ENFORCING_MODE=strict",
		"ENABLE_IPv6=true", "ENABLE_PREFIX_DELEGATION=true", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true",
		"ENABLE_POD_ENI=true", "ENABLE_MULTI_NIC=true", "ANNOTATE_POD_IP=true",
		"AWS_VPC_K8S_CNI_CONNMARK=0x18",
	} {
		name, _, _ := strings.Cut(set, "=")
		_, err := Load(env("ENABLE_IPv4=true", set))
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got error %v, want one that names the variable", set, err)
		}
	}
}

// TestPrefixDelegation: it needs a target of its own, as upstream's entrypoint has it. The manifest sets one.
func TestPrefixDelegation(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"WARM_PREFIX_TARGET=1", "WARM_IP_TARGET=1", "MINIMUM_IP_TARGET=1"} {
		if c := load(t, "ENABLE_PREFIX_DELEGATION=true", target); !c.PrefixDelegation {
			t.Errorf("%s: no prefix delegation", target)
		}
	}
	for _, target := range []string{"WARM_ENI_TARGET=1", "WARM_PREFIX_TARGET=0", "WARM_PREFIX_TARGET=-1"} {
		_, err := Load(env("ENABLE_IPv4=true", "ENABLE_PREFIX_DELEGATION=true", target))
		if err == nil || !strings.Contains(err.Error(), "needs one of WARM_PREFIX_TARGET, WARM_IP_TARGET and MINIMUM_IP_TARGET above 0") {
			t.Errorf("%s: got error %v", target, err)
		}
	}
	c := load(t, "ENABLE_PREFIX_DELEGATION=true", "WARM_PREFIX_TARGET=1", "WARM_ENI_TARGET=1")
	if note := value(t, c, "WARM_ENI_TARGET").Note; !strings.Contains(note, "ENABLE_PREFIX_DELEGATION") {
		t.Errorf("note of a target that loses is %q", note)
	}
}

func TestErrorsTogether(t *testing.T) {
	t.Parallel()
	_, err := Load(env("IP_COOLDOWN_PERIOD=x", "AWS_VPC_ENI_MTU=1", "ENABLE_POD_ENI=true"))
	want := `IP_COOLDOWN_PERIOD="x": not an integer
ENABLE_POD_ENI="true": not implemented in this version
AWS_VPC_ENI_MTU="1": not between 576 and 9001
ENABLE_IPv4 and ENABLE_IPv6: neither is true, and exactly one must be (both are false when unset)`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

func TestNotes(t *testing.T) {
	t.Parallel()
	c := load(t, "WARM_IP_TARGET=2", "WARM_ENI_TARGET=1",
		"AWS_VPC_K8S_CNI_EXTERNALSNAT=1", "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS=10.0.0.0/8,x")
	if note := value(t, c, "WARM_ENI_TARGET").Note; !strings.Contains(note, "WARM_IP_TARGET") {
		t.Errorf("note of a target that loses is %q", note)
	}
	if note := value(t, c, "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS").Note; !strings.Contains(note, `"x"`) ||
		!strings.Contains(note, "EXTERNALSNAT") {
		t.Errorf("note of excluded CIDRs is %q", note)
	}
	if c.ExcludeSNATCIDRs != nil {
		t.Errorf("excluded CIDRs %v with external SNAT", c.ExcludeSNATCIDRs)
	}
	for set, noted := range map[string]bool{
		"DISABLE_LEAKED_ENI_CLEANUP=true": false, "DISABLE_LEAKED_ENI_CLEANUP=false": false,
		"NETWORK_POLICY_ENFORCING_MODE=standard": true, "NETWORK_POLICY_ENFORCING_MODE=none": false,
	} {
		name, _, _ := strings.Cut(set, "=")
		if note := value(t, load(t, set), name).Note; (note != "") != noted {
			t.Errorf("%s: note %q", set, note)
		}
	}
	c = load(t, "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS=10.9.1.1/16")
	if want := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}; !reflect.DeepEqual(c.ExcludeSNATCIDRs, want) {
		t.Errorf("excluded CIDRs %v, want %v", c.ExcludeSNATCIDRs, want)
	}
}

func TestENIMask(t *testing.T) {
	t.Parallel()
	for mark, want := range map[uint32]uint32{
		names.DefaultPrimaryMark: names.DefaultENIMask,
		0x40000:                  names.DefaultENIMask,
		0x01:                     0xfe,
		0x40:                     0x3f,
		0x08:                     0xf0,
		0x10:                     0x0f,
	} {
		if got, err := eniMask(mark); err != nil || got != want {
			t.Errorf("eniMask(%#x) = %#x, %v; want %#x", mark, got, err, want)
		}
	}
	// Whatever the low bits: either the mark is refused, or the field is one run of 4 bits or more beside it.
	for mark := uint32(1); mark < 1<<10; mark++ {
		mask, err := eniMask(mark)
		if err != nil {
			continue
		}
		text := strings.Trim(fmt.Sprintf("%b", mask), "0")
		if mask&mark != 0 || len(text) < minENIBits || strings.Contains(text, "0") {
			t.Errorf("eniMask(%#x) = %#x", mark, mask)
		}
	}
}

// Every variable has a field, and every field a variable.
func TestTableFields(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	fields := 2 // ENIMask and values
	for _, v := range table {
		if _, is := v.(elsewhere); !is {
			fields++
		}
		name := v.describe().name
		if known[name] {
			t.Errorf("%s is in the table twice", name)
		}
		known[name] = true
	}
	if want := reflect.TypeFor[Config]().NumField(); fields != want {
		t.Errorf("%d variables and fields of their own, but Config has %d fields", fields, want)
	}
}

func TestMarkdown(t *testing.T) {
	t.Parallel()
	want := Markdown()
	if *update {
		if err := os.WriteFile(docFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s differs from the table; run go test ./pkg/config -update", docFile)
	}
}

// Whatever a variable is set to, the process either starts with a value for it or says which variable stops it.
func FuzzLoad(f *testing.F) {
	for _, text := range []string{"", "0", "-1", "true", "{}", "10.0.0.0/8,x", "0x80", "prng", "unix:", `{"k8s.amazonaws.com":""}`, "9223372036854775808"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, v := range table {
			if !own(v) {
				continue
			}
			name := v.describe().name
			c, err := Load(env("ENABLE_IPv4=true", name+"="+text))
			if err != nil {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("%s=%q: %v", name, text, err)
				}
				continue
			}
			if got := value(t, c, name); got.Origin != FromEnv && got.Note == "" {
				t.Errorf("%s=%q: %+v", name, text, got)
			}
			if c.PrimaryMark&c.ENIMask != 0 || c.IPCooldown < 0 || c.HTTPTimeout < minHTTPTimeout || c.MTU < minMTU {
				t.Errorf("%s=%q: %+v", name, text, c)
			}
		}
	})
}
