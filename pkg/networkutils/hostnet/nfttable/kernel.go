package nfttable

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// readAttempts bounds how often a read is repeated because the ruleset changed under it; every change by
	// anybody (kube-proxy in nftables mode, for one) moves the generation.
	readAttempts = 10
	// elementsPerMessage keeps an element list below the 64 KiB that a netlink attribute can hold.
	elementsPerMessage = 256
	// socketBuffer holds the largest transaction (10,000 elements are about 1 MiB) and its acknowledgements.
	socketBuffer = 8 << 20
	// ioTimeout bounds the whole work on one connection where the context has no earlier deadline.
	ioTimeout = 30 * time.Second
	// nfgenmsgLen is the length of the header before the attributes.
	nfgenmsgLen = 4
)

// ErrUnstable says that the ruleset kept changing while it was read.
var ErrUnstable = errors.New("ruleset changed during every attempt to read it")

// Conn is a connection to nf_tables in one network namespace.
type Conn struct {
	nft *nftables.Conn
	gen *netlink.Conn // asks for the ruleset's generation, which the library cannot
}

// Open connects to the namespace of the file descriptor, or to the process's own one if it is 0.
func Open(ctx context.Context, netns int) (*Conn, error) {
	deadline := time.Now().Add(ioTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(netns), nftables.WithSockOptions(
		func(s *netlink.Conn) error { return s.SetDeadline(deadline) },
		func(s *netlink.Conn) error { return s.SetWriteBuffer(socketBuffer) },
		func(s *netlink.Conn) error { return s.SetReadBuffer(socketBuffer) },
	))
	if err != nil {
		return nil, fmt.Errorf("connect to nf_tables: %w", err)
	}
	gen, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to nf_tables: %w", err), c.CloseLasting())
	}
	if err := gen.SetDeadline(deadline); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to nf_tables: %w", err), c.CloseLasting(), gen.Close())
	}
	return &Conn{nft: c, gen: gen}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return errors.Join(c.nft.CloseLasting(), c.gen.Close()) }

// generation returns the number that every change of any ruleset of the namespace increases.
func (c *Conn) generation() (uint32, error) {
	reply, err := c.gen.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN),
			Flags: netlink.Request,
		},
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("read ruleset generation: %w", err)
	}
	for _, m := range reply {
		if len(m.Data) < nfgenmsgLen {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgLen:])
		if err != nil {
			return 0, fmt.Errorf("read ruleset generation: %w", err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("read ruleset generation: no generation in the answer")
}

// Read returns the table as it is in the kernel, or nil if there is none.
func (c *Conn) Read(f Family, name string) (*Table, error) {
	for range readAttempts {
		before, err := c.generation()
		if err != nil {
			return nil, err
		}
		t, err := c.read(f, name)
		after, genErr := c.generation()
		if genErr != nil {
			return nil, genErr
		}
		if before != after {
			continue // what was read, errors included, may mix two states
		}
		if err != nil {
			return nil, fmt.Errorf("read table %s: %w", name, err)
		}
		return t, nil
	}
	return nil, ErrUnstable
}

func (c *Conn) read(f Family, name string) (*Table, error) {
	tables, err := c.nft.ListTablesOfFamily(f)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }) {
		return nil, nil
	}

	ref := &nftables.Table{Family: f, Name: name}
	t := &Table{Family: f, Name: name}
	sets, err := c.nft.GetSets(ref)
	if err != nil {
		return nil, err
	}
	for _, s := range sets {
		if s.Anonymous {
			continue // belongs to a rule of somebody else's making, and goes with it
		}
		set := Set{Name: s.Name, Key: keyTypeOf(s), Interval: s.Interval, Map: s.IsMap}
		elems, err := c.nft.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("elements of %s: %w", s.Name, err)
		}
		if set.Elements, err = fromKernel(s, elems); err != nil {
			return nil, fmt.Errorf("elements of %s: %w", s.Name, err)
		}
		t.Sets = append(t.Sets, set)
	}
	chains, err := c.nft.ListChainsOfTableFamily(f)
	if err != nil {
		return nil, err
	}
	for _, ch := range chains {
		if ch.Table.Name != name {
			continue
		}
		chain := Chain{Name: ch.Name}
		if ch.Hooknum != nil && ch.Priority != nil {
			chain.Base = &Base{Type: string(ch.Type), Hook: uint32(*ch.Hooknum), Priority: int32(*ch.Priority)}
			if ch.Policy != nil && *ch.Policy != nftables.ChainPolicyAccept {
				chain.Base.Type += " policy drop" // never equal to a wanted one
			}
		}
		rules, err := c.nft.GetRules(ref, ch)
		if err != nil {
			return nil, fmt.Errorf("rules of %s: %w", ch.Name, err)
		}
		for _, r := range rules {
			chain.Rules = append(chain.Rules, r.Exprs)
		}
		t.Chains = append(t.Chains, chain)
	}
	t.Normalize()
	return t, nil
}

// Exists reports whether there is such a table.
func (c *Conn) Exists(f Family, name string) (bool, error) {
	tables, err := c.nft.ListTablesOfFamily(f)
	if err != nil {
		return false, fmt.Errorf("look for table %s: %w", name, err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }), nil
}

// Write carries the change out as one transaction: all of it or nothing.
func (c *Conn) Write(change *Change) error {
	if change.Writes() == 0 {
		return nil
	}
	ref := &nftables.Table{Family: change.Family, Name: change.Name}
	if change.AddTable {
		c.nft.AddTable(ref)
	}
	for _, name := range change.FlushChains {
		c.nft.FlushChain(&nftables.Chain{Table: ref, Name: name})
	}
	for _, s := range change.DeleteElements {
		if err := eachPart(s, func(part []nftables.SetElement) error {
			return c.nft.SetDeleteElements(setRef(ref, s), part)
		}); err != nil {
			return fmt.Errorf("delete elements of %s: %w", s.Name, err)
		}
	}
	for _, name := range change.DeleteSets {
		c.nft.DelSet(&nftables.Set{Table: ref, Name: name})
	}
	for _, name := range change.DeleteChains {
		c.nft.DelChain(&nftables.Chain{Table: ref, Name: name})
	}
	for i, s := range change.AddSets {
		set := setRef(ref, s)
		set.ID = uint32(i + 1) // unique in the transaction; the library's own counter is not safe to share
		if err := c.nft.AddSet(set, nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.Name, err)
		}
	}
	for _, ch := range change.AddChains {
		c.nft.AddChain(chainRef(ref, ch))
	}
	for _, ch := range change.AddRules {
		// The chain may have been filled since the table was read, by another daemon during an upgrade.
		c.nft.FlushChain(&nftables.Chain{Table: ref, Name: ch.Name})
		for _, r := range ch.Rules {
			c.nft.AddRule(&nftables.Rule{Table: ref, Chain: &nftables.Chain{Table: ref, Name: ch.Name}, Exprs: r})
		}
	}
	for _, s := range change.AddElements {
		if err := eachPart(s, func(part []nftables.SetElement) error {
			return c.nft.SetAddElements(setRef(ref, s), part)
		}); err != nil {
			return fmt.Errorf("add elements of %s: %w", s.Name, err)
		}
	}
	if err := c.nft.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", change.Name, err)
	}
	return nil
}

// Delete removes the table with all that is in it; it is no error if there is none.
func (c *Conn) Delete(f Family, name string) error {
	c.nft.DelTable(&nftables.Table{Family: f, Name: name})
	if err := c.nft.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete table %s: %w", name, err)
	}
	return nil
}

func chainRef(t *nftables.Table, c Chain) *nftables.Chain {
	ref := &nftables.Chain{Table: t, Name: c.Name}
	if c.Base != nil {
		policy := nftables.ChainPolicyAccept
		ref.Type = nftables.ChainType(c.Base.Type)
		ref.Hooknum = nftables.ChainHookRef(nftables.ChainHook(c.Base.Hook))
		ref.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.Base.Priority))
		ref.Policy = &policy
	}
	return ref
}

var keyTypes = map[KeyType]nftables.SetDatatype{
	KeyIPv4:   nftables.TypeIPAddr,
	KeyIPv6:   nftables.TypeIP6Addr,
	KeyMark:   nftables.TypeMark,
	KeyIfname: nftables.TypeIFName,
}

// keyTypeOf returns the key type of a set that was read; 0 where it is not known: the library puts a verdict map's
// data type where its key type belongs.
func keyTypeOf(s *nftables.Set) KeyType {
	for _, k := range []KeyType{KeyIPv4, KeyIPv6, KeyMark, KeyIfname} {
		if keyTypes[k].Name == s.KeyType.Name {
			return k
		}
	}
	return 0
}

func setRef(t *nftables.Table, s Set) *nftables.Set {
	ref := &nftables.Set{Table: t, Name: s.Name, KeyType: keyTypes[s.Key], Interval: s.Interval, IsMap: s.Map}
	if s.Map {
		ref.DataType = nftables.TypeVerdict
	}
	// Nothing but a hint for nft, so that it prints marks and names as a person would.
	ref.KeyByteOrder = binaryutil.BigEndian
	if s.Key == KeyMark || s.Key == KeyIfname {
		ref.KeyByteOrder = binaryutil.NativeEndian
	}
	return ref
}

// eachPart calls f with the elements as the kernel takes them, in parts that fit a message.
func eachPart(s Set, f func([]nftables.SetElement) error) error {
	for start := 0; start < len(s.Elements); start += elementsPerMessage {
		var part []nftables.SetElement
		for _, e := range s.Elements[start:min(start+elementsPerMessage, len(s.Elements))] {
			el := nftables.SetElement{Key: []byte(e.Key)}
			if e.Verdict.Chain != "" {
				el.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.Verdict.Chain}
				if e.Verdict.Goto {
					el.VerdictData.Kind = expr.VerdictGoto
				}
			}
			part = append(part, el)
			if e.End != "" {
				part = append(part, nftables.SetElement{Key: []byte(e.End), IntervalEnd: true})
			}
		}
		if err := f(part); err != nil {
			return err
		}
	}
	return nil
}

// fromKernel pairs the boundaries of ranges, which the kernel keeps as elements of their own.
func fromKernel(s *nftables.Set, elems []nftables.SetElement) ([]Element, error) {
	sort.SliceStable(elems, func(i, j int) bool {
		if c := strings.Compare(string(elems[i].Key), string(elems[j].Key)); c != 0 {
			return c < 0
		}
		return elems[i].IntervalEnd && !elems[j].IntervalEnd // one range ends where the next begins
	})
	var list []Element
	for i := range elems {
		if elems[i].IntervalEnd {
			if n := len(list); n > 0 && list[n-1].End == "" {
				list[n-1].End = string(elems[i].Key)
			}
			continue // an end without a beginning is how nft marks the start of the address space
		}
		e := Element{Key: string(elems[i].Key)}
		if s.IsMap {
			var err error
			if e.Verdict, err = decodeVerdict(elems[i].Val); err != nil {
				return nil, err
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// decodeVerdict reads the attributes of a verdict, which the library hands over undecoded.
func decodeVerdict(b []byte) (Verdict, error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return Verdict{}, fmt.Errorf("verdict: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	var v Verdict
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Goto = int32(ad.Uint32()) == unix.NFT_GOTO
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = ad.String()
		}
	}
	if err := ad.Err(); err != nil {
		return Verdict{}, fmt.Errorf("verdict: %w", err)
	}
	return v, nil
}
