// Package xtables takes rules and chains out of the tables of iptables' legacy backend, without iptables: some nodes have
// rules there that a predecessor of this CNI wrote, and an image need not carry the tools of a backend that it does not
// use. It only ever removes. The kernel takes a table as a whole (ip_tables.h), so everything else in it goes back as it
// came, counters included.
package xtables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The layout of struct ipt_entry, xt_entry_match and xt_entry_target on 64-bit machines.
const (
	entrySize     = 112 // up to the matches
	inIface       = 16  // of the entry: char[16]
	outIface      = 32
	targetOffset  = 88 // u16
	nextOffset    = 90 // u16
	countersAt    = 96 // two u64: packets, bytes
	counterSize   = 16
	extensionHead = 32 // u16 size, char[29] name, u8 revision
	nameAt        = 2
	nameSize      = 29
	verdictSize   = 4
)

// errorTarget is the name of the target that heads a chain (with the chain's name) and ends the table.
const errorTarget = "ERROR"

// hooks is the number of netfilter's hooks for IPv4.
const hooks = 5

var native = binary.NativeEndian

// table is a table as the kernel gives it: rules in one block, jumps as offsets into it.
type table struct {
	name       string
	validHooks uint32
	hookEntry  [hooks]uint32
	underflow  [hooks]uint32
	rules      []Rule
}

// Rule is one rule. Its fields are for those who choose what to remove.
type Rule struct {
	Chain    string // a built-in chain's name, or a user's
	Jump     string // the chain it jumps or goes to; empty if it does not
	Target   string // the target's name; empty for a standard verdict or a jump
	Comments []string
	In, Out  string // interfaces, with "+" for any that begin so

	raw     []byte
	offset  uint32
	head    bool // not a rule: names a chain
	policy  bool // not a rule: ends a chain, with its verdict
	verdict int32
	jumps   bool
}

var errMalformed = errors.New("table is not laid out as expected")

var hookNames = [hooks]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// parse reads the kernel's block of rules.
func (t *table) parse(block []byte) error {
	heads := map[uint32]string{} // offset behind the head → chain
	for at := uint32(0); int(at) < len(block); {
		r, err := parseRule(block[at:])
		if err != nil {
			return fmt.Errorf("%w: rule at %d: %w", errMalformed, at, err)
		}
		r.offset = at
		at += uint32(len(r.raw))
		if r.head {
			heads[at] = r.Chain
		}
		t.rules = append(t.rules, r)
	}
	if n := len(t.rules); n == 0 || !t.rules[n-1].head {
		return fmt.Errorf("%w: it has no end", errMalformed)
	}
	chain := ""
	for i := range t.rules {
		r := &t.rules[i]
		for h := range hooks {
			if t.validHooks&(1<<h) != 0 && t.hookEntry[h] == r.offset {
				chain = hookNames[h]
			}
		}
		if r.head {
			chain = r.Chain
			continue
		}
		r.Chain = chain
		for h := range hooks {
			r.policy = r.policy || t.validHooks&(1<<h) != 0 && t.underflow[h] == r.offset
		}
		// A user's chain ends with a rule that returns, before the next chain's head.
		r.policy = r.policy || i+1 < len(t.rules) && t.rules[i+1].head
		if r.jumps && r.verdict >= 0 {
			name, ok := heads[uint32(r.verdict)]
			// A jump to the rule behind itself is how "no target" is written.
			if !ok && uint32(r.verdict) != r.offset+uint32(len(r.raw)) {
				return fmt.Errorf("%w: jump to %d", errMalformed, r.verdict)
			}
			r.Jump = name
		}
	}
	return nil
}

func parseRule(b []byte) (Rule, error) {
	if len(b) < entrySize {
		return Rule{}, errors.New("cut short")
	}
	target, next := int(native.Uint16(b[targetOffset:])), int(native.Uint16(b[nextOffset:]))
	if target < entrySize || next > len(b) || target+extensionHead > next {
		return Rule{}, fmt.Errorf("target at %d, end at %d of %d", target, next, len(b))
	}
	r := Rule{raw: bytes.Clone(b[:next]), In: cString(b[inIface : inIface+16]), Out: cString(b[outIface : outIface+16])}
	r.In, r.Out = wildcard(r.In, b[48:64]), wildcard(r.Out, b[64:80])
	for at := entrySize; at < target; {
		size := int(native.Uint16(b[at:]))
		if size < extensionHead || at+size > target {
			return Rule{}, fmt.Errorf("match of %d bytes at %d", size, at)
		}
		if name := cString(b[at+nameAt : at+nameAt+nameSize]); name == "comment" {
			r.Comments = append(r.Comments, cString(b[at+extensionHead:at+size]))
		}
		at += size
	}
	name, data := cString(b[target+nameAt:target+nameAt+nameSize]), b[target+extensionHead:next]
	switch {
	case name == errorTarget:
		r.head, r.Chain = true, cString(data)
	case name == "":
		if len(data) < verdictSize {
			return Rule{}, errors.New("verdict is cut short")
		}
		r.verdict, r.jumps = int32(native.Uint32(data)), true
	default:
		r.Target = name
	}
	return r, nil
}

// wildcard adds the "+" of an interface whose mask ends with its name's last letter.
func wildcard(name string, mask []byte) string {
	if name != "" && len(name) < len(mask) && mask[len(name)] == 0 {
		return name + "+"
	}
	return name
}

func cString(b []byte) string {
	before, _, _ := bytes.Cut(b, []byte{0})
	return string(before)
}

// without returns the table without the rules that gone chooses, and without the chains that drop chooses and that
// nothing jumps to then. kept has the index of each kept entry in the old table.
func (t *table) without(gone func(Rule) bool, drop func(chain string) bool) (out *table, kept []int) {
	remove := make([]bool, len(t.rules))
	for i, r := range t.rules {
		remove[i] = !r.head && !r.policy && gone(r)
	}
	for _, chain := range t.removable(drop, remove) {
		for i, r := range t.rules {
			// The last head ends the table and is no chain.
			if r.Chain == chain && (i < len(t.rules)-1) && !t.builtIn(chain) {
				remove[i] = true
			}
		}
	}
	out = &table{name: t.name, validHooks: t.validHooks}
	moved := map[uint32]uint32{}
	at := uint32(0)
	for i, r := range t.rules {
		moved[r.offset] = at
		if !remove[i] {
			at += uint32(len(r.raw))
		}
	}
	for i, r := range t.rules {
		if remove[i] {
			continue
		}
		r.raw = bytes.Clone(r.raw)
		if r.jumps && r.verdict >= 0 {
			r.verdict = int32(moved[uint32(r.verdict)])
			native.PutUint32(r.raw[int(native.Uint16(r.raw[targetOffset:]))+extensionHead:], uint32(r.verdict))
		}
		r.offset = moved[r.offset]
		out.rules = append(out.rules, r)
		kept = append(kept, i)
	}
	for h := range hooks {
		if t.validHooks&(1<<h) != 0 {
			out.hookEntry[h], out.underflow[h] = moved[t.hookEntry[h]], moved[t.underflow[h]]
		}
	}
	return out, kept
}

// removable lists the chains that drop chooses and that no rule left jumps to, but for rules of such chains.
func (t *table) removable(drop func(string) bool, removed []bool) (chains []string) {
	candidate := map[string]bool{}
	for i, r := range t.rules {
		if r.head && i < len(t.rules)-1 && drop(r.Chain) {
			candidate[r.Chain] = true
		}
	}
	for again := true; again; {
		again = false
		for i, r := range t.rules {
			if !removed[i] && candidate[r.Jump] && !candidate[r.Chain] {
				delete(candidate, r.Jump)
				again = true
			}
		}
	}
	for _, r := range t.rules {
		if r.head && candidate[r.Chain] {
			chains = append(chains, r.Chain)
		}
	}
	return chains
}

func (t *table) builtIn(chain string) bool {
	for h := range hooks {
		if t.validHooks&(1<<h) != 0 && hookNames[h] == chain {
			return true
		}
	}
	return false
}

func (t *table) size() (n uint32) {
	for _, r := range t.rules {
		n += uint32(len(r.raw))
	}
	return n
}
