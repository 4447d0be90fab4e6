package cases

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vpccni/lab/cluster"
	"vpccni/lab/ec2"
)

// logFile: the path is the container's; /host is where it has the node's disk.
func logFile(t *testing.T) {
	l := bare.use(t)
	n := l.Nodes()[0]
	const path = "/var/log/aws-routed-eni/ipamd_test.log"
	withEnv(t, l, n, map[string]string{"AWS_VPC_K8S_CNI_LOG_FILE": path})
	text, err := os.ReadFile(filepath.Join(n.OS().Disk(), path))
	if err != nil || !strings.Contains(string(text), `"msg":"ready"`) {
		t.Errorf("%s: %v\n%s", path, err, text)
	}
}

// noLeak: twice, so that what the first time adds to the pool is no leak.
func noLeak(t *testing.T) {
	l := leak.use(t)
	n := l.Nodes()[0]
	count := func() string {
		enis, addresses := 0, 0
		for _, e := range l.Cloud().ENIsOf(n.InstanceID) {
			enis++
			addresses += len(e.Secondary)
		}
		return fmt.Sprintf("%d ENIs, %d addresses", enis, addresses)
	}
	const start = "1 ENIs, 3 addresses"
	eventually(t, "warm addresses", func() error { return is(count(), start) })
	for range 2 {
		_, remove := deploy(t, l, "n1", "leak", 15/2+1)
		if enis := len(l.Cloud().ENIsOf(n.InstanceID)); enis < 2 {
			t.Errorf("%d ENIs with 8 pods", enis)
		}
		remove()
		eventually(t, "as at the start", func() error { return is(count(), start) })
	}
}

var leak = newShared(cluster.Spec{
	Name: "cases", Nodes: []cluster.NodeSpec{{Name: "n1", Type: "t3.medium"}},
	Env: map[string]string{"WARM_IP_TARGET": "3", "WARM_ENI_TARGET": "0", "IP_COOLDOWN_PERIOD": "1", "POOL_SHRINK_DELAY": "1"},
}, 0)

// tagged is a node of a named cluster with tags of its own, in a zone that has a second subnet for pods.
var tagged = newShared(cluster.Spec{
	Name:    "cases-cluster",
	Subnets: twoSubnets(),
	Nodes: []cluster.NodeSpec{{Name: "n1", Type: "t3.medium", Subnet: "subnet-a", Env: map[string]string{
		"ADDITIONAL_ENI_TAGS":     `{"owner":"cases","k8s.amazonaws.com/owner":"nobody"}`,
		"ENABLE_SUBNET_DISCOVERY": "false",
		"IP_COOLDOWN_PERIOD":      "1",
	}}},
}, 0)

func twoSubnets() []cluster.Subnet {
	subnets := cluster.DefaultSubnets(2)
	subnets[1].Zone, subnets[1].Tags = subnets[0].Zone, map[string]string{"kubernetes.io/role/cni": "1"}
	return subnets
}

// second is the node's first secondary ENI.
func second(t *testing.T, l *cluster.Cluster) (e ec2.ENI) {
	t.Helper()
	deploy(t, l, "n1", "tags", 6)
	for _, e := range l.Cloud().ENIsOf(l.Nodes()[0].InstanceID) {
		if e.Attachment.Device == 1 {
			return e
		}
	}
	t.Fatal("no secondary ENI")
	return e
}

func tags(t *testing.T) {
	e := second(t, tagged.use(t))
	if e.Tags["owner"] != "cases" || e.Tags["k8s.amazonaws.com/owner"] != "" || e.Tags["cluster.k8s.amazonaws.com/name"] != "cases-cluster" {
		t.Errorf("tags %v", e.Tags)
	}
}

func discoveryOff(t *testing.T) {
	l := tagged.use(t)
	if e := second(t, l); e.SubnetID != l.SubnetID("subnet-a") {
		t.Errorf("%s is in %s", e.ID, e.SubnetID)
	}
}

func introspection(t *testing.T) {
	l := bare.use(t)
	n := l.Nodes()[0]
	const address = "127.0.0.1:61679"
	if text, err := get(t.Context(), n, address, "/v1/enis"); err != nil || !strings.Contains(text, "eni-") {
		t.Errorf("%v %s", err, text)
	}
	withEnv(t, l, n, map[string]string{"DISABLE_INTROSPECTION": "true"})
	if text, err := get(t.Context(), n, address, "/v1/enis"); err == nil {
		t.Errorf("switched off, and answers %s", text)
	}
}

func introspectionAddress(t *testing.T) {
	l := bare.use(t)
	n := l.Nodes()[0]
	withEnv(t, l, n, map[string]string{"INTROSPECTION_BIND_ADDRESS": "127.0.0.1:61671"})
	if text, err := get(t.Context(), n, "127.0.0.1:61671", "/v1/enis"); err != nil || !strings.Contains(text, "eni-") {
		t.Errorf("%v %s", err, text)
	}
	if text, err := get(t.Context(), n, "127.0.0.1:61679", "/v1/enis"); err == nil {
		t.Errorf("the default address answers %s", text)
	}
}

func metricsPort(t *testing.T) {
	l := bare.use(t)
	n := l.Nodes()[0]
	const address = "127.0.0.1:61678"
	withEnv(t, l, n, map[string]string{"DISABLE_METRICS": "false"})
	if text, err := get(t.Context(), n, address, "/metrics"); err != nil || !strings.Contains(text, "awscni_assigned_ip_addresses") {
		t.Errorf("%v %s", err, text)
	}
	withEnv(t, l, n, map[string]string{"DISABLE_METRICS": "true"})
	if text, err := get(t.Context(), n, address, "/metrics"); err == nil {
		t.Errorf("switched off, and answers %.80s", text)
	}
}

// target is a setting of the pool and what a node without pods holds then, on an instance of 4 ENIs with 14 slots.
type target struct {
	env                       map[string]string
	enis, addresses, prefixes int // 0: not said
}

var targets = map[int]target{
	71: {env: map[string]string{"WARM_ENI_TARGET": "3", "MAX_ENI": "2"}, enis: 2},
	72: {env: map[string]string{"WARM_ENI_TARGET": "3"}, enis: 3},
	73: {env: map[string]string{"WARM_ENI_TARGET": "2"}, enis: 2},
	74: {env: map[string]string{"WARM_IP_TARGET": "2"}, addresses: 2},
	75: {env: map[string]string{"WARM_IP_TARGET": "16"}, addresses: 16},
	76: {env: map[string]string{"MINIMUM_IP_TARGET": "2"}, addresses: 2},
	77: {env: map[string]string{"MINIMUM_IP_TARGET": "16"}, addresses: 16},
	78: {env: map[string]string{"MINIMUM_IP_TARGET": "6", "WARM_IP_TARGET": "10"}, addresses: 10},
	79: {env: map[string]string{"WARM_IP_TARGET": "2"}, prefixes: 1},
	80: {env: map[string]string{"WARM_IP_TARGET": "16"}, prefixes: 1},
	81: {env: map[string]string{"MINIMUM_IP_TARGET": "2"}, prefixes: 1},
	82: {env: map[string]string{"MINIMUM_IP_TARGET": "16"}, prefixes: 1},
	83: {env: map[string]string{"MINIMUM_IP_TARGET": "6", "WARM_IP_TARGET": "10"}, prefixes: 1},
	84: {env: map[string]string{"WARM_PREFIX_TARGET": "2"}, prefixes: 2},
}

// warm has a node for each of these.
var warm = newShared(func() cluster.Spec {
	spec := cluster.Spec{Name: "cases"}
	for i := 71; i <= 84; i++ {
		env := targets[i].env
		if targets[i].prefixes > 0 {
			env["ENABLE_PREFIX_DELEGATION"] = "true"
		}
		spec.Nodes = append(spec.Nodes, cluster.NodeSpec{Name: fmt.Sprintf("w%d", i), Type: "m5.xlarge", Env: env})
	}
	return spec
}(), 0)

func warmTargets(number int) func(*testing.T) {
	return func(t *testing.T) {
		l := warm.use(t)
		n, err := l.Node(fmt.Sprintf("w%d", number))
		if err != nil {
			t.Fatal(err)
		}
		want, have := targets[number], target{}
		eventually(t, fmt.Sprint(want.env), func() error {
			have = target{}
			for _, e := range l.Cloud().ENIsOf(n.InstanceID) {
				have.enis++
				have.addresses += len(e.Secondary)
				have.prefixes += len(e.Prefixes)
			}
			if want.enis == 0 {
				have.enis = 0
			} else {
				have.addresses = 0
			}
			return is(fmt.Sprintf("%d ENIs, %d addresses, %d prefixes", have.enis, have.addresses, have.prefixes),
				fmt.Sprintf("%d ENIs, %d addresses, %d prefixes", want.enis, want.addresses, want.prefixes))
		})
	}
}
