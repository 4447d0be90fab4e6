package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vpccni/lab/sandbox"
	"vpccni/test/bench/stats"
)

func TestMain(m *testing.M) { sandbox.TestMain(m) }

// The benchmark's node forwards in every mode and both directions: a packet that is lost is an error of cost.
func TestPacketNodeForwards(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, modes := range [][]string{{modePlain}, {modeSecondary, modePrefixes}} {
		node, err := newPacketNode(ctx, 9, modes)
		if err != nil {
			t.Fatal(err)
		}
		defer node.close()
		for _, mode := range modes {
			if err := node.use(ctx, mode); err != nil {
				t.Fatalf("%s: %v", mode, err)
			}
			for _, direction := range []string{fromPod, toPod} {
				if cost, err := node.send(direction, batch); err != nil || cost <= 0 {
					t.Errorf("%s, %s: %v ns, %v", mode, direction, cost, err)
				}
			}
		}
	}
}

func TestPodsAreSpreadOverTheENIs(t *testing.T) {
	t.Parallel()
	list := podAddresses(1000)
	if list[0] != netip.MustParseAddr("10.0.17.0") {
		t.Errorf("the measured pod has %s, not an address of a secondary ENI", list[0])
	}
	slices.SortFunc(list, netip.Addr.Compare)
	if len(slices.Compact(list)) != 1000 {
		t.Error("an address was given out twice")
	}
	n := &packetNode{podAddrs: podAddresses(1000)}
	for eni := range enis {
		if secondary, prefixes := len(n.pool(eni, modeSecondary)), len(n.pool(eni, modePrefixes)); secondary != 250 || prefixes != 16 {
			t.Errorf("ENI %d holds %d addresses or %d prefixes", eni, secondary, prefixes)
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	want := options{short: true, plugin: "/p", ipamd: "/i", empty: "/e", only: "plugin"}
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
	runs := map[packetKey][]float64{}
	for _, mode := range []string{modePlain, modeSecondary, modePrefixes} {
		for _, direction := range []string{fromPod, toPod} {
			for _, pods := range packetLevels {
				runs[packetKey{pods, mode, direction}] = []float64{5000, 6000}
			}
		}
	}
	ipamd := daemonRow{Pods: 700, RSS: 31.5, RSSAnon: 12.25, Start: stats.Over([]float64{300, 400})}
	r := report{IPAMD: []daemonRow{ipamd}, Plugin: pluginRows(measured), Packets: packetRows(runs)}
	if got, want := r.failures(), 2*len(r.Plugin); got != want {
		t.Errorf("%d failures, want %d", got, want)
	}
	var out bytes.Buffer
	r.print(&out)
	if got := strings.Count(out.String(), "2 of 3\n"); got != 18 {
		t.Errorf("%d rows of the plugin\n%s", got, &out)
	}
	if got := strings.Count(out.String(), "5500 [5000–6000]"); got != 30 {
		t.Errorf("%d rows of packets\n%s", got, &out)
	}
	if got := out.String(); !strings.Contains(got, "31.5") || !strings.Contains(got, "350 [300–400]") {
		t.Errorf("no row of ipamd\n%s", got)
	}
	if f := (stats.Figure{Median: 1.26, Min: 1, Max: 2}); figure(f, 1) != "1.3 [1.0–2.0]" {
		t.Error(figure(f, 1))
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
