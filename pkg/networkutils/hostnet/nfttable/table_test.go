package nfttable

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func open(t testing.TB, ns *nstest.NS) *Conn {
	t.Helper()
	c, err := Open(context.Background(), ns.FD())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func read(t testing.TB, c *Conn, f Family) *Table {
	t.Helper()
	table, err := c.Read(f, "test")
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// move changes the table in the kernel to want and makes sure that nothing is left to do then.
func move(t testing.TB, c *Conn, want *Table, how func(have, want *Table) (*Change, error)) int {
	t.Helper()
	change, err := how(read(t, c, want.Family), want)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(change); err != nil {
		t.Fatalf("%v\nin %+v", err, change)
	}
	rest, err := Diff(read(t, c, want.Family), want)
	if err != nil {
		t.Fatal(err)
	}
	if rest.Writes() != 0 {
		t.Fatalf("left to do: %+v", rest)
	}
	return change.Writes()
}

func interval(first, last string, verdict Verdict) Element {
	return Element{
		Key:     string(netip.MustParseAddr(first).AsSlice()),
		End:     string(netip.MustParseAddr(last).Next().AsSlice()),
		Verdict: verdict,
	}
}

// random makes a table out of few names, so that any two have much in common: chains that jump to later ones, maps
// that jump to any, sets whose ranges touch.
func random(r *rand.Rand, f Family) *Table {
	t := &Table{Family: f, Name: "test"}
	var names []string
	for i := range 5 {
		if r.IntN(4) > 0 {
			names = append(names, fmt.Sprintf("c%d", i))
		}
	}
	key, width := KeyIPv4, 4
	if f == IPv6 {
		key, width = KeyIPv6, 16
	}
	address := func(n byte) string {
		b := make([]byte, width)
		b[0], b[width-1] = 10, n
		return string(b)
	}
	ranges := func(verdict func() Verdict) []Element {
		var list []Element
		for n := byte(0); n < 60; {
			size := byte(1 + r.IntN(4))
			if r.IntN(2) == 0 {
				list = append(list, Element{Key: address(n), End: address(n + size), Verdict: verdict()})
			}
			n += size + byte(r.IntN(2))
		}
		return list
	}
	var maps []string
	verdictTo := func() Verdict { return Verdict{Goto: r.IntN(2) == 0, Chain: names[r.IntN(len(names))]} }
	if len(names) > 0 && r.IntN(4) > 0 {
		maps = append(maps, "m0")
		t.Sets = append(t.Sets, Set{Name: "m0", Key: key, Interval: true, Map: true, Elements: ranges(verdictTo)})
	}
	if r.IntN(3) > 0 {
		t.Sets = append(t.Sets, Set{
			Name: "s0", Key: key, Interval: true, Elements: ranges(func() Verdict { return Verdict{} }),
		})
	}
	if r.IntN(3) > 0 {
		s := Set{Name: "s1", Key: KeyMark}
		if r.IntN(3) == 0 {
			s.Key = KeyIfname // another kind under the same name
		}
		for i := range r.IntN(5) {
			b := binary.NativeEndian.AppendUint32(nil, uint32(i+1)*0x10000)
			if s.Key == KeyIfname {
				b = append(fmt.Appendf(nil, "eth%d", i), make([]byte, 12)...)
			}
			s.Elements = append(s.Elements, Element{Key: string(b)})
		}
		t.Sets = append(t.Sets, s)
	}
	for i, name := range names {
		c := Chain{Name: name}
		for range r.IntN(3) {
			rule := Rule{
				&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, r.Uint32N(3))},
				&expr.Counter{},
			}
			if i+1 < len(names) {
				rule = append(rule, &expr.Verdict{Kind: expr.VerdictJump, Chain: names[i+1+r.IntN(len(names)-i-1)]})
			}
			c.Rules = append(c.Rules, rule)
		}
		t.Chains = append(t.Chains, c)
	}
	if len(maps) > 0 && r.IntN(2) == 0 {
		offset := uint32(12)
		if f == IPv6 {
			offset = 8
		}
		// Only the base chain uses the map, or there would be loops.
		t.Chains = append(t.Chains, Chain{
			Name: "base",
			Base: &Base{Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: int32(-r.IntN(2))},
			Rules: []Rule{{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(width)},
				&expr.Lookup{SourceRegister: 1, SetName: "m0", IsDestRegSet: true},
			}},
		})
	}
	t.Normalize()
	return t
}

// From any table to any other, by the smallest change and by refilling: the transaction is accepted and leads there.
func TestEveryChangeIsAccepted(t *testing.T) {
	for _, f := range []Family{IPv4, IPv6} {
		t.Run(fmt.Sprint(f), func(t *testing.T) {
			t.Parallel()
			c := open(t, nstest.New(t))
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			move(t, c, random(r, f), Diff)
			for i := range 150 {
				how := Diff
				if i%3 == 0 {
					how = func(have, want *Table) (*Change, error) { return Refill(have, want), nil }
				}
				move(t, c, random(r, f), how)
			}
		})
	}
}

func TestOnlyElementsChange(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	c := open(t, ns)
	jump := Verdict{Chain: "out"}
	table := func(elements ...Element) *Table {
		return &Table{
			Family: IPv4, Name: "test",
			Sets:   []Set{{Name: "m", Key: KeyIPv4, Interval: true, Map: true, Elements: elements}},
			Chains: []Chain{{Name: "out"}},
		}
	}
	one, two := interval("10.0.0.1", "10.0.0.1", jump), interval("10.0.0.2", "10.0.0.2", jump)
	move(t, c, table(one), Diff)
	if n := move(t, c, table(one, two), Diff); n != 1 {
		t.Errorf("%d writes for one element more", n)
	}
	if n := move(t, c, table(two), Diff); n != 1 {
		t.Errorf("%d writes for one element less", n)
	}
	if n := move(t, c, table(two), Diff); n != 0 {
		t.Errorf("%d writes for nothing", n)
	}
	// A wider range over the same first address, and everything there is.
	move(t, c, table(interval("10.0.0.2", "10.0.0.9", jump)), Diff)
	move(t, c, table(Element{Key: "\x00\x00\x00\x00", Verdict: jump}), Diff)
	if got := ns.Run("nft", "list", "map", "ip", "test", "m"); !strings.Contains(got, "0.0.0.0/0 : jump out") {
		t.Errorf("the whole address space reads\n%s", got)
	}
}

// A set that does not fit one netlink message is written in several, within one transaction.
func TestLargeSets(t *testing.T) {
	t.Parallel()
	c := open(t, nstest.New(t))
	table := &Table{Family: IPv4, Name: "test", Sets: []Set{{Name: "s", Key: KeyIPv4, Interval: true}}}
	for i := range 10000 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 7), byte(i<<1) & 0xfe, 1})
		table.Sets[0].Elements = append(table.Sets[0].Elements, interval(a.String(), a.String(), Verdict{}))
	}
	table.Normalize()
	table.Sets[0].Elements = dedupe(table.Sets[0].Elements)
	move(t, c, table, Diff)
	if err := c.Delete(IPv4, "test"); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(IPv4, "test"); err != nil {
		t.Fatalf("delete what is gone: %v", err)
	}
	if got := read(t, c, IPv4); got != nil {
		t.Fatalf("deleted table is still there: %+v", got)
	}
}

func dedupe(list []Element) []Element {
	var out []Element
	for _, e := range list {
		if n := len(out); n == 0 || out[n-1] != e {
			out = append(out, e)
		}
	}
	return out
}

// A read while others change the ruleset all the time is a read of one state, or an error that says so.
func TestReadWhileOthersWrite(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	reader, writer := open(t, ns), open(t, ns)
	states := []*Table{random(rand.New(rand.NewPCG(1, 1)), IPv4), random(rand.New(rand.NewPCG(2, 2)), IPv4)}
	move(t, writer, states[0], Diff)
	done := make(chan error, 1)
	go func() {
		for i := range 100 {
			if err := writer.Write(Refill(states[i%2], states[(i+1)%2])); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for reading := true; reading; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			reading = false
		default:
		}
		got, err := reader.Read(IPv4, "test")
		if err != nil {
			continue // what was read in between is thrown away
		}
		matches := 0
		for _, s := range states {
			if change, err := Diff(got, s); err == nil && change.Writes() == 0 {
				matches++
			}
		}
		if matches != 1 {
			t.Fatalf("read a mixture: %+v", got)
		}
	}
}
