package fabric

import (
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"vpccni/lab/ec2"
)

func TestIntervalEndsBehindTheRange(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"10.0.1.0/24":     "10.0.2.0",
		"10.0.255.0/24":   "10.1.0.0",
		"10.0.0.0/9":      "10.128.0.0",
		"10.1.2.3/32":     "10.1.2.4",
		"10.1.2.3/24":     "10.1.3.0",
		"100.64.0.0/10":   "100.128.0.0",
		"10.255.255.0/24": "11.0.0.0",
	} {
		p := prefix(in)
		e := interval("s", p)
		end, _ := netip.AddrFromSlice([]byte(e.until))
		if first := p.Masked().Addr(); end.String() != want || e.key != string(first.AsSlice()) {
			t.Errorf("%s: [%v, %s), want [%s, %s)", in, []byte(e.key), end, first, want)
		}
	}
}

func TestLinkLocalIsEUI64(t *testing.T) {
	t.Parallel()
	if got, want := linkLocal(net.HardwareAddr{0x02, 0x42, 0xac, 0x11, 0x00, 0x02}), addr("fe80::42:acff:fe11:2"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSpecOf(t *testing.T) {
	t.Parallel()
	vpcs := map[string]*vpcState{"vpc-1": {
		VPC:    ec2.VPC{ID: "vpc-1", CIDRs: []netip.Prefix{prefix("10.0.0.0/16"), prefix("100.64.0.0/16")}},
		number: 3,
		subnets: []ec2.Subnet{
			{ID: "pub", CIDR: prefix("10.0.1.0/24"), Public: true},
			{ID: "prv", CIDR: prefix("100.64.1.0/24")},
		},
	}}
	eni := ec2.ENI{
		ID: "eni-1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, VPCID: "vpc-1", SubnetID: "pub",
		Primary: addr("10.0.1.10"), PublicIP: addr("203.0.113.100"), SourceDestCheck: true,
		Secondary:  []netip.Addr{addr("10.0.1.12"), addr("10.0.1.11"), addr("10.0.1.12")},
		Prefixes:   []netip.Prefix{prefix("10.0.1.128/28")},
		Attachment: &ec2.Attachment{InstanceID: "i-1", Device: 1, State: "attached"},
	}
	got, err := specOf(eni, vpcs)
	if err != nil {
		t.Fatal(err)
	}
	want := socket{instance: "i-1", device: 1, mac: "02:00:00:00:00:01", primary: eni.Primary, subnet: prefix("10.0.1.0/24"), vpc: 3}
	routes := []netip.Prefix{prefix("10.0.1.10/32"), prefix("10.0.1.11/32"), prefix("10.0.1.12/32"), prefix("10.0.1.128/28")}
	if got.socket != want || !slices.Equal(got.routes, routes) || got.resolver != addr("10.0.0.2") || !got.public || got.unchecked {
		t.Errorf("got %+v", got)
	}

	// A public address in a private subnet maps to nothing: there is no route to the internet gateway.
	eni.SubnetID, eni.Primary, eni.SourceDestCheck = "prv", addr("100.64.1.10"), false
	if got, err = specOf(eni, vpcs); err != nil || got.public || !got.unchecked {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestDiffTurnsOneIntoTheOther(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 0))
		have, want := randomSet(rng), randomSet(rng)
		add, remove := diff(have, want, func(a, b int) int { return a - b })
		got := maps.Clone(have)
		for _, k := range add {
			if got[k] {
				t.Fatalf("seed %d: %d is added though it is there", seed, k)
			}
			got[k] = true
		}
		for _, k := range remove {
			if want[k] {
				t.Fatalf("seed %d: %d is removed though it is wanted", seed, k)
			}
			delete(got, k)
		}
		if !maps.Equal(got, want) || !slices.IsSorted(add) || !slices.IsSorted(remove) {
			t.Fatalf("seed %d: %v to %v: add %v, remove %v", seed, have, want, add, remove)
		}
	}
}

func randomSet(rng *rand.Rand) map[int]bool {
	set := map[int]bool{}
	for range rng.IntN(10) {
		set[rng.IntN(12)] = true
	}
	return set
}
