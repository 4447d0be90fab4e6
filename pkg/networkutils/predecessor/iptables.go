package predecessor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/xtables"
)

const (
	// markTable is the nftables table of v1.23.
	markTable = "aws-cni"
	snatChain = "AWS-SNAT-CHAIN-"
)

// chainPrefixes begin the names of the predecessor's chains, comments the comments of its rules outside of them. The
// rules of the egress plugin are a matter of their own (egress.go).
var (
	chainPrefixes = []string{snatChain, "AWS-CONNMARK-CHAIN-"}
	comments      = []string{"AWS SNAT CHAIN", "AWS SNAT CHAN", "AWS, SNAT", "AWS, CONNMARK", "AWS, primary ENI",
		"AWS, outbound connections"}
)

func isChain(name string) bool {
	return slices.ContainsFunc(chainPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}

func isComment(c string) bool { return slices.Contains(comments, c) }

// sweepLegacy takes the predecessor's rules and chains out of the tables of iptables' legacy backend.
func sweepLegacy(ctx context.Context, o Options) (n int, err error) {
	err = inNamespace(o.NetNS, func() error {
		n, err = xtables.Remove(ctx, xtables.Options{
			Rules: func(table string, r xtables.Rule) bool {
				return (table == "nat" || table == "mangle") && (isChain(r.Jump) || slices.ContainsFunc(r.Comments, isComment))
			},
			Chains: func(table, chain string) bool { return table == "nat" && isChain(chain) },
			Lock:   o.Lock,
		})
		return err
	})
	return n, err
}

// sweepNFT deletes the table of v1.23, and takes the predecessor's rules and chains out of the tables of iptables' nft
// backend.
func sweepNFT(ctx context.Context, o Options) (n int, err error) {
	c, err := openNFT(ctx, o)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.CloseLasting() }()
	tables, err := tablesOf(c)
	if err != nil {
		return 0, err
	}
	for _, t := range tables {
		switch t.Name {
		case markTable:
			c.DelTable(t)
			n++
		case "nat", "mangle":
			in, err := sweepTable(c, t)
			if err != nil {
				return n, err
			}
			n += in
		}
	}
	if n == 0 {
		return 0, nil
	}
	if err := c.Flush(); err != nil {
		return 0, fmt.Errorf("predecessor: delete nftables objects: %w", err)
	}
	return n, nil
}

func openNFT(ctx context.Context, o Options) (*nftables.Conn, error) {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(o.NetNS), nftables.WithSockOptions(func(s *netlink.Conn) error {
		if deadline, ok := ctx.Deadline(); ok {
			return s.SetDeadline(deadline)
		}
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("predecessor: open nftables socket: %w", err)
	}
	return c, nil
}

// tablesOf lists the IPv4 tables; a kernel without nftables has none.
func tablesOf(c *nftables.Conn) ([]*nftables.Table, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("predecessor: list nftables tables: %w", err)
	}
	return tables, nil
}

func chainsOf(c *nftables.Conn, t *nftables.Table) ([]*nftables.Chain, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("predecessor: list nftables chains: %w", err)
	}
	return slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != t.Name }), nil
}

// sweepTable queues the deletion of the predecessor's rules and chains in a table of iptables.
func sweepTable(c *nftables.Conn, t *nftables.Table) (n int, err error) {
	chains, err := chainsOf(c, t)
	if err != nil {
		return 0, err
	}
	foreignJumps := map[string]bool{}
	var own []*nftables.Chain
	for _, ch := range chains {
		if isChain(ch.Name) {
			own = append(own, ch)
			continue
		}
		rules, err := c.GetRules(t, ch)
		if err != nil {
			return 0, fmt.Errorf("predecessor: list rules of %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			jump, comment := describe(r)
			switch {
			case isComment(comment), isChain(jump) && comment == "":
				if err := c.DelRule(r); err != nil {
					return 0, fmt.Errorf("predecessor: delete rule: %w", err)
				}
				n++
			case isChain(jump):
				foreignJumps[jump] = true
			}
		}
	}
	for _, ch := range own {
		c.FlushChain(ch)
	}
	for _, ch := range own {
		if !foreignJumps[ch.Name] {
			c.DelChain(ch)
			n++
		}
	}
	return n, nil
}

// describe says where a rule jumps to and what comment it has.
func describe(r *nftables.Rule) (jump, comment string) {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Verdict:
			jump = e.Chain
		case *expr.Match:
			if c, ok := e.Info.(*xt.Comment); ok {
				comment = string(*c)
			}
		}
	}
	return jump, comment
}

// inNamespace runs f on a thread in the network namespace with this descriptor; 0 is the process's own.
func inNamespace(fd int, f func() error) error {
	if fd == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread ends with its goroutine: it is never unlocked.
		runtime.LockOSThread()
		if err := netns.Set(netns.NsHandle(fd)); err != nil {
			done <- fmt.Errorf("predecessor: enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func addrOf(n *net.IPNet) (netip.Addr, bool) {
	if n == nil {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	return a.Unmap(), ok && ones == bits
}
