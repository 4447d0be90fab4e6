package cases

import (
	"context"
	"net/netip"
	"testing"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/lab/probe"
)

// prefixes are two nodes with 20 pods each out of /28 prefixes.
var prefixes = newShared(cluster.Spec{
	Name: "cases", Nodes: []cluster.NodeSpec{{Name: "n1", Type: "t3.medium"}, {Name: "n2", Type: "t3.medium"}},
	Env: map[string]string{"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"},
}, 20)

type asking func(context.Context, probe.Do, netip.AddrPort, int, ...probe.Option) (probe.Answer, error)

func prefixTCP(t *testing.T) { crowd(t, probe.TCP) }
func prefixUDP(t *testing.T) { crowd(t, probe.UDP) }

// crowd has 20 pods of one node ask 20 pods of the other one.
func crowd(t *testing.T, ask asking) {
	t.Helper()
	l := prefixes.use(t)
	servers, clients := l.Pods("n1"), l.Pods("n2")
	if len(servers) != 20 || len(clients) != 20 {
		t.Fatalf("%d servers, %d clients", len(servers), len(clients))
	}
	var group errgroup.Group
	group.SetLimit(8)
	for _, server := range servers {
		for _, client := range clients {
			group.Go(func() error {
				a, err := ask(t.Context(), podDo(l, client), netip.AddrPortFrom(server.Address, port), 100, patient)
				if err != nil || a.Server != server.Name || a.Source != client.Address {
					t.Errorf("%s → %s: %s answers and sees %s, %v", client.Name, server.Name, a.Server, a.Source, err)
				}
				return nil
			})
		}
	}
	_ = group.Wait()
}
