package datastore

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func BenchmarkAssignRelease(b *testing.B) {
	for _, n := range []int{100, 1000, 4000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := New(30*time.Second, 0)
			for e := range 15 {
				id := fmt.Sprintf("eni-%d", e)
				_ = s.AddENI(ENI{ID: id, Device: e, Address: netip.AddrFrom4([4]byte{10, 1, byte(e), 1})})
				var blocks []netip.Prefix
				for i := range n / 15 {
					blocks = append(blocks, single(netip.AddrFrom4([4]byte{10, 2 + byte(e), byte(i >> 8), byte(i)})))
				}
				for _, p := range blocks {
					if _, err := s.AddBlock(id, p, t0); err != nil {
						b.Fatal(err)
					}
				}
				_ = s.SetPhase(id, Wired)
				_ = s.SetPhase(id, Usable)
				s.ReadyBlocks(id, blocks, t0)
			}
			keys := slices.Collect(func(yield func(Key) bool) {
				for i := range n {
					if !yield(key(i)) {
						return
					}
				}
			})
			now := t0
			b.ResetTimer()
			for i := range b.N {
				now = now.Add(time.Second)
				k := keys[i%(n/2)]
				if _, _, err := s.Assign(k, Meta{}, now); err != nil {
					b.Fatal(err)
				}
				if _, err := s.Release(k, now); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
