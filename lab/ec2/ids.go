package ec2

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
)

// source makes the ids, MAC addresses and choices of one cloud: the same seed gives the same ones in the same order.
// It is guarded by Cloud.changing.
type source struct {
	rng *rand.Rand
	// scatter: addresses are chosen anywhere in the subnet instead of the lowest free one.
	scatter bool
}

func newSource(seed uint64) *source {
	return &source{rng: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), scatter: seed != 0}
}

// id makes an id of the long form, eni-0123456789abcdef0.
func (s *source) id(prefix string) string {
	return fmt.Sprintf("%s-0%016x", prefix, s.rng.Uint64())
}

// mac makes a locally administered unicast address with EC2's usual first byte.
func (s *source) mac() net.HardwareAddr {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], s.rng.Uint64())
	b[0] = 0x02
	return net.HardwareAddr(b[:6])
}

// from is where the search for something free among n starts.
func (s *source) from(n int) int {
	if !s.scatter {
		return 0
	}
	return s.rng.IntN(n)
}
