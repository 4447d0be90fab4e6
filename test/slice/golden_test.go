package slice

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/pkg/networkutils/names"
)

var update = flag.Bool("update", false, "write the golden files")

// stateText is what ip, nft and iptables say about a node, in a form that does not depend on how many pods and ENIs there
// are and on what addresses they have: a line that is the same for all pods of the primary ENI, or of a secondary one, for
// all their addresses that no pod has, or for all secondary ENIs, is there once. One that only some of them have says so.
func stateText(t *testing.T, l *cluster.Cluster, n *cluster.Node) string {
	t.Helper()
	out, err := n.OS().Command(t.Context(), "sh", "-e", "-c", `
		ip -4 rule | sed 's/^/rule: /'
		ip -4 route show table all | grep -v 'table local' | sed 's/^/route: /'
		for table in vpc-cni aws-cni; do { nft list table ip $table 2>/dev/null || true; } | sed "s/^/nft $table: /"; done
		iptables-legacy-save | sed 's/^/iptables-legacy: /'
		iptables-nft-save 2>/dev/null | sed 's/^/iptables-nft: /'`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c := newCanon(l, n)
	for _, line := range flatten(string(out)) {
		c.add(line)
	}
	return c.String()
}

var (
	counters = regexp.MustCompile(`counter packets \d+ bytes \d+`)
	// Empty built-in chains stay behind when the last of their rules goes; iptables makes them when it is asked.
	noise   = regexp.MustCompile(`^iptables-\w+: (#|COMMIT|\*|:[A-Z]+ ACCEPT)`)
	element = regexp.MustCompile(`(?s)elements = \{(.*?)\}`)
)

// flatten gives every line what it needs to be understood alone, and sets and maps a line for each element.
func flatten(text string) []string {
	text = counters.ReplaceAllString(text, "counter")
	var list []string
	block, object := "", ""
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, " ")
		kind, rest, _ := strings.Cut(line, ": ")
		switch {
		case line == "" || noise.MatchString(line):
		case !strings.HasPrefix(kind, "nft "):
			if strings.HasPrefix(kind, "iptables") {
				line = regexp.MustCompile(` \[\d+:\d+\]$`).ReplaceAllString(line, "")
			}
			list = append(list, line)
		default:
			switch trimmed := strings.TrimSpace(rest); {
			case strings.HasPrefix(rest, "\t\t") && object != "":
				block += trimmed + "\n"
			case strings.HasPrefix(rest, "\t") && strings.HasSuffix(rest, "{"):
				object = kind + ": " + strings.TrimSuffix(trimmed, " {")
				block = ""
			case trimmed == "}" && object != "":
				list = append(list, flattenBlock(object, block)...)
				object = ""
			}
		}
	}
	return list
}

func flattenBlock(object, block string) []string {
	list := []string{object}
	for _, m := range element.FindAllStringSubmatch(block, -1) {
		for _, e := range strings.Split(m[1], ",") {
			list = append(list, object+": "+strings.TrimSpace(e))
		}
	}
	for i, line := range strings.Split(strings.TrimSpace(element.ReplaceAllString(block, "")), "\n") {
		switch {
		case line == "":
		case strings.HasPrefix(object, "nft") && strings.Contains(object, ": chain"): // rules have an order
			list = append(list, fmt.Sprintf("%s: %d %s", object, i, line))
		default:
			list = append(list, object+": "+line)
		}
	}
	return list
}

// canon collects lines by what they say, without of whom.
type canon struct {
	pods, free map[netip.Addr]int // device of the ENI that they are on
	veths      map[string]netip.Addr
	own        map[netip.Addr]int // ENIs' own addresses
	routers    map[string]string
	devices    int
	// subjects are those that a line is about.
	lines map[string]map[string]bool
}

func newCanon(l *cluster.Cluster, n *cluster.Node) *canon {
	c := &canon{pods: map[netip.Addr]int{}, free: map[netip.Addr]int{}, own: map[netip.Addr]int{}, veths: map[string]netip.Addr{},
		routers: map[string]string{}, lines: map[string]map[string]bool{}}
	for _, e := range attachedENIs(l, n) {
		device := e.Attachment.Device
		c.devices = max(c.devices, device)
		c.own[e.Primary] = device
		for _, a := range e.Secondary {
			c.free[a] = device
		}
		subnet, _ := l.Cloud().Subnet(e.SubnetID)
		c.routers[subnet.CIDR.Masked().Addr().Next().String()] = "ROUTER"
		c.routers[subnet.CIDR.String()] = "SUBNET"
	}
	for _, p := range l.Pods(n.Name) {
		c.pods[p.Address] = c.free[p.Address]
		delete(c.free, p.Address)
		c.veths[names.HostVeth("eni", p.Namespace, p.Name, 0)] = p.Address
	}
	return c
}

var (
	anAddress = regexp.MustCompile(`\d+\.\d+\.\d+\.\d+(/\d+)?`)
	aVeth     = regexp.MustCompile(`\beni[0-9a-f]{11}\b`)
	// anENI finds the device in names of links and chains, in tables, and in marks as hexadecimal numbers.
	anENI = regexp.MustCompile(`\beth([1-9])\b|\b(?:eni|set|stick)_([1-9])\b|(?:lookup|table) ([2-9])\b|fwmark 0x([1-9])/0x7f|: 0x0000000([1-9]) :`)
)

func (c *canon) add(line string) {
	subject, device := "", 0
	line = aVeth.ReplaceAllStringFunc(line, func(s string) string {
		if a, ok := c.veths[s]; ok {
			if subject == "" || subject == a.String() {
				subject, device = a.String(), c.pods[a]
				return "VETH"
			}
			return "VETH-OF-ANOTHER"
		}
		return "VETH-OF-NOBODY"
	})
	line = anAddress.ReplaceAllStringFunc(line, func(s string) string {
		if name, ok := c.routers[s]; ok {
			return name
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return s
		}
		if d, ok := c.own[a]; ok {
			if d == 0 {
				return "NODE"
			}
			device = d
			return "ENI"
		}
		d, pod := c.pods[a]
		name := "POD"
		if !pod {
			var free bool
			if d, free = c.free[a]; !free {
				return s
			}
			name = "FREE"
		}
		if subject != "" && subject != a.String() {
			return name + "-OTHER"
		}
		subject, device = a.String(), d
		return name
	})
	if subject == "" && device == 0 {
		if m := anENI.FindStringSubmatch(line); m != nil {
			device = deviceOf(m)
		}
	}
	if device > 0 {
		line = strings.NewReplacer(
			fmt.Sprintf("eth%d", device), "ethN", fmt.Sprintf("eni_%d", device), "eni_N", fmt.Sprintf("set_%d", device), "set_N",
			fmt.Sprintf("stick_%d", device), "stick_N", fmt.Sprintf("lookup %d ", device+1), "lookup N+1 ", fmt.Sprintf("table %d ", device+1), "table N+1 ",
			fmt.Sprintf("0x%x/0x7f", device), "N/0x7f", fmt.Sprintf("0xffffff%02x", 0x80|device), "0xffffff80|N", fmt.Sprintf("0x%08x", device), "0x0000000N",
		).Replace(line + " ")
	}
	// The kernel keeps the word of whoever wrote a rule first that both CNIs have.
	line = strings.TrimSpace(strings.ReplaceAll(line, "lookup main proto 89", "lookup main"))
	line = strings.ReplaceAll(line, "from ENI lookup N+1 proto 89", "from ENI lookup N+1")
	kind := ""
	switch {
	case subject != "" && strings.Contains(line, "POD"), subject != "" && strings.Contains(line, "VETH"):
		kind = "pod"
	case subject != "":
		kind = "free address"
	case device > 0:
		kind, subject = "ENI", fmt.Sprint(device)
	}
	if kind != "" {
		where := "a secondary ENI"
		if device == 0 {
			where = "the primary ENI"
		}
		if kind == "ENI" {
			line = "secondary ENI: " + line
		} else {
			line = fmt.Sprintf("%s of %s: %s", kind, where, line)
		}
	}
	if c.lines[line] == nil {
		c.lines[line] = map[string]bool{}
	}
	c.lines[line][subject] = true
}

func deviceOf(match []string) int {
	for i, m := range match[1:] {
		if m != "" {
			device := int(m[0] - '0')
			if i == 2 { // a table
				device--
			}
			return device
		}
	}
	return 0
}

// String lists the lines, those that not all of their kind have with how many do.
func (c *canon) String() string {
	count := map[string]int{"secondary ENI": c.devices}
	of := func(kind string, list map[netip.Addr]int) {
		for _, device := range list {
			if device == 0 {
				count[kind+" of the primary ENI"]++
			} else {
				count[kind+" of a secondary ENI"]++
			}
		}
	}
	of("pod", c.pods)
	of("free address", c.free)
	var list []string
	for line, subjects := range c.lines {
		kind, rest, _ := strings.Cut(line, ": ")
		switch all, known := count[kind]; {
		case !known:
			list = append(list, line)
		case len(subjects) == all:
			list = append(list, fmt.Sprintf("each %s: %s", kind, rest))
		default:
			list = append(list, fmt.Sprintf("%d of %d, %s: %s", len(subjects), all, kind, rest))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n") + "\n"
}

// goldenState waits until the node's state is that of a file under testdata.
func goldenState(t *testing.T, l *cluster.Cluster, n *cluster.Node, name string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		got, last := stateText(t, l, n), ""
		eventually(t, time.Minute, "the state is at rest", func() bool {
			<-time.After(300 * time.Millisecond)
			got, last = stateText(t, l, n), got
			return got == last
		})
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := stateText(t, l, n)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); got != string(want) && time.Now().Before(deadline); got = stateText(t, l, n) {
		<-tick.C
	}
	g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for _, line := range g {
		if !slices.Contains(w, line) {
			t.Errorf("%s: there is   %s", path, line)
		}
	}
	for _, line := range w {
		if !slices.Contains(g, line) {
			t.Errorf("%s: missing is %s", path, line)
		}
	}
}
