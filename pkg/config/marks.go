package config

import (
	"fmt"
	"math/bits"

	"vpccni/pkg/networkutils/names"
)

const (
	// freeMarkBits are the bits of a packet's mark that no usual neighbour has a claim on: kube-proxy has 0xc000, the
	// portmap plugin 0x2000, Cilium 0x0f00, Calico (and Tailscale) 0xffff0000.
	freeMarkBits uint32 = 0x00ff
	// minENIBits is the least width of the field for an ENI's index: a network card takes 15 ENIs at most, and 0
	// means none.
	minENIBits = 4
)

// neighbours are the programs that put marks of their own on a node's packets, with the bits they use by default.
var neighbours = []struct {
	name string
	bits uint32
}{
	{"kube-proxy (0x4000 masquerade, 0x8000 drop)", 0xc000},
	{"the portmap plugin (0x2000)", 0x2000},
	{"Cilium (0x0f00)", 0x0f00},
	{"Calico (0xffff0000)", 0xffff_0000},
}

// markClaims names those whose bits a mark touches.
func markClaims(mark uint32) []string {
	var out []string
	for _, n := range neighbours {
		if mark&n.bits != 0 {
			out = append(out, n.name)
		}
	}
	return out
}

// eniMask returns the bits for the index of a secondary ENI: the usual ones, or if the primary mark is on them the
// widest run of bits beside it.
func eniMask(primaryMark uint32) (uint32, error) {
	if primaryMark&names.DefaultENIMask == 0 {
		return names.DefaultENIMask, nil
	}
	var widest uint32
	for free := freeMarkBits &^ primaryMark; free != 0; {
		start := bits.TrailingZeros32(free)
		width := bits.TrailingZeros32(^(free >> start))
		run := (uint32(1)<<width - 1) << start
		if bits.OnesCount32(run) > bits.OnesCount32(widest) {
			widest = run
		}
		free &^= run
	}
	if bits.OnesCount32(widest) < minENIBits {
		return 0, fmt.Errorf("AWS_VPC_K8S_CNI_CONNMARK=%#x: leaves no %d adjacent bits of %#x for the ENI's index",
			primaryMark, minENIBits, freeMarkBits)
	}
	return widest, nil
}
