package ec2

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

func TestPoolReservesFive(t *testing.T) {
	t.Parallel()
	for _, cidr := range []string{"10.0.0.0/20", "10.0.8.0/24", "10.0.8.64/27", "10.0.8.16/28"} {
		p := newPool(netip.MustParsePrefix(cidr))
		n := 0
		for {
			a, ok := p.takeFree(0)
			if !ok {
				break
			}
			if !p.cidr.Contains(a) || p.isReserved(a) {
				t.Fatalf("%s: handed out %s", cidr, a)
			}
			n++
		}
		if want := p.size() - 5; n != want || p.free != 0 {
			t.Errorf("%s: handed out %d addresses and has %d left, want %d and 0", cidr, n, p.free, want)
		}
	}
}

func TestPoolPrefixesAvoidReservedBlocks(t *testing.T) {
	t.Parallel()
	for cidr, want := range map[string]int{"10.0.0.0/24": 14, "10.0.0.0/27": 0, "10.0.0.0/26": 2, "10.0.0.16/28": 0} {
		p := newPool(netip.MustParsePrefix(cidr))
		got := 0
		for {
			if _, ok := p.takeFreePrefix(got); !ok {
				break
			}
			got++
		}
		// The reserved head and the broadcast address spoil the first and the last block.
		if got != want {
			t.Errorf("%s: %d prefixes, want %d", cidr, got, want)
		}
	}
}

// TestPoolProperties holds the bitmap to a model: a set of addresses.
func TestPoolProperties(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		p := newPool(netip.PrefixFrom(netip.MustParseAddr("10.1.0.0"), 20+rng.IntN(9)))
		held := map[netip.Addr]bool{}
		var addrs []netip.Addr
		var prefixes []netip.Prefix
		hold := func(at netip.Prefix) {
			for a := at.Addr(); at.Contains(a); a = a.Next() {
				if held[a] || p.isReserved(a) || !p.cidr.Contains(a) {
					t.Fatalf("seed %d: %s is reserved, outside, or was given twice", seed, a)
				}
				held[a] = true
			}
		}
		drop := func(at netip.Prefix) {
			for a := at.Addr(); at.Contains(a); a = a.Next() {
				delete(held, a)
			}
		}
		for range 3000 {
			switch op := rng.IntN(10); {
			case op < 4:
				a, ok := p.takeFree(rng.IntN(p.size()))
				if ok != (len(held) < p.size()-5) {
					t.Fatalf("seed %d: takeFree says %v with %d of %d held", seed, ok, len(held), p.size())
				}
				if ok {
					hold(single(a))
					addrs = append(addrs, a)
				}
			case op < 6:
				if at, ok := p.takeFreePrefix(rng.IntN(p.size())); ok {
					if at.Bits() != 28 || at != at.Masked() {
						t.Fatalf("seed %d: %s is not an aligned /28", seed, at)
					}
					hold(at)
					prefixes = append(prefixes, at)
				}
			case op < 7:
				a := p.addr(rng.IntN(p.size()))
				free := !held[a] && !p.isReserved(a)
				if p.take(a) != free {
					t.Fatalf("seed %d: take(%s) although free is %v", seed, a, free)
				}
				if free {
					hold(single(a))
					addrs = append(addrs, a)
				}
			case op < 9 && len(addrs) > 0:
				n := rng.IntN(len(addrs))
				p.give(addrs[n])
				drop(single(addrs[n]))
				addrs = append(addrs[:n], addrs[n+1:]...)
			case len(prefixes) > 0:
				n := rng.IntN(len(prefixes))
				p.givePrefix(prefixes[n])
				drop(prefixes[n])
				prefixes = append(prefixes[:n], prefixes[n+1:]...)
			}
			if p.free != p.size()-5-len(held) {
				t.Fatalf("seed %d: %d free, want %d", seed, p.free, p.size()-5-len(held))
			}
		}
	}
}

func TestWildcard(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "a", true}, {"a", "b", false}, {"*", "", true}, {"*", "anything", true},
		{"aws-K8S-*", "aws-K8S-i-1", true}, {"aws-K8S-*", "aws-k8s-i-1", false}, {"*-1", "i-1", true}, {"*-1", "i-12", false},
		{"i-?", "i-1", true}, {"i-?", "i-", false}, {`\*`, "*", true}, {`\*`, "x", false}, {`a\?`, "a?", true}, {`a\?`, "ab", false},
		{"a*b*c", "a-b-b-c", true}, {"a*b*c", "a-c-b", false}, {`a\`, `a\`, true}, {"t3.*", "t3.medium", true}, {"t3.*", "t3a.medium", false},
	} {
		if got := wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("wildcard(%q, %q) = %v, want %v", c.pattern, c.s, got, c.want)
		}
	}
}

func TestVCPUs(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]int{
		"t3.medium": 2, "t3.nano": 2, "t2.micro": 1, "t2.medium": 2, "m6g.medium": 1, "m5.large": 2, "m5.xlarge": 4,
		"c5.24xlarge": 96, "c5.metal": 0, "x8g.metal-24xl": 0,
	} {
		if got := vcpus(name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}
