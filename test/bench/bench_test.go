package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/lab/sandbox"
	"vpccni/test/bench/stats"
)

func TestMain(m *testing.M) { sandbox.TestMain(m) }

// The benchmark's node forwards every measure in every layout and both directions: what is lost is an error of cost.
func TestPacketNodeForwards(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, kind := range [][]string{{layoutPlain}, {layoutSecondary, layoutPrefixes}, {layoutV6}, {layoutPerPod}} {
		node, err := newPacketNode(ctx, 9, kind)
		if err != nil {
			t.Fatalf("%s: %v", kind[0], err)
		}
		defer node.close()
		for _, layout := range kind {
			got := 0
			err := measureLayout(ctx, []*packetNode{node}, layout, effort{units: map[string]int{udpPacket: batch + 1, tcpRR: 3, tcpCRR: 3}},
				func(key packetKey, cost float64) {
					got++
					if cost <= 0 || key.pods != 9 || key.layout != layout {
						t.Errorf("%+v: %v ns", key, cost)
					}
				})
			if err != nil || got != len(measures)*len(directions) {
				t.Errorf("%s: %d costs, %v", layout, got, err)
			}
		}
		if kind[0] == layoutPerPod {
			// As many rules as the predecessor has: one to each pod, one from each that is not on the primary ENI.
			var out []byte
			err := node.node.do(func() (err error) { out, err = exec.Command("ip", "rule").Output(); return err })
			if got := strings.Count(string(out), "512:"); err != nil || got != 9 {
				t.Errorf("%d rules to pods (%v):\n%s", got, err, out)
			}
		}
	}
}

func TestPodsAreSpreadOverTheENIs(t *testing.T) {
	t.Parallel()
	for first, v6 := range map[string]bool{"10.0.17.0": false, "2001:db8:0:10:1::1": true} {
		list := podAddresses(1000, v6)
		if list[0] != netip.MustParseAddr(first) {
			t.Errorf("the measured pod has %s, not an address of a secondary ENI", list[0])
		}
		slices.SortFunc(list, netip.Addr.Compare)
		if len(slices.Compact(list)) != 1000 {
			t.Error("an address was given out twice")
		}
	}
	n := &packetNode{podAddrs: podAddresses(1000, false)}
	for eni := range enis {
		if secondary, prefixes := len(n.pool(eni, layoutSecondary)), len(n.pool(eni, layoutPrefixes)); secondary != 250 || prefixes != 16 {
			t.Errorf("ENI %d holds %d addresses or %d prefixes", eni, secondary, prefixes)
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	want := options{short: true, plugin: "/p", ipamd: "/i", empty: "/e", only: "add"}
	if got, err := parseOptions(want.args()); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range [][]string{{"-only", "x"}, {"x"}} {
		if _, err := parseOptions(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestReportCountsFailuresAndPrintsEveryRow(t *testing.T) {
	t.Parallel()
	measured := cells{}
	for _, parallel := range []int{1, burst} {
		for _, op := range operations {
			for _, pods := range pluginLevels {
				c := measured.at(pods, parallel, op)
				ok := execution{wall: 2, cpu: 1}
				if err := c.add([]execution{ok, {err: context.Canceled}}, time.Second); err != nil {
					t.Fatal(err)
				}
				if err := c.add([]execution{{err: context.Canceled}}, time.Second); err == nil {
					t.Fatal("a round without a success is no error")
				}
			}
		}
	}
	spent := steps{}
	for i, step := range append(stepNames, stepVeth) {
		spent.add(step, execution{wall: float64(i + 1), cpu: 0.5, system: 0.25})
	}
	runs := map[packetKey][]float64{}
	for _, layout := range layouts {
		for _, measure := range measures {
			for _, direction := range directions {
				for i, pods := range packetLevels {
					cost := 5000.0
					if layout == layoutPerPod || layout == layoutPrefixes {
						cost *= float64(i + 1)
					}
					runs[packetKey{pods, layout, measure, direction}] = []float64{cost, cost * 1.1}
				}
			}
		}
	}
	ipamd := daemonRow{Pods: 700, RSS: 31.5, RSSAnon: 12.25, Start: stats.Over([]float64{300, 400})}
	plugin := &pluginReport{Rows: pluginRows(measured), Steps: stepRows(spent), Storms: []stormRow{{Pods: 700, Seconds: 2, Failures: 3}},
		Trace: []traceRow{{Operation: opAdd, Dumps: 1}}}
	plugin.judge()
	r := report{IPAMD: []daemonRow{ipamd}, Plugin: plugin, Packets: packetRows(runs)}
	if got, want := r.failures(), 2*len(plugin.Rows)+3; got != want {
		t.Errorf("%d failures, want %d", got, want)
	}
	var out bytes.Buffer
	r.print(&out)
	if got, want := strings.Count(out.String(), "2 of 3\n"), len(plugin.Rows); got != want || want != 24 {
		t.Errorf("%d rows of the plugin, want %d\n%s", got, want, &out)
	}
	// Prefixes were made to grow, and so were the rules per pod, which have no goal; of the plugin, dumps and failures.
	if met, not := strings.Count(out.String(), "  met\n"), strings.Count(out.String(), "NOT MET\n"); met != 2*6+7 || not != 6+2 {
		t.Errorf("%d goals are met and %d are not\n%s", met, not, &out)
	}
	for _, step := range plugin.Steps[:4] {
		if step.Wall != 1 {
			t.Errorf("%s adds %v ms, want 1", step.Step, step.Wall)
		}
	}
	if got := out.String(); !strings.Contains(got, "31.5") || !strings.Contains(got, "350 [300–400]") {
		t.Errorf("no row of ipamd\n%s", got)
	}
	if f := (stats.Figure{Median: 1.26, Min: 1, Max: 2}); figure(f, 1) != "1.3 [1.0–2.0]" {
		t.Error(figure(f, 1))
	}
}

func TestCallsAreCounted(t *testing.T) {
	t.Parallel()
	calls := `12 execve("/p", ["/p"], 0x1 /* 1 vars */) = 0
12 openat(AT_FDCWD, "/x", O_RDONLY) = 3
13 execve("/sbin/ip", ["ip"], 0x1 /* 1 vars */) = 0
12 sendto(3, [{nlmsg_len=52, nlmsg_type=RTM_GETLINK, nlmsg_flags=NLM_F_REQUEST|NLM_F_DUMP}], 52, 0, NULL, 0) = 52
12 sendto(3, [{nlmsg_len=52, nlmsg_type=RTM_NEWLINK, nlmsg_flags=NLM_F_REQUEST|NLM_F_ACK}], 52, 0, NULL, 0) = 52
12 fsync(4) = 0
12 +++ exited with 0 +++
`
	want := traceRow{Operation: opAdd, Calls: 6, Programs: 1, Dumps: 1, Syncs: 1, Batches: 2}
	if got := countCalls(opAdd, calls); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestFiguresOfAProcess(t *testing.T) {
	t.Parallel()
	memory, err := residentMemory(os.Getpid())
	if err != nil || memory["VmRSS"] < 1 || memory["RssAnon"] <= 0 || memory["RssFile"] <= 0 || memory["VmHWM"] < memory["VmRSS"]*0.9 {
		t.Errorf("%v, %v", memory, err)
	}
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for {
		after, err := cpuTime(os.Getpid())
		if err != nil || after < before {
			t.Fatalf("%s, then %s, %v", before, after, err)
		}
		if after > before {
			return // the loop has used a tick
		}
	}
}
