package predecessor

import (
	"context"
	"slices"
	"strings"

	"vpccni/pkg/networkutils/xtables"
)

// Present tells whether the predecessor has laid its source NAT down in either backend of iptables: then it carries
// pods' packets to the outside. A node with external source NAT has the chain as well, but without rules in it.
func Present(ctx context.Context, o Options) (bool, error) {
	found := false
	err := inNamespace(o.NetNS, func() error {
		chains, err := xtables.Chains(ctx, "nat", o.Lock)
		found = slices.ContainsFunc(chains, func(c string) bool { return strings.HasPrefix(c, snatChain) })
		return err
	})
	if err != nil || found {
		return found, err
	}
	c, err := openNFT(ctx, o)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.CloseLasting() }()
	tables, err := tablesOf(c)
	if err != nil {
		return false, err
	}
	for _, t := range tables {
		if t.Name != "nat" {
			continue
		}
		chains, err := chainsOf(c, t)
		if err != nil {
			return false, err
		}
		for _, ch := range chains {
			found = found || strings.HasPrefix(ch.Name, snatChain)
		}
	}
	return found, nil
}
