package ipamd

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/warmpool"
)

// theft is a change behind the node's back: addresses that somebody took off an ENI of the node.
type theft struct {
	eni   string
	block netip.Prefix
	// told is when the controller that lives now had it from an honest IMDS; zero: it has not.
	told time.Time
}

// stolen finds the theft of an address that has not come back to its ENI.
func (w *world) stolen(ip netip.Addr) *theft {
	for i := len(w.thefts) - 1; i >= 0; i-- { // the last one counts
		if w.thefts[i].block.Contains(ip) {
			return &w.thefts[i]
		}
	}
	return nil
}

// metadata is a read of IMDS.
func (w *world) metadata(c call) (r result) {
	var honest bool
	if r.enis, honest, r.err = w.liar.tell(w.now); r.err != nil {
		return r
	}
	if c.method == callPools {
		r.enis = onlyPools(r.enis, c.prefixed)
	}
	if !honest {
		return r
	}
	for i := range w.thefts {
		t := &w.thefts[i]
		if !t.block.IsSingleIP() && c.method == callPools && !c.prefixed {
			continue
		}
		// Of what this node got a moment ago IMDS need not know yet, nor of an ENI a moment after the start.
		if t.told.IsZero() && !w.isOn(t.block.Addr(), t.eni) && w.now.Sub(w.gotAt[t.block]) > settleTime+time.Second &&
			(w.cloud.enis[t.eni] != nil || w.now.Sub(w.booted) > settleTime+time.Second) {
			t.told = w.now
		}
	}
	return r
}

// meddle changes something at EC2 behind the node's back.
func (w *world) meddle() {
	w.cloud.tick(w.now)
	var mine []*awsutils.ENI
	for _, id := range slices.Sorted(maps.Keys(w.cloud.enis)) {
		if e := w.cloud.enis[id]; e.InstanceID == testInstance && e.Status == "in-use" {
			mine = append(mine, e)
		}
	}
	e := mine[w.r.IntN(len(mine))]
	pool := poolOf(e)
	switch k := w.r.IntN(4); {
	case k == 0 && w.cloud.free() > 0 && len(pool)+1 < w.cloud.maxIPs: // gives it an address
		ip, err := w.cloud.takeIP()
		if err == nil {
			e.Secondary = append(e.Secondary, ip)
			w.note("somebody gives %s %s", e.ID, ip)
		}
	case k == 1 && e.ID != testPrimary: // takes the ENI
		w.note("somebody takes %s", e.ID)
		for _, p := range pool {
			w.steal(e.ID, p)
		}
		for _, ip := range append(slices.Clone(e.Secondary), e.Primary) {
			delete(w.cloud.used, ip)
		}
		for _, p := range e.Prefixes {
			w.cloud.mark(p, false)
		}
		delete(w.cloud.enis, e.ID)
		w.step(evHost{}) // the interface goes
	case len(pool) > 0: // takes an address or a prefix
		p := pool[w.r.IntN(len(pool))]
		w.note("somebody takes %s off %s", p, e.ID)
		e.Secondary = slices.DeleteFunc(e.Secondary, func(ip netip.Addr) bool { return single(ip) == p })
		e.Prefixes = slices.DeleteFunc(e.Prefixes, func(x netip.Prefix) bool { return x == p })
		w.cloud.mark(p, false)
		w.steal(e.ID, p)
	}
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, w.now.Format("05.000")+" "+fmt.Sprintf(format, args...))
}

// steal notes what is taken, and from whom.
func (w *world) steal(eni string, p netip.Prefix) {
	w.thefts = append(w.thefts, theft{eni: eni, block: p})
	delete(w.had, p)
	for _, pod := range w.pods {
		if pod.addr.IsValid() && p.Contains(pod.addr) {
			pod.robbed = true
		}
	}
}

// got notes what the node has now and did not have before.
func (w *world) got() {
	had := w.had
	w.had = map[netip.Prefix]string{}
	for _, e := range w.cloud.enis {
		if e.InstanceID != testInstance {
			continue
		}
		for _, p := range poolOf(e) {
			if w.had[p] = e.ID; had[p] != e.ID {
				w.gotAt[p] = w.now
			}
		}
	}
	w.forgive()
}

func (w *world) isOn(ip netip.Addr, eni string) bool {
	e := w.eniOf(ip)
	return e != nil && e.ID == eni
}

// forgive drops the thefts whose addresses have come back to their ENIs in a regular way.
func (w *world) forgive() {
	w.thefts = slices.DeleteFunc(w.thefts, func(t theft) bool {
		for ip := t.block.Addr(); t.block.Contains(ip); ip = ip.Next() {
			if !w.isOn(ip, t.eni) {
				return false
			}
		}
		return true
	})
}

// endRobbed lets the pods go that somebody took the address of, or the ENI.
func (w *world) endRobbed() {
	for _, n := range w.podIDs() {
		a, _ := w.ctrl.store.Lookup(pod(n).key())
		e := w.ctrl.enis[a.ENI]
		if w.pods[n].state == "running" && (w.pods[n].robbed || e == nil || e.lost) {
			w.del(n)
		}
	}
}

var (
	firstLie  = flag.Uint64("lie", 0, "seed of the first world with a lying IMDS; 0: any")
	liedSteps = flag.Int("lies", 10000, "steps in worlds with a lying IMDS, at least")
)

// TestLyingIMDS: IMDS leaves ENIs and addresses out, is late, is stuck, contradicts itself, makes things up, fails;
// EC2 loses answers; ipamd dies and comes back; somebody takes addresses and ENIs away behind its back. Whatever IMDS
// says, nothing is taken from a pod and no pod gets an address that is not on the node; of what somebody took away none
// is handed out once IMDS has told the truth.
func TestLyingIMDS(t *testing.T) {
	t.Parallel()
	base := rand.Uint64()
	if *firstLie != 0 {
		base = *firstLie
	}
	t.Logf("base seed %d", base)
	var sum struct{ steps, adds, deaths, walks, thefts, describes, worlds int }
	for seed := base; sum.steps < *liedSteps; seed++ {
		w := lyingWorld(t, seed)
		sum.worlds++
		sum.steps += w.steps
		sum.deaths += w.deaths
		sum.adds += w.served
		sum.thefts += w.thefted
		sum.walks += w.walks
		sum.describes += w.cloud.count(string(callDescribe))
	}
	t.Logf("%+v", sum)
	if sum.adds == 0 || sum.walks == 0 || sum.thefts == 0 || sum.deaths == 0 {
		t.Errorf("something did not happen: %+v", sum)
	}
}

func lyingWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 11))
	targets := warmpool.Targets{WarmENI: r.IntN(2)}
	if r.IntN(2) == 0 {
		targets = warmpool.Targets{WarmIP: 1 + r.IntN(4), MinimumIP: r.IntN(8)}
	}
	targets.Prefixes, targets.WarmPrefix = r.IntN(3) == 0, r.IntN(2)
	w := newWorld(seed, targets)
	w.faulty = true
	w.liar = &liar{teller: teller{cloud: w.cloud}, r: w.r}
	thief := r.IntN(2) == 0
	w.boot()
	for range 60 {
		switch r.IntN(8) {
		case 0, 1, 2:
			for range 1 + r.IntN(4) {
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
			if r.IntN(3) == 0 {
				w.die()
			}
		case 7:
			if thief {
				w.meddle()
				w.thefted++
			}
		}
		w.run(time.Duration(r.IntN(60000)) * time.Millisecond)
		if len(w.problems) > 0 {
			break
		}
	}
	steps := w.steps // those at rest are too easy
	w.liar.honest = true
	w.run(2 * time.Minute)
	// What IMDS said, and EC2 twice denied, before it became true, is a difference that no answer shows: the addresses
	// serve nobody, but only a restart finds them gone.
	w.die()
	w.run(2 * time.Minute)
	w.endRobbed()
	w.run(2 * time.Hour)
	w.rest()
	w.report(t, fmt.Sprintf("seed %d", seed))
	w.steps = steps
	return w
}
