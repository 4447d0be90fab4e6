package xtables

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// ours is what the tests remove: chains and rules with a comment of ours.
func ours(lock string) Options {
	return Options{
		Rules: func(_ string, r Rule) bool {
			return strings.HasPrefix(r.Jump, "OURS-") || slices.ContainsFunc(r.Comments, func(c string) bool { return strings.HasPrefix(c, "ours") })
		},
		Chains: func(_, chain string) bool { return strings.HasPrefix(chain, "OURS-") },
		Lock:   lock,
	}
}

// host is a network namespace with a lock of its own for the tools.
type host struct {
	*nstest.NS
	t    *testing.T
	lock string
}

func newHost(t *testing.T) *host {
	return &host{NS: nstest.New(t), t: t, lock: filepath.Join(t.TempDir(), "xtables.lock")}
}

func (h *host) tool(input, name string, args ...string) string {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "input")
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return h.Run("sh", "-c", fmt.Sprintf("XTABLES_LOCKFILE=%s %s %s < %s", h.lock, name, strings.Join(args, " "), file))
}

// save is the state as the backend's own tool prints it, with counters.
func (h *host) save() string {
	h.t.Helper()
	return regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(h.tool("", "iptables-legacy-save", "-c"), "")
}

func (h *host) remove(o Options) (n int, err error) {
	h.t.Helper()
	err = h.Do(func() error {
		n, err = Remove(context.Background(), o)
		return err
	})
	return n, err
}

// expected is what is left of a save without what is ours.
func expected(save string) string {
	var out strings.Builder
	for line := range strings.Lines(save) {
		if !strings.Contains(line, "OURS-") && !strings.Contains(line, `"ours`) && !strings.Contains(line, "comment ours") {
			out.WriteString(line)
		}
	}
	return out.String()
}

func TestNothingIsLoaded(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if n, err := h.remove(ours(h.lock)); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if names := h.Run("cat", "/proc/self/net/ip_tables_names"); names != "" {
		t.Errorf("tables are in use: %q", names)
	}
}

const mixed = `*nat
:PREROUTING ACCEPT [7:420]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [1:60]
:POSTROUTING ACCEPT [2:120]
:KUBE-SERVICES - [0:0]
:OURS-0 - [0:0]
:OURS-1 - [0:0]
:OURS-2 - [0:0]
:ZZ - [0:0]
[5:300] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
[3:180] -A PREROUTING -i eni+ -m comment --comment "ours, outbound connections" -j OURS-1
[2:100] -A POSTROUTING -m comment --comment "ours" -j OURS-0
[1:50] -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
[9:90] -A KUBE-SERVICES -d 172.20.0.1/32 -p tcp -m tcp --dport 443 -g ZZ
[4:40] -A OURS-0 -d 10.0.0.0/16 -m comment --comment "ours" -j RETURN
[6:60] -A OURS-0 ! -o vlan+ -m comment --comment "ours" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.1.10 --random-fully
[0:0] -A OURS-1 -j OURS-2
[8:80] -A ZZ -p tcp -j DNAT --to-destination 10.0.1.20:6443
[8:81] -A ZZ -p udp
COMMIT
*mangle
:PREROUTING ACCEPT [1:1]
:INPUT ACCEPT [2:2]
:FORWARD DROP [3:3]
:OUTPUT ACCEPT [4:4]
:POSTROUTING ACCEPT [5:5]
[1:10] -A PREROUTING -i eth0 -m comment --comment "ours, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
[1:11] -A PREROUTING -m mark --mark 0x1/0x1 -j MARK --set-xmark 0x2/0x2
[1:12] -A PREROUTING -i eni+ -m comment --comment "ours, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
`

func TestOnlyOursGoes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.tool(mixed, "iptables-legacy-restore", "-c")
	before := h.save()
	n, err := h.remove(ours(h.lock))
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 + 2 + (2 + 2) + (2 + 1) + 2; n != want {
		t.Errorf("%d entries went, want %d", n, want)
	}
	if got, want := h.save(), expected(before); got != want || strings.Contains(got, "ours") || !strings.Contains(before, "OURS-0") {
		t.Errorf("left:\n%s\nwant:\n%s", got, want)
	}
	if n, err := h.remove(ours(h.lock)); n != 0 || err != nil {
		t.Errorf("second time: %d, %v", n, err)
	}
	// The backend's own tool can still change what is there.
	h.tool("", "iptables-legacy", "-t", "nat", "-A", "ZZ", "-j", "RETURN")
}

// A chain that a rule of somebody else jumps to stays.
func TestChainInUseStays(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.tool("*filter\n:OURS-0 - [0:0]\n:OURS-1 - [0:0]\n:MINE - [0:0]\n-A MINE -s 10.0.0.1/32 -j OURS-0\n-A OURS-0 -j OURS-1\n-A OURS-1 -j DROP\nCOMMIT\n",
		"iptables-legacy-restore")
	before := h.save()
	o := ours(h.lock)
	o.Rules = nil
	if n, err := h.remove(o); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if got := h.save(); got != before {
		t.Errorf("%s", got)
	}
}

func TestWaitsForTheLock(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.tool(mixed, "iptables-legacy-restore", "-c")
	f, err := os.Create(h.lock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = h.Do(func() error { _, err := Remove(ctx, ours(h.lock)); return err })
	if err == nil || !strings.Contains(err.Error(), "held by somebody else") {
		t.Errorf("%v", err)
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
	if n, err := h.remove(ours(h.lock)); n == 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// TestRandomTables compares with the backend's own tool: what it prints afterwards is what it printed before, without
// the lines that are ours.
func TestRandomTables(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for i := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, i))
		h := newHost(t)
		h.tool(randomTables(r), "iptables-legacy-restore", "-c")
		before := h.save()
		if _, err := h.remove(ours(h.lock)); err != nil {
			t.Fatalf("seed %d/%d: %v", seed, i, err)
		}
		if got, want := h.save(), expected(before); got != want {
			t.Fatalf("seed %d/%d: left:\n%s\nwant:\n%s", seed, i, got, want)
		}
	}
}

var matches = []string{"-p tcp -m tcp --dport %d", "-s 10.1.%d.0/24", "! -d 10.2.%d.4/32", "-m mark --mark %#x/0xff", "-i eth%d", "-o eni%d+", "-m conntrack --ctstate NEW",
	"-m comment --comment \"somebody's rule %d\"", "-p udp -m multiport --dports 53,%d", "-m addrtype --dst-type LOCAL", "-m limit --limit %d/sec", ""}

func randomTables(r *rand.Rand) string {
	var b strings.Builder
	for _, name := range []string{"filter", "nat", "mangle", "raw"} {
		if r.IntN(4) == 0 {
			continue
		}
		builtIn := map[string][]string{"filter": {"INPUT", "FORWARD", "OUTPUT"}, "nat": {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
			"mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, "raw": {"PREROUTING", "OUTPUT"}}[name]
		fmt.Fprintf(&b, "*%s\n", name)
		for _, c := range builtIn {
			fmt.Fprintf(&b, ":%s ACCEPT [%d:%d]\n", c, r.IntN(100), r.IntN(1000))
		}
		var chains []string
		for i := range r.IntN(8) {
			chain := fmt.Sprintf("%s-%d", []string{"OURS", "KUBE", "A", "Z"}[r.IntN(4)], i)
			chains = append(chains, chain)
			fmt.Fprintf(&b, ":%s - [0:0]\n", chain)
		}
		// A chain jumps only to those behind it, so there is no loop.
		for i, chain := range append(slices.Clone(builtIn), chains...) {
			later := chains[max(0, min(i-len(builtIn)+1, len(chains))):]
			mine := strings.HasPrefix(chain, "OURS-")
			for range r.IntN(6) {
				match := matches[r.IntN(len(matches))]
				if strings.Contains(match, "%") {
					match = fmt.Sprintf(match, 1+r.IntN(200))
				}
				if strings.HasPrefix(match, "-o") && (chain == "PREROUTING" || chain == "INPUT") ||
					strings.HasPrefix(match, "-i") && (chain == "OUTPUT" || chain == "POSTROUTING") || !slices.Contains(builtIn, chain) && strings.Contains(match, "eth") {
					match = ""
				}
				target := []string{"-j ACCEPT", "-j RETURN", "", "-j CONNMARK --save-mark", "-j MARK --set-xmark 0x1/0x1"}[r.IntN(5)]
				if name != "mangle" && strings.Contains(target, "MARK") || name == "nat" && chain == "x" {
					target = "-j ACCEPT"
				}
				if len(later) > 0 && r.IntN(2) == 0 {
					target = "-j " + later[r.IntN(len(later))]
				}
				if !mine && r.IntN(4) == 0 {
					match += ` -m comment --comment "ours, 1"`
				}
				fmt.Fprintf(&b, "[%d:%d] -A %s %s %s\n", r.IntN(1000), r.IntN(100000), chain, match, target)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// FuzzParse: whatever the kernel says, there is a table or an error.
func FuzzParse(f *testing.F) {
	rule := make([]byte, 152)
	native.PutUint16(rule[targetOffset:], 112)
	native.PutUint16(rule[nextOffset:], 152)
	native.PutUint16(rule[112:], 40)
	native.PutUint32(rule[144:], ^uint32(1))
	end := make([]byte, 176)
	native.PutUint16(end[targetOffset:], 112)
	native.PutUint16(end[nextOffset:], 176)
	native.PutUint16(end[112:], 64)
	copy(end[114:], errorTarget)
	copy(end[144:], errorTarget)
	f.Add(append(bytes.Clone(rule), end...), uint32(1), uint32(0), uint32(0))
	f.Add(append(append(bytes.Clone(rule), rule...), end...), uint32(3), uint32(152), uint32(152))
	f.Fuzz(func(t *testing.T, block []byte, valid, entry, under uint32) {
		tab := &table{validHooks: valid}
		for h := range hooks {
			tab.hookEntry[h], tab.underflow[h] = entry*uint32(h), under*uint32(h)
		}
		if tab.parse(block) != nil {
			return
		}
		if int(tab.size()) != len(block) {
			t.Fatalf("%d bytes of %d", tab.size(), len(block))
		}
		same, kept := tab.without(func(Rule) bool { return false }, func(string) bool { return false })
		if len(kept) != len(tab.rules) || same.size() != tab.size() {
			t.Fatal("something went")
		}
		tab.without(func(Rule) bool { return true }, func(string) bool { return true })
	})
}
