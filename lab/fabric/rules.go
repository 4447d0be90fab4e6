package fabric

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Links of the VPC router that are not ENIs. They are in link group 0; ENIs are in the group of their VPC.
const (
	internetLink = "internet"
	tableName    = "fabric"
)

// The sets whose elements follow ENIs, subnets and VPCs. Addresses of ENIs are in none of them: what is assigned is
// what the router has a route for, so that an assignment is one route and nothing else.
const (
	setUnchecked = "unchecked"   // links of ENIs with source/destination check off
	setMapped    = "mapped"      // private addresses that the internet gateway maps to public ones
	setNATted    = "nat_sources" // private subnets
	setPeered    = "peered"      // pairs of link groups that may talk: each VPC with itself
)

// Cause is why the fabric dropped a packet.
type Cause string

// The causes. Broadcast and multicast are dropped too, but not counted: a VPC has neither, and any kernel sends some.
const (
	SourceNotAssigned      Cause = "source-not-assigned"
	DestinationNotAssigned Cause = "destination-not-assigned"
	NoPublicMapping        Cause = "no-public-mapping"
	OtherVPC               Cause = "other-vpc"
)

// causes has them in the order in which a packet meets them, each with the families it can happen to: every IPv6
// address is public, so the internet gateway refuses none.
var causes = []struct {
	cause Cause
	v4    bool
	v6    bool
}{
	{SourceNotAssigned, true, true},
	{DestinationNotAssigned, true, true},
	{OtherVPC, true, true},
	{NoPublicMapping, true, false},
}

// detailSize bounds how many different (ENI, source, destination) are told apart per cause. Further ones are
// counted all the same, without saying whose they are.
const detailSize = 4096

// linkLocalServices are the ranges of IMDS and the resolver. They are there for ENIs only.
var linkLocalServices = []netip.Prefix{netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fd00:ec2::/32")}

// detailSet holds, per cause, who sent what to whom, and how much of it.
func detailSet(c Cause, v6 bool) string {
	if v6 {
		return string(c) + "6"
	}
	return string(c) + "4"
}

// ruleset is the router's nftables table: sets and chains in the order of their creation, rules in that of their
// evaluation.
type ruleset struct {
	table  *nftables.Table
	sets   []*nftables.Set
	chains []*nftables.Chain
	rules  []*nftables.Rule
}

func newRuleset() *ruleset {
	r := &ruleset{table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}
	r.set(&nftables.Set{Name: setUnchecked, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian})
	r.set(&nftables.Set{Name: setMapped, KeyType: nftables.TypeIPAddr})
	r.set(&nftables.Set{Name: setNATted, KeyType: nftables.TypeIPAddr, Interval: true})
	r.set(&nftables.Set{Name: setPeered, Concatenation: true,
		KeyType: nftables.MustConcatSetType(nftables.TypeDevGroup, nftables.TypeDevGroup)})
	drops := map[Cause]*nftables.Chain{}
	for _, c := range causes {
		drops[c.cause] = r.dropChain(c.cause, c.v4, c.v6)
	}

	// Before connection tracking, so that a spoofed packet leaves no trace.
	pre := r.chain("from_anywhere", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	r.rule(pre, iifname("lo"), accept())
	r.rule(pre, neighbourDiscovery(), accept())
	r.rule(pre, within(netip.MustParsePrefix("fe80::/10"), false), accept()) // never forwarded
	r.rule(pre, notUnicast(), drop())
	r.rule(pre, in(setUnchecked, meta(expr.MetaKeyIIFNAME, 1)), jump("to_somewhere", expr.VerdictGoto))
	r.rule(pre, fibMissing(&expr.Fib{FlagSADDR: true, FlagIIF: true}), jump(drops[SourceNotAssigned].Name, expr.VerdictGoto))
	to := r.chain("to_somewhere", "", nil, nil)
	r.rule(pre, jump(to.Name, expr.VerdictGoto))
	for _, p := range linkLocalServices {
		r.rule(to, notENI(expr.MetaKeyIIFGROUP), within(p, true), jump(drops[DestinationNotAssigned].Name, expr.VerdictGoto))
	}
	r.rule(to, fibLocal(), accept())
	r.rule(to, fibMissing(&expr.Fib{FlagDADDR: true}), jump(drops[DestinationNotAssigned].Name, expr.VerdictGoto))
	// Only the NAT gateway needs connections.
	r.rule(to, not(iifname(internetLink)), fibNotTo(internetLink), []expr.Any{&expr.Notrack{}})

	fwd := r.chain("through", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	r.rule(fwd, oifname(internetLink), jump("to_internet", expr.VerdictGoto))
	r.rule(fwd, iifname(internetLink), jump("from_internet", expr.VerdictGoto))
	r.rule(fwd, isENI(expr.MetaKeyIIFGROUP), isENI(expr.MetaKeyOIFGROUP),
		notIn(setPeered, meta(expr.MetaKeyIIFGROUP, 1), meta(expr.MetaKeyOIFGROUP, 9)),
		jump(drops[OtherVPC].Name, expr.VerdictGoto))
	out := r.chain("to_internet", "", nil, nil)
	r.rule(out, family(unix.NFPROTO_IPV6), accept())
	r.rule(out, in(setMapped, saddr4()), accept())
	r.rule(out, in(setNATted, saddr4()), accept())
	r.rule(out, jump(drops[NoPublicMapping].Name, expr.VerdictGoto))
	back := r.chain("from_internet", "", nil, nil)
	r.rule(back, family(unix.NFPROTO_IPV6), accept())
	r.rule(back, replies(), accept())
	r.rule(back, in(setMapped, daddr4()), accept())
	r.rule(back, jump(drops[NoPublicMapping].Name, expr.VerdictGoto))

	post := r.chain("nat_gateway", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	r.rule(post, oifname(internetLink), in(setNATted, saddr4()), snat4(NATAddr.AsSlice()))
	return r
}

// dropChain is where packets end for one cause: noted in detail while there is room, counted in any case.
func (r *ruleset) dropChain(c Cause, v4, v6 bool) *nftables.Chain {
	chain := r.chain(string(c), "", nil, nil)
	note := func(name string, proto byte, typ nftables.SetDatatype) {
		r.set(&nftables.Set{Name: name, Dynamic: true, Concatenation: true, Size: detailSize,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, typ, typ)})
		// Three values that follow each other in the 4-byte registers, which are numbered from 8; register 1
		// is the first four of them.
		source := uint32(8 + unix.IFNAMSIZ/4)
		r.rule(chain, family(proto), meta(expr.MetaKeyIIFNAME, 1),
			address(source, typ.Bytes, false), address(source+typ.Bytes/4, typ.Bytes, true),
			[]expr.Any{&expr.Dynset{SrcRegKey: 1, SetName: name, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}}})
	}
	if v4 {
		note(detailSet(c, false), unix.NFPROTO_IPV4, nftables.TypeIPAddr)
	}
	if v6 {
		note(detailSet(c, true), unix.NFPROTO_IPV6, nftables.TypeIP6Addr)
	}
	r.rule(chain, []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: string(c)}})
	r.rule(chain, drop())
	return chain
}

func (r *ruleset) set(s *nftables.Set) {
	s.Table = r.table
	s.ID = uint32(len(r.sets) + 1)
	r.sets = append(r.sets, s)
}

func (r *ruleset) setNamed(name string) *nftables.Set {
	i := slices.IndexFunc(r.sets, func(s *nftables.Set) bool { return s.Name == name })
	return r.sets[i]
}

func (r *ruleset) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
	c := &nftables.Chain{Name: name, Table: r.table, Type: typ, Hooknum: hook, Priority: prio}
	r.chains = append(r.chains, c)
	return c
}

func (r *ruleset) rule(c *nftables.Chain, parts ...[]expr.Any) {
	r.rules = append(r.rules, &nftables.Rule{Table: r.table, Chain: c, Exprs: slices.Concat(parts...)})
}

// install creates the table in one transaction.
func (r *ruleset) install(conn *nftables.Conn) error {
	conn.AddTable(r.table)
	for _, c := range causes {
		conn.AddObj(&nftables.NamedObj{Table: r.table, Name: string(c.cause), Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	for _, s := range r.sets {
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	for _, c := range r.chains {
		conn.AddChain(c)
	}
	for _, rule := range r.rules {
		conn.AddRule(rule)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("install nftables table %s: %w", tableName, err)
	}
	return nil
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func meta(key expr.MetaKey, register uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: register}}
}

func compare(op expr.CmpOp, value []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: value}
}

func iifname(name string) []expr.Any {
	return append(meta(expr.MetaKeyIIFNAME, 1), compare(expr.CmpOpEq, ifname(name)))
}

func oifname(name string) []expr.Any {
	return append(meta(expr.MetaKeyOIFNAME, 1), compare(expr.CmpOpEq, ifname(name)))
}

// within matches packets whose source or destination is in p.
func within(p netip.Prefix, destination bool) []expr.Any {
	size, proto := uint32(p.Addr().BitLen()/8), byte(unix.NFPROTO_IPV4)
	if p.Addr().Is6() {
		proto = unix.NFPROTO_IPV6
	}
	return slices.Concat(family(proto), address(1, size, destination), []expr.Any{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size)},
		compare(expr.CmpOpEq, p.Masked().Addr().AsSlice()),
	})
}

// not turns the comparison that ends a match around.
func not(match []expr.Any) []expr.Any {
	if c, ok := match[len(match)-1].(*expr.Cmp); ok {
		c.Op = expr.CmpOpNeq
	}
	return match
}

func isENI(group expr.MetaKey) []expr.Any { return not(notENI(group)) }

func notENI(group expr.MetaKey) []expr.Any {
	return append(meta(group, 1), compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(0)))
}

func family(proto byte) []expr.Any {
	return append(meta(expr.MetaKeyNFPROTO, 1), compare(expr.CmpOpEq, []byte{proto}))
}

// neighbourDiscovery matches what IPv6 hosts and their router tell each other on the link. It is not forwarded.
func neighbourDiscovery() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		compare(expr.CmpOpEq, []byte{unix.IPPROTO_ICMPV6}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{133}, ToData: []byte{137}},
	}
}

func notUnicast() []expr.Any {
	return append(meta(expr.MetaKeyPKTTYPE, 1), compare(expr.CmpOpNeq, []byte{unix.PACKET_HOST}))
}

// fibMissing matches if the routing table has no route (by the link named in f, if any).
func fibMissing(f *expr.Fib) []expr.Any {
	f.Register, f.ResultOIF, f.FlagPRESENT = 1, true, true
	return []expr.Any{f, compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(0))}
}

func fibLocal() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		compare(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))}
}

func fibNotTo(link string) []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultOIFNAME: true}, compare(expr.CmpOpNeq, ifname(link))}
}

// address loads the source or destination of an IPv4 (4 bytes) or IPv6 (16 bytes) packet.
func address(register, size uint32, destination bool) []expr.Any {
	offset := uint32(12)
	if size == 16 {
		offset = 8
	}
	if destination {
		offset += size
	}
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}}
}

func saddr4() []expr.Any { return append(family(unix.NFPROTO_IPV4), address(1, 4, false)...) }
func daddr4() []expr.Any { return append(family(unix.NFPROTO_IPV4), address(1, 4, true)...) }

// in looks a key, whose parts are loaded from register 1 on, up in a set.
func in(set string, key ...[]expr.Any) []expr.Any {
	return append(slices.Concat(key...), &expr.Lookup{SourceRegister: 1, SetName: set})
}

func notIn(set string, key ...[]expr.Any) []expr.Any {
	return append(slices.Concat(key...), &expr.Lookup{SourceRegister: 1, SetName: set, Invert: true})
}

func replies() []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: binaryutil.NativeEndian.PutUint32(0)},
		compare(expr.CmpOpNeq, binaryutil.NativeEndian.PutUint32(0)),
	}
}

func snat4(addr []byte) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: addr},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

func jump(chain string, kind expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
