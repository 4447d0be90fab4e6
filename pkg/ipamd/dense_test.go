package ipamd

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

func TestBeside(t *testing.T) {
	t.Parallel()
	subnet := netip.MustParsePrefix("10.0.0.0/24")
	ips := func(last ...byte) (out []netip.Addr) {
		for _, b := range last {
			out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, b}))
		}
		return out
	}
	for _, c := range []struct {
		name string
		own  []netip.Addr
		n    int
		want []netip.Addr
	}{
		{"nothing held", nil, 3, nil},
		{"beside the one that is held", ips(20), 3, ips(16, 17, 18)},
		{"the fullest block first", ips(20, 40, 41), 15, ips(32, 33, 34, 35, 36, 37, 38, 39, 42, 43, 44, 45, 46, 47, 16)},
		{"not the first four of the subnet", ips(9), 3, ips(4, 5, 6)},
		{"nor the last", ips(241), 20, ips(240, 242, 243, 244, 245, 246, 247, 248, 249, 250, 251, 252, 253, 254)},
		{"another subnet's do not count", []netip.Addr{netip.MustParseAddr("10.0.1.5")}, 3, nil},
	} {
		if got := beside(subnet, c.own, c.n); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestStandInsAreDense: without a free /28, addresses come out of those that this node has broken already, as long as
// EC2 gives them.
func TestStandInsAreDense(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmpool.Targets{Prefixes: true, WarmIP: 1}, xlarge, func(_ *Options, r *rig) {
			r.cloud.scatter = true
		})
		r.fragment(true)
		<-r.Ready()
		for i := range 10 {
			r.mustAdd(i)
		}
		time.Sleep(time.Minute)
		blocks := map[netip.Prefix]bool{}
		r.cloud.mu.Lock()
		for _, e := range r.cloud.enis {
			blocks[blockOf(e.Primary)] = true
			for _, ip := range e.Secondary {
				blocks[blockOf(ip)] = true
			}
		}
		r.cloud.mu.Unlock()
		if n := r.cloud.count("AssignAddresses"); len(blocks) != 1 || n == 0 || r.cloud.count("AssignIPs") != 0 {
			t.Errorf("10 pods have broken %d /28s; calls %v", len(blocks), r.cloud.counts)
		}
		r.stop()
	})
}

// TestDenseIsTriedOnce: the addresses beside are another node's. EC2 chooses then, and is not asked for them again.
func TestDenseIsTriedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmpool.Targets{Prefixes: true, WarmIP: 1}, xlarge, func(_ *Options, r *rig) {
			for ip := blockOf(r.cloud.enis[testPrimary].Primary).Addr(); ip.As4()[3] < 16; ip = ip.Next() {
				r.cloud.used[ip] = true
			}
		})
		r.fragment(true)
		<-r.Ready()
		for i := range 8 {
			start := time.Now()
			r.mustAdd(i)
			if took := time.Since(start); took > time.Second {
				t.Errorf("pod %d waited %s", i, took)
			}
		}
		r.wantCalls(map[string]int{"DescribeENIs": 1, "DescribeENIsByTag": 1, "AssignPrefixes": 1, "AssignAddresses": 1,
			"AssignIPs": r.cloud.count("AssignIPs")})
		r.stop()
	})
}
