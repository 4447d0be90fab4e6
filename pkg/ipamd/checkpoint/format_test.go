package checkpoint

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func encodeFile(allocations []Allocation) []byte {
	return new(encoder).encode(snapshotOf(State{Allocations: allocations}).Allocations)
}

func snapshotOf(s State) Snapshot { return s.Snapshot() }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func goldenState() State {
	at := time.Unix(0, 1660000000000000000)
	return State{
		Allocations: []Allocation{
			{NetworkName: "aws-cni", ContainerID: "4f0e6a9d1c", IfName: "eth0", Address: addr("10.0.1.23"),
				Time: at, Namespace: "default", Pod: "web-0", Interfaces: 1},
			{NetworkName: "aws-cni", ContainerID: "77aa", IfName: "eth0", Address: addr("2001:db8::10"),
				Time: at.Add(1), Namespace: "kube-system", Pod: "dns", Interfaces: 2},
			{NetworkName: "_migrated-from-cri", ContainerID: "old", IfName: "unknown", Address: addr("10.0.1.24"),
				Interfaces: 1},
		},
		Journal: Journal{
			InstanceID: "i-1",
			ENIs: []HeldENI{
				{ID: "eni-1", MAC: "02:00:00:00:00:01", Address: addr("10.0.1.4"),
					SubnetID: "subnet-1", SubnetCIDR: netip.MustParsePrefix("10.0.1.0/24"), Pool: []netip.Prefix{
						netip.MustParsePrefix("10.0.1.23/32"), netip.MustParsePrefix("10.0.1.32/28")}},
				{ID: "eni-2", MAC: "02:00:00:00:00:02", Device: 1, Pool: []netip.Prefix{}},
			},
			Cooling: []Cooling{{Address: addr("10.0.1.40"), Until: at}},
			Intents: []Intent{{Kind: "create", Token: "t-1", Since: at}},
		},
	}
}

func TestGoldenFiles(t *testing.T) {
	t.Parallel()
	state := goldenState()
	for name, got := range map[string][]byte{
		"ipam.json":    encodeFile(state.Allocations),
		"journal.json": appendJournal(nil, &state.Journal),
	} {
		want, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != string(want) {
			t.Errorf("%s:\ngot  %swant %s", name, got, want)
		}
	}
	allocations, problems, err := decodeFile(encodeFile(state.Allocations))
	if err != nil || problems != nil || !reflect.DeepEqual(allocations, state.Allocations) {
		t.Errorf("read back: %v %v\ngot  %+v\nwant %+v", err, problems, allocations, state.Allocations)
	}
	journal, problems, err := decodeJournal(appendJournal(nil, &state.Journal))
	if err != nil || problems != nil || !reflect.DeepEqual(journal, state.Journal) {
		t.Errorf("read back: %v\ngot  %+v\nwant %+v", err, journal, state.Journal)
	}
}

// What encoding/json makes of the same values is what upstream's writer would have written.
func TestWriterAgreesWithEncodingJSON(t *testing.T) {
	t.Parallel()
	type metadata struct {
		Namespace  string `json:"k8sPodNamespace,omitempty"`
		Pod        string `json:"k8sPodName,omitempty"`
		Interfaces int    `json:"interfacesCount,omitempty"`
	}
	type entry struct {
		NetworkName string   `json:"networkName"`
		ContainerID string   `json:"containerID"`
		IfName      string   `json:"ifName"`
		IPv4        string   `json:"ipv4,omitempty"`
		IPv6        string   `json:"ipv6,omitempty"`
		Timestamp   int64    `json:"allocationTimestamp"`
		Metadata    metadata `json:"metadata"`
	}
	type file struct {
		Version     string  `json:"version"`
		Allocations []entry `json:"allocations"`
	}
	odd := []string{"", "plain", `qu"ote`, `back\slash`, "tab\t", "<&>", "ünïcode", "\u2028", "bad\xffutf8", "\x7f"}
	var allocations []Allocation
	want := file{Version: "vpc-cni-ipam/1", Allocations: []entry{}}
	for i, s := range odd {
		a := Allocation{NetworkName: s, ContainerID: s + "c", IfName: s, Address: addr("10.0.0.1"),
			Time: time.Unix(int64(i), 7), Namespace: s, Pod: s, Interfaces: i % 2}
		allocations = append(allocations, a)
		want.Allocations = append(want.Allocations, entry{s, s + "c", s, "10.0.0.1", "", a.Time.UnixNano(), metadata{s, s, i % 2}})
	}
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(encodeFile(allocations)); got != string(raw)+"\n" {
		t.Errorf("got  %swant %s", got, raw)
	}
	if got := string(encodeFile(nil)); got != `{"version":"vpc-cni-ipam/1","allocations":[]}`+"\n" {
		t.Errorf("no allocations: %s", got)
	}
}

// What is copied from the file before is what would have been formatted anew, whatever changed.
func TestEncoderOverManyGenerations(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var (
		e   encoder
		now []Allocation
	)
	for n := range 300 {
		now = slices.Clone(now)
		for range rnd.IntN(60) {
			switch at := rnd.IntN(len(now) + 1); {
			case at < len(now) && rnd.IntN(2) == 0:
				now = slices.Delete(now, at, at+1)
			case at < len(now) && rnd.IntN(4) == 0:
				now[at].Time = now[at].Time.Add(1)
			default:
				now = slices.Insert(now, at, numbered(rnd.IntN(5000)))
			}
		}
		if n%50 == 49 {
			rnd.Shuffle(len(now), func(i, j int) { now[i], now[j] = now[j], now[i] })
		}
		if got, want := string(e.encode(snapshotOf(State{Allocations: now}).Allocations)), string(encodeFile(now)); got != want {
			t.Fatalf("generation %d:\ngot  %s\nwant %s", n, got, want)
		}
	}
}

func TestReadsOlderVersions(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/ipam-v1.12.json")
	if err != nil {
		t.Fatal(err)
	}
	got, problems, err := decodeFile(raw)
	if err != nil || problems != nil || len(got) != 2 {
		t.Fatalf("%v, %v, %d entries", err, problems, len(got))
	}
	if a := got[0]; a.Interfaces != 1 || a.Pod != "web-0" {
		t.Errorf("entry without a count of interfaces: %+v", a)
	}
	if a := got[1]; a.NetworkName != "_migrated-from-cri" || a.IfName != "unknown" || a.Interfaces != 1 || a.Namespace != "" {
		t.Errorf("entry without metadata: %+v", a)
	}
}

func TestDecodeFileTolerance(t *testing.T) {
	t.Parallel()
	entry := func(container, ip, at string) string {
		return `{"networkName":"aws-cni","containerID":"` + container + `","ifName":"eth0","ipv4":"` + ip + `","allocationTimestamp":` + at + `}`
	}
	file := func(entries ...string) string {
		return `{"version":"vpc-cni-ipam/1","allocations":[` + strings.Join(entries, ",") + `]}`
	}
	for _, tt := range []struct {
		name, raw string
		want      string // containers kept, in order
		problem   string
		fails     bool
	}{
		{name: "null allocations", raw: `{"version":"vpc-cni-ipam/1","allocations":null}`},
		{name: "unknown members", raw: `{"version":"vpc-cni-ipam/1","new":{"x":1},"allocations":[]}`},
		{name: "one address twice, newest last", raw: file(entry("a", "10.0.0.1", "1"), entry("b", "10.0.0.1", "2")),
			want: "b", problem: `10.0.0.1 is held twice: container "a" gives way to "b"`},
		{name: "one address twice, newest first", raw: file(entry("a", "10.0.0.1", "3"), entry("c", "10.0.0.2", "1"), entry("b", "10.0.0.1", "2")),
			want: "a c", problem: "held twice"},
		{name: "one sandbox twice", raw: file(entry("a", "10.0.0.1", "1"), entry("a", "10.0.0.2", "2")),
			want: "a", problem: "holds two addresses: 10.0.0.1 gives way to 10.0.0.2"},
		{name: "mapped address is the same address", raw: file(entry("a", "::ffff:10.0.0.1", "1"), entry("b", "10.0.0.1", "2")),
			want: "b", problem: "held twice"},
		{name: "bad address", raw: file(entry("a", "10.0.0", "1"), entry("b", "10.0.0.1", "2")), want: "b", problem: "left out"},
		{name: "bad type", raw: file(`{"containerID":7,"ipv4":"10.0.0.3"}`, entry("b", "10.0.0.1", "2")), want: "b", problem: "entry 0"},
		{name: "no address", raw: file(entry("a", "", "1")), problem: "left out"},
		{name: "more behind the end", raw: file(entry("a", "10.0.0.1", "1")) + "{", want: "a", problem: "behind the end"},
		{name: "unknown version", raw: `{"version":"vpc-cni-ipam/2","allocations":[]}`, fails: true},
		{name: "no version", raw: `{}`, fails: true},
		{name: "empty", raw: ``, fails: true},
		{name: "cut short", raw: file(entry("a", "10.0.0.1", "1"))[:60], fails: true},
		{name: "cut short in the second entry", raw: file(entry("a", "10.0.0.1", "1"), entry("b", "10.0.0.2", "1"))[:180], want: "a", fails: true},
		{name: "cut short behind the last entry", raw: strings.TrimSuffix(file(entry("a", "10.0.0.1", "1")), "]}"), want: "a", fails: true},
		{name: "cut short, of a version to come", raw: `{"version":"vpc-cni-ipam/2","allocations":[` + entry("a", "10.0.0.1", "1"), fails: true},
		{name: "garbage in the middle", raw: file(entry("a", "10.0.0.1", "1"), "\x00", entry("b", "10.0.0.2", "1")), want: "a", fails: true},
		{name: "another type", raw: `{"version":"vpc-cni-ipam/1","allocations":{"a":1}}`, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, problems, err := decodeFile([]byte(tt.raw))
			if (err != nil) != tt.fails {
				t.Fatalf("error %v", err)
			}
			var kept []string
			for _, a := range got {
				kept = append(kept, a.ContainerID)
			}
			if strings.Join(kept, " ") != tt.want {
				t.Errorf("kept %q, want %q", kept, tt.want)
			}
			if all := strings.Join(problems, "\n"); !strings.Contains(all, tt.problem) || (tt.problem == "") != (all == "") {
				t.Errorf("problems %q, want %q", all, tt.problem)
			}
		})
	}
}
