// Package nfttable treats one nftables table as a value: it is read from the kernel, compared with the one wanted,
// and changed by the smallest transaction that leads from one to the other. Objects that stay wanted are never
// deleted and made again: a table that is replaced, even inside one transaction, lets packets meet rules of one
// generation with sets of the other.
package nfttable

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Family is the address family of a table.
type Family = nftables.TableFamily

// The families that tables are made for.
const (
	IPv4 = nftables.TableFamilyIPv4
	IPv6 = nftables.TableFamilyIPv6
)

// Table is a whole nftables table. Sets and chains are ordered by name, elements by key; rules are in the order in
// which packets meet them.
type Table struct {
	Family Family
	Name   string
	Sets   []Set
	Chains []Chain
}

// KeyType says what the keys of a set are.
type KeyType int

// The key types in use.
const (
	KeyIPv4   KeyType = iota + 1 // 4 bytes, network order
	KeyIPv6                      // 16 bytes, network order
	KeyMark                      // 4 bytes, host order
	KeyIfname                    // 16 bytes, NUL padded
)

// Set is a named set, or a verdict map if Map is true. Sets are never anonymous here: a named one can be changed
// element by element while the rules that use it stay.
type Set struct {
	Name     string
	Key      KeyType
	Interval bool // elements are ranges
	Map      bool // elements have verdicts
	Elements []Element
}

// sameKind reports whether the two sets differ in nothing but their elements. The key type of a verdict map that was
// read is not known.
func (s *Set) sameKind(o *Set) bool {
	return s.Name == o.Name && (s.Map || s.Key == o.Key) && s.Interval == o.Interval && s.Map == o.Map
}

// Element is an element of a set. Key and End are raw bytes as the kernel holds them; they are strings so that
// elements can be compared.
type Element struct {
	Key string
	// End is the first key behind the range of an interval set; empty when the range reaches the end of the address
	// space, and for sets without ranges.
	End     string
	Verdict Verdict
}

// Verdict is what a map does with a packet that matches: jump or go to a chain. It is zero in plain sets.
type Verdict struct {
	Goto  bool
	Chain string
}

// Chain is a chain with its rules. Base is nil for chains that only rules refer to.
type Chain struct {
	Name  string
	Base  *Base
	Rules []Rule
}

// Base says where the kernel calls a base chain. Its policy is always accept: nothing here filters.
type Base struct {
	Type     string // filter or nat
	Hook     uint32
	Priority int32
}

func sameBase(a, b *Base) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// Rule is the expressions of one rule.
type Rule []expr.Any

// canonical returns the rule as the bytes in which the kernel and we write the same rule the same way.
func (r Rule) canonical(f Family) (string, error) {
	var b bytes.Buffer
	for _, e := range r {
		data, err := expr.Marshal(byte(f), normal(e))
		if err != nil {
			return "", fmt.Errorf("marshal %T: %w", e, err)
		}
		b.Write(data)
	}
	return b.String(), nil
}

// normal removes what differs between an expression as it is written and the same one as it is read back.
func normal(e expr.Any) expr.Any {
	switch e := e.(type) {
	case *expr.Counter:
		return &expr.Counter{}
	case *expr.Lookup:
		// The id is meaningful only inside the transaction that creates the set.
		c := *e
		c.SetID = 0
		return &c
	case *expr.Ct:
		// The library does not decode the source register, so "ct mark set" comes back without any register.
		if e.Register == 0 {
			return &expr.Ct{Key: e.Key, Register: 1, SourceRegister: true}
		}
	}
	return e
}

func sameRules(f Family, a, b []Rule) (bool, error) {
	if len(a) != len(b) {
		return false, nil
	}
	for i := range a {
		ka, err := a[i].canonical(f)
		if err != nil {
			return false, err
		}
		kb, err := b[i].canonical(f)
		if err != nil {
			return false, err
		}
		if ka != kb {
			return false, nil
		}
	}
	return true, nil
}

// Normalize brings the table into the order that comparisons rely on.
func (t *Table) Normalize() {
	slices.SortFunc(t.Sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(t.Chains, func(a, b Chain) int { return strings.Compare(a.Name, b.Name) })
	for i := range t.Sets {
		slices.SortFunc(t.Sets[i].Elements, func(a, b Element) int { return strings.Compare(a.Key, b.Key) })
	}
}

func (t *Table) set(name string) *Set {
	if i := slices.IndexFunc(t.Sets, func(s Set) bool { return s.Name == name }); i >= 0 {
		return &t.Sets[i]
	}
	return nil
}

func (t *Table) chain(name string) *Chain {
	if i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == name }); i >= 0 {
		return &t.Chains[i]
	}
	return nil
}
