package hostnet

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
)

// thousand is a node with 1,000 addresses on four ENIs, as single addresses: the worst case for every list.
func thousand(from int) Config {
	var enis []ENI
	for device := range 4 {
		e := secondaryENI(device)
		if device == 0 {
			e = primaryENI()
		}
		for i := range 250 {
			a := netip.AddrFrom4([4]byte{10, 0, byte(16 + device), byte(i)})
			if device == 3 && i < from {
				a = netip.AddrFrom4([4]byte{10, 0, 99, byte(i)})
			}
			e.Pool = append(e.Pool, host(a))
		}
		enis = append(enis, e)
	}
	return config(enis...)
}

func BenchmarkApply1000(b *testing.B) {
	ctx := context.Background()
	apply := func(b *testing.B, h *Host, cfg Config) Report {
		b.Helper()
		report, err := h.Apply(ctx, cfg)
		if err != nil {
			b.Fatal(err)
		}
		return report
	}
	b.Run("render", func(b *testing.B) {
		cfg := thousand(0)
		for b.Loop() {
			if _, err := Render(cfg); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("first", func(b *testing.B) {
		n := newNode(b, 4)
		cfg := thousand(0)
		for b.Loop() {
			apply(b, n.host, cfg)
			b.StopTimer()
			if err := n.host.Cleanup(ctx); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	for _, pods := range []int{0, 1000} {
		b.Run(fmt.Sprintf("unchanged/pods=%d", pods), func(b *testing.B) {
			n := newNode(b, 4)
			n.Run("sh", "-c", fmt.Sprintf(`for i in $(seq 1 %d); do
				echo "link add eni$i type veth peer name p$i"
				echo "route add 10.0.$((16 + i / 250)).$((i %% 250)) dev eth0 scope link table 5120"
			done | ip -batch -`, pods))
			cfg := thousand(0)
			apply(b, n.host, cfg)
			for b.Loop() {
				if r := apply(b, n.host, cfg); r.Writes != 0 {
					b.Fatalf("%d writes", r.Writes)
				}
			}
		})
	}
	b.Run("one-address", func(b *testing.B) {
		n := newNode(b, 4)
		apply(b, n.host, thousand(0))
		i := 0
		for b.Loop() {
			i++
			if r := apply(b, n.host, thousand(i%2)); r.Writes != 4 && i > 1 {
				b.Fatalf("%d writes, want one route and one element in and out", r.Writes)
			}
		}
	})
}
