package maxpods_test

import (
	"testing"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/maxpods"
)

func TestPods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		node maxpods.Node
		want int
	}{
		{"m4.xlarge", maxpods.Node{ENIs: 4, IPv4PerENI: 15}, 58},
		{"m5.8xlarge", maxpods.Node{ENIs: 8, IPv4PerENI: 30}, 234},
		{"prefixes", maxpods.Node{ENIs: 8, IPv4PerENI: 30, Prefixes: true}, 3714},
		{"custom networking", maxpods.Node{ENIs: 4, IPv4PerENI: 15, CustomNetworking: true}, 44},
		{"custom networking and prefixes", maxpods.Node{ENIs: 3, IPv4PerENI: 6, CustomNetworking: true, Prefixes: true}, 162},
		{"max-eni first, then custom networking", maxpods.Node{ENIs: 4, IPv4PerENI: 15, MaxENI: 2, CustomNetworking: true}, 16},
		{"max-eni above the instance's", maxpods.Node{ENIs: 4, IPv4PerENI: 15, MaxENI: 9}, 58},
		{"nothing left but the host's network", maxpods.Node{ENIs: 4, IPv4PerENI: 15, MaxENI: 1, CustomNetworking: true}, 2},
	} {
		if got := c.node.Pods(); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestTakesPrefixes(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"1.7.5": false, "1.8.99": false, "1.9.0": true, "1.10": true, "1.11.2": true, "2.0.0": true,
		"v1.18.0-eksbuild.1": true, "0.9.0": false,
	} {
		if got, err := maxpods.TakesPrefixes(version); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", version, got, err, want)
		}
	}
	for _, version := range []string{"", "1", "latest", "1.x.0", "-1.9.0", "1.", "70000.1"} {
		if _, err := maxpods.TakesPrefixes(version); err == nil {
			t.Errorf("%q passes for a version", version)
		}
	}
}

func TestCap(t *testing.T) {
	t.Parallel()
	for vcpus, want := range map[int]int{1: 110, 30: 110, 31: 250, 192: 250} {
		if got := maxpods.Cap(vcpus); got != want {
			t.Errorf("%d vCPUs: %d, want %d", vcpus, got, want)
		}
	}
}

func TestCapByName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{
		"t3.nano": 110, "m1.small": 110, "t3.medium": 110, "m5.large": 110, "c1.xlarge": 110, "m5.4xlarge": 110,
		"z1d.6xlarge": 110, "m5.8xlarge": 250, "c4.8xlarge": 250, "hs1.8xlarge": 110, "c5.9xlarge": 250, "u7i-12tb.224xlarge": 250,
		"a1.metal": 110, "z1d.metal": 250, "c5.metal": 250, "r7iz.metal-16xl": 250, "m8azn.metal-12xl": 250,
		"hpc7g.4xlarge": 110, "hpc7g.8xlarge": 250, "p5.48xlarge": 250,
		// The name does not tell.
		"hpc7a.12xlarge": 0, "mac1.metal": 0, "mac-m3ultra.metal": 0, "m5": 0, "": 0, ".8xlarge": 0, "m5.huge": 0,
		"m5.-8xlarge": 0, "m5.0xlarge": 0, "m5.metal-48": 0, "m5.48xl": 0,
	} {
		if got, ok := maxpods.CapByName(name); got != want || ok != (want != 0) {
			t.Errorf("%s: %d, %v; want %d", name, got, ok, want)
		}
	}
}

// Property: whatever the type and the settings, there is a number, prefixes never make it smaller, a limit or custom
// networking never larger, and the cap holds.
func TestPropertyEveryKnownType(t *testing.T) {
	t.Parallel()
	for name := range vpc.Limits {
		limits, ok := awsutils.LimitsOf(name)
		if !ok {
			t.Fatalf("%s has no limits", name)
		}
		most := maxpods.LargeCap
		if limit, ok := maxpods.CapByName(name); ok {
			most = limit
		}
		for _, maxENI := range []int{0, 1, 2, 100} {
			n := maxpods.Node{ENIs: limits.ENIs, IPv4PerENI: limits.IPv4PerENI}
			all := n.Pods()
			n.MaxENI = maxENI
			plain := n.Pods()
			custom, dense := n, n
			custom.CustomNetworking, dense.Prefixes = true, true
			if plain < 3 || plain > all || custom.Pods() < 2 || custom.Pods() >= plain || dense.Pods() < plain {
				t.Errorf("%s, max-eni %d: %d pods, %d without, %d with custom networking, %d with prefixes",
					name, maxENI, plain, all, custom.Pods(), dense.Pods())
			}
			if capped := min(dense.Pods(), most); capped < min(plain, most) || capped > most {
				t.Errorf("%s: %d above the cap of %d", name, capped, most)
			}
		}
	}
}
