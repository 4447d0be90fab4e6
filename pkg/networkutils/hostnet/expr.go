package hostnet

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/hostnet/nfttable"
)

// The words that rules are made of. Every one of them uses register 1.

const register = 1

// join makes one rule of several words.
func join(words ...nfttable.Rule) nfttable.Rule {
	var r nfttable.Rule
	for _, w := range words {
		r = append(r, w...)
	}
	return r
}

// native is a number as the kernel keeps it in registers.
func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func equals(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data} }
func notEquals(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: data}
}

// field is a value that a rule can load.
type field int

const (
	ctMark field = iota
	metaMark
	iifname
	oifname
	iifgroup
	saddr
	daddr
	saddr6
	daddr6
)

func load(f field) nfttable.Rule {
	switch f {
	case ctMark:
		return nfttable.Rule{&expr.Ct{Key: expr.CtKeyMARK, Register: register}}
	case metaMark:
		return nfttable.Rule{&expr.Meta{Key: expr.MetaKeyMARK, Register: register}}
	case iifname:
		return nfttable.Rule{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register}}
	case oifname:
		return nfttable.Rule{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register}}
	case iifgroup:
		return nfttable.Rule{&expr.Meta{Key: expr.MetaKeyIIFGROUP, Register: register}}
	case saddr:
		return nfttable.Rule{payload(12, 4)}
	case daddr:
		return nfttable.Rule{payload(16, 4)}
	case saddr6:
		return nfttable.Rule{payload(8, 16)}
	default: // daddr6
		return nfttable.Rule{payload(24, 16)}
	}
}

// payload loads a part of the IP header.
func payload(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func bitwise(mask, xor uint32) expr.Any {
	return &expr.Bitwise{
		SourceRegister: register, DestRegister: register, Len: 4, Mask: native(mask), Xor: native(xor),
	}
}

// marked loads the bits of a mark that are in the mask.
func marked(f field, mask uint32) nfttable.Rule { return append(load(f), bitwise(mask, 0)) }

func markIs(f field, mask, value uint32) nfttable.Rule {
	return append(marked(f, mask), equals(native(value)))
}

// markSet and markUnset test whether all of the bits are set. CONNMARK may have several: some of them set by somebody
// else is not our mark.
func markSet(f field, bits uint32) nfttable.Rule { return markIs(f, bits, bits) }

func markUnset(f field, bits uint32) nfttable.Rule {
	return append(marked(f, bits), notEquals(native(bits)))
}

// setMark writes a value to the bits of the mask and leaves the others, which may be anybody's. A constant is all
// that kernels before 6.13 can merge.
func setMark(f field, mask, value uint32) nfttable.Rule {
	r := append(load(f), bitwise(^mask, value))
	if f == ctMark {
		return append(r, &expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true})
	}
	return append(r, &expr.Meta{Key: expr.MetaKeyMARK, Register: register, SourceRegister: true})
}

// setZone has the packet's connection tracked in a zone.
func setZone(zone uint16) nfttable.Rule {
	return nfttable.Rule{
		&expr.Immediate{Register: register, Data: binary.NativeEndian.AppendUint16(nil, zone)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: register, SourceRegister: true},
	}
}

type ctDirection byte

const (
	original ctDirection = 0
	reply    ctDirection = 1
)

func direction(d ctDirection) nfttable.Rule {
	return nfttable.Rule{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, equals([]byte{byte(d)})}
}

// ipsDstNAT is IPS_DST_NAT: the connection's destination was rewritten.
const ipsDstNAT = 1 << 5

var dnatted = nfttable.Rule{
	&expr.Ct{Key: expr.CtKeySTATUS, Register: register}, bitwise(ipsDstNAT, 0), notEquals(native(0)),
}

type locality bool

const (
	local    locality = true
	notLocal locality = false
)

// fibType matches on whether the destination is an address of this host.
func fibType(l locality) nfttable.Rule {
	r := nfttable.Rule{&expr.Fib{Register: register, ResultADDRTYPE: true, FlagDADDR: true}}
	if l == local {
		return append(r, equals(native(unix.RTN_LOCAL)))
	}
	return append(r, notEquals(native(unix.RTN_LOCAL)))
}

// fibLocalHere matches destinations that are addresses of the link the packet came in by.
var fibLocalHere = nfttable.Rule{
	&expr.Fib{Register: register, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: true},
	equals(native(unix.RTN_LOCAL)),
}

// fibSourceUnroutable matches packets whose source address is not routed back to where they come from.
var fibSourceUnroutable = nfttable.Rule{
	&expr.Fib{Register: register, ResultOIF: true, FlagSADDR: true, FlagIIF: true}, equals(native(0)),
}

func lookup(f field, set string, invert bool) nfttable.Rule {
	return append(load(f), &expr.Lookup{SourceRegister: register, SetName: set, Invert: invert})
}

func in(f field, set string) nfttable.Rule     { return lookup(f, set, false) }
func notIn(f field, set string) nfttable.Rule  { return lookup(f, set, true) }
func linkIn(f field, set string) nfttable.Rule { return lookup(f, set, false) }

// inside matches addresses that are in the prefix, outside those that are not.
func inside(f field, p netip.Prefix) nfttable.Rule {
	return append(network(f, p), equals(p.Masked().Addr().AsSlice()))
}

func outside(f field, p netip.Prefix) nfttable.Rule {
	return append(network(f, p), notEquals(p.Masked().Addr().AsSlice()))
}

// network loads the bits of an address that a prefix is about.
func network(f field, p netip.Prefix) nfttable.Rule {
	length := p.Addr().BitLen() / 8
	mask := net.CIDRMask(p.Bits(), p.Addr().BitLen())
	r := load(f)
	if !p.IsSingleIP() {
		r = append(r, &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: uint32(length), Mask: mask, Xor: make([]byte, length)})
	}
	return r
}

// groupIs matches links by their device group.
func groupIs(f field, group uint32) nfttable.Rule { return append(load(f), equals(native(group))) }

// addressIs compares with an IPv4 address.
func addressIs(f field, a netip.Addr) nfttable.Rule { return append(load(f), equals(a.AsSlice())) }

// linkPrefix matches links whose name starts with the prefix.
func linkPrefix(f field, prefix string) nfttable.Rule { return append(load(f), equals([]byte(prefix))) }

// vmap does what a verdict map says about the value in the register.
func vmap(name string) nfttable.Rule {
	return nfttable.Rule{&expr.Lookup{SourceRegister: register, SetName: name, IsDestRegSet: true}}
}

const (
	returns = expr.VerdictReturn
	drop    = expr.VerdictDrop
)

func verdict(k expr.VerdictKind) nfttable.Rule { return nfttable.Rule{&expr.Verdict{Kind: k}} }

func jump(chain string) nfttable.Rule {
	return nfttable.Rule{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func gotoChain(chain string) expr.Any { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }

var counter = nfttable.Rule{&expr.Counter{}}

// snat rewrites the source. The kernel reads the upper end of the range back even if it was not given.
func snat(to netip.Addr, random SNATRandom) nfttable.Rule {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return nfttable.Rule{
		&expr.Immediate{Register: register, Data: to.AsSlice()},
		&expr.NAT{
			Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: register, RegAddrMax: register,
			FullyRandom: random == SNATRandomFully, Random: random == SNATRandomHash,
		},
	}
}
