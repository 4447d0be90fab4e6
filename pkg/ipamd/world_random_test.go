package ipamd

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"vpccni/pkg/ipamd/warmpool"
)

// TestDeathBetweenAnyTwoEffects kills the controller before each effect of a whole story: with addresses given back
// one by one, and with whole ENIs.
func TestDeathBetweenAnyTwoEffects(t *testing.T) {
	t.Parallel()
	for name, targets := range map[string]warmpool.Targets{"E1": {WarmENI: 1}, "W2M4": {WarmIP: 2, MinimumIP: 4},
		"X1": {Prefixes: true, WarmPrefix: 1}} {
		w := newWorld(1, targets)
		w.story()
		w.report(t, name)
		points := w.effects
		if points < 60 || w.cloud.count("AttachENI") == 0 || w.cloud.count("DeleteENI") == 0 {
			t.Fatalf("%s: only %d effects in the story", name, points)
		}
		t.Logf("%s: %d points", name, points)
		for at := 1; at <= points; at++ {
			for seed := range uint64(*manyDeaths) {
				w := newWorld(1+100*seed, targets)
				w.dieAt = at
				w.story()
				w.report(t, fmt.Sprintf("%s: death before effect %d, seed %d", name, at, seed))
			}
		}
	}
}

var (
	firstWorld = flag.Uint64("world", 0, "seed of the first random world; 0: any")
	traced     = flag.Int("trace", 200, "how many lines of a failed world are shown")
	manyWorlds = flag.Int("worlds", 150, "how many random worlds")
	manyDeaths = flag.Int("deaths", 1, "how many times the controller dies before each effect of a story, with other chances each time")
)

// TestRandomWorlds runs random loads with failing calls, lost answers, failing commits and deaths.
func TestRandomWorlds(t *testing.T) {
	t.Parallel()
	base := rand.Uint64()
	if *firstWorld != 0 {
		base = *firstWorld
	}
	t.Logf("base seed %d", base)
	const parts = 4
	for part := range parts {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			t.Parallel()
			for i := part; i < *manyWorlds; i += parts {
				randomWorld(t, base+uint64(i))
			}
		})
	}
}

func randomWorld(t *testing.T, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 9))
	var targets warmpool.Targets
	if r.IntN(2) == 0 {
		targets.WarmENI = r.IntN(3)
	} else {
		targets.WarmIP, targets.MinimumIP = r.IntN(5), r.IntN(8)
	}
	mode := r.IntN(3) // single addresses, prefixes, changes
	targets.Prefixes, targets.WarmPrefix = mode == 1, r.IntN(2)
	w := newWorld(seed, targets)
	w.cloud.fragmented = mode > 0 && r.IntN(3) == 0
	w.faulty = r.IntN(3) > 0
	if r.IntN(3) == 0 { // the zone has another subnet for pods, which may get exhausted, or be the only one
		w.opts.Settings.SubnetDiscovery = true
		w.cloud.addSubnet("subnet-b", []string{"10.0.1.0/25", "10.0.1.0/28"}[r.IntN(2)], map[string]string{tagRole: "1"})
		if r.IntN(4) == 0 {
			w.cloud.tags[testSubnet] = map[string]string{tagRole: "0"}
		}
	}
	w.boot()
	for range 60 {
		switch r.IntN(8) {
		case 0, 1, 2:
			for range 1 + r.IntN(5+20*mode) {
				w.add()
			}
		case 3, 4:
			for _, n := range w.podIDs() {
				if w.pods[n].state == "running" && r.IntN(3) == 0 {
					w.del(n)
				}
			}
		case 5:
			w.retry()
		case 6:
			for _, n := range w.podIDs() { // a DEL overtakes its ADD
				if w.pods[n].state == "adding" && r.IntN(3) == 0 {
					w.del(n)
				}
			}
		case 7:
			if mode == 2 && r.IntN(2) == 0 {
				w.opts.Settings.Targets.Prefixes = !w.opts.Settings.Targets.Prefixes
				w.die()
			}
			if mode > 0 {
				w.cloud.fragmented = r.IntN(3) == 0
			}
			if r.IntN(4) == 0 {
				w.die()
			}
		}
		w.run(time.Duration(r.IntN(12000)) * time.Millisecond)
		if len(w.problems) > 0 {
			break
		}
	}
	w.rest()
	w.report(t, fmt.Sprintf("seed %d", seed))
}
