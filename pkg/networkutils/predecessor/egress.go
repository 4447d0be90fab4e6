package predecessor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/xtables"
)

// egressFamily is what the predecessor's egress plugin has in a family: a chain for each pod, which does its source NAT, a
// jump to that from POSTROUTING, and a rule in FORWARD that keeps pods apart.
type egressFamily struct {
	nft    nftables.TableFamily
	prefix string // of the chains
	block  string // comment of the rule
}

var (
	egressV4 = egressFamily{nftables.TableFamilyIPv4, "CNI-E4-", "Block Node Local Pod access via IPv4"}
	egressV6 = egressFamily{nftables.TableFamilyIPv6, "CNI-E6-", "Block Node Local Pod access via IPv6"}
)

func (o Options) egress() (list []egressFamily) {
	if o.EgressV4 {
		list = append(list, egressV4)
	}
	if o.EgressV6 {
		list = append(list, egressV6)
	}
	return list
}

// sweepEgress removes it. Connections that are open keep the source that they have.
func sweepEgress(ctx context.Context, o Options) (nft, legacy int, err error) {
	for _, f := range o.egress() {
		n, nftErr := f.sweepNFT(ctx, o)
		nft += n
		err = errors.Join(err, nftErr)
	}
	if !o.EgressV4 {
		return nft, 0, err // package xtables knows the tables of IPv4
	}
	legacyErr := inNamespace(o.NetNS, func() error {
		var err error
		legacy, err = xtables.Remove(ctx, xtables.Options{
			Rules: func(table string, r xtables.Rule) bool {
				return table == "nat" && strings.HasPrefix(r.Jump, egressV4.prefix) ||
					table == "filter" && slices.Contains(r.Comments, egressV4.block)
			},
			Chains: func(table, chain string) bool { return table == "nat" && strings.HasPrefix(chain, egressV4.prefix) },
			Lock:   o.Lock,
		})
		return err
	})
	return nft, legacy, errors.Join(err, legacyErr)
}

// sweepNFT takes it out of the tables of iptables' nft backend.
func (f egressFamily) sweepNFT(ctx context.Context, o Options) (n int, err error) {
	c, err := openNFT(ctx, o)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.CloseLasting() }()
	all, err := c.ListChainsOfTableFamily(f.nft)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("predecessor: list nftables chains: %w", err)
	}
	var own []*nftables.Chain
	for _, ch := range all {
		nat := ch.Table.Name == "nat"
		switch {
		case !nat && ch.Table.Name != "filter":
			continue
		case nat && strings.HasPrefix(ch.Name, f.prefix):
			own = append(own, ch)
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return 0, fmt.Errorf("predecessor: list rules of %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			jump, comment := describe(r)
			if !(nat && strings.HasPrefix(jump, f.prefix)) && !(!nat && comment == f.block) {
				continue
			}
			if err := c.DelRule(r); err != nil {
				return 0, fmt.Errorf("predecessor: delete rule: %w", err)
			}
			n++
		}
	}
	for _, ch := range own {
		c.FlushChain(ch)
		c.DelChain(ch)
		n++
	}
	if n == 0 {
		return 0, nil
	}
	if err := c.Flush(); err != nil {
		return 0, fmt.Errorf("predecessor: delete nftables objects: %w", err)
	}
	return n, nil
}
