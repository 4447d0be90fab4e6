package ipamd

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vpccni/pkg/awsutils"
)

// Times of the walk through IMDS.
const (
	// walkEvery is how often changes behind this node's back are looked for.
	walkEvery = time.Minute
	// walkSoon is how often, while pods wait for what only somebody else can bring.
	walkSoon = 5 * time.Second
	// hurryPace is the least time between two Describes that pods wait for.
	hurryPace = 2 * time.Second
	// walkLong is the longest pause while IMDS fails.
	walkLong = 5 * time.Minute
	// walkGrace is how long IMDS has at start to object to the journal before the node serves from it.
	walkGrace = 250 * time.Millisecond
	// liesForgotten is when IMDS, which was wrong, is asked about as promptly as before. If it still says the same, EC2 is
	// asked once more, maxAsked times in all: what IMDS said too early may have become true.
	liesForgotten = time.Hour
	maxAsked      = 2
	// maxLies bounds how far the pause between two Describes doubles: to 16 min.
	maxLies = 5
)

// metadata is what IMDS said last, and what is doubtful because of it. IMDS may be late, incomplete or wrong, so it
// takes nothing away: a block that it does not list is given to no pod before EC2 has been asked, which is all. A
// difference that EC2 has explained is not asked about again until IMDS's answer changes, or a pod needs the address.
//
// In IMDS-only mode there is no EC2 to ask, and time takes its place (patience.go).
type metadata struct {
	walks    bool // IMDS can be read
	walkAt   time.Time
	walking  uint64 // the operation that reads; 0: none
	walkNo   int    // failures in a row
	graceAt  time.Time
	heard    time.Time // when IMDS answered last
	answer   []awsutils.ENI
	before   []awsutils.ENI // the answer before
	prefixed bool           // the answer has prefixes
	doubts   map[doubt]*sighting
	// suspects are the blocks that no pod is given because of a doubt, with their ENIs; denied those that pods hold
	// addresses of although the truth is that they are not on the ENI.
	suspects map[netip.Prefix]string
	denied   map[netip.Prefix]string
	// clashes are blocks that belong to an ENI and could not be taken in.
	clashes map[netip.Prefix]bool
	// lag is until when IMDS need not know of a change; lookAgain is when the first difference that it excuses needs
	// another excuse.
	lag       map[doubt]time.Time
	lookAgain time.Time
	// recheckAt is when to ask about what EC2 has explained once more.
	recheckAt time.Time
	liedNo    int // Describes in a row that IMDS asked for in vain
	liedAt    time.Time
}

// doubt is a difference between IMDS and what this node holds: a block of an ENI, or an ENI.
type doubt struct {
	mac   string
	block netip.Prefix // the zero Prefix: the ENI itself
	extra bool         // IMDS has it and this node does not; else the other way round
}

func (d doubt) compare(o doubt) int {
	extra := func(d doubt) int {
		if d.extra {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(d.mac, o.mac), d.block.Compare(o.block), cmp.Compare(extra(d), extra(o)))
}

// sighting is what is known of a doubt.
type sighting struct {
	since     time.Time
	last      time.Time // when IMDS, or the last life, gave rise to it last
	reads     int       // answers in a row that gave rise to it
	explained time.Time // when EC2 said last that IMDS is wrong; zero: it has not
	asked     int       // how often it has said so
	// firm doubts come from the last life or from EC2. An answer of EC2 that may be from before this node's last
	// change of the ENI does not end them.
	firm bool
}

// open tells whether EC2 has said nothing since the doubt was last given rise to.
func (s *sighting) open() bool { return s.explained.IsZero() || s.explained.Before(s.last) }

// walkIfDue reads IMDS: as little as tells whether something changed or, where IMDS is the truth, everything.
func (c *controller) walkIfDue(now time.Time) {
	if !c.walks || c.walking != 0 || c.walkAt.IsZero() || now.Before(c.walkAt) {
		return
	}
	op := c.newOp(opObserve, stageCall, now)
	op.method = callPools
	if c.set.IMDSOnly {
		op.method = callMetadata
	}
	c.walking, c.walkAt = op.id, time.Time{}
	c.begin(op, now)
}

// wantsPrefixes tells whether prefixes may be on the ENIs.
func (c *controller) wantsPrefixes(now time.Time) bool {
	if c.set.Targets.Prefixes || c.set.IMDSOnly {
		return true
	}
	for _, e := range c.store.Snapshot(now).ENIs {
		if e.Prefixes.Blocks > 0 {
			return true
		}
	}
	return false
}

// walked takes IMDS's answer.
func (c *controller) walked(ev evCalled, now time.Time) {
	c.walking, c.graceAt = 0, time.Time{}
	err := ev.err
	if err == nil {
		err = c.plausible(ev.enis)
	}
	if err != nil {
		if c.walkNo++; c.walkNo == 1 {
			c.log(slog.LevelWarn, "instance metadata is of no use", "error", err)
		}
		first := walkEvery / 2
		if c.set.IMDSOnly && !c.synced() {
			first = time.Second
		}
		c.walkAt = now.Add(c.backoff(c.walkNo, first, walkLong))
		return
	}
	if c.walkNo > 0 {
		c.log(slog.LevelInfo, "instance metadata can be used again", "failures", c.walkNo)
	}
	c.walkNo = 0
	c.heard, c.before, c.answer, c.prefixed = now, c.answer, ev.enis, ev.call.prefixed
	fresh := c.weigh(now)
	for _, s := range c.doubts {
		s.reads++
	}
	if c.set.IMDSOnly {
		c.bePatient(now)
	} else if fresh > 0 && c.synced() {
		c.askAbout(now)
	}
	maps.DeleteFunc(c.lag, func(_ doubt, until time.Time) bool { return !c.heard.Before(until) })
	c.walkAt = now.Add(c.walkPause())
	if c.lookAgain.After(now) && c.lookAgain.Before(c.walkAt) {
		c.walkAt = c.lookAgain
	}
}

// plausible refuses an answer that contradicts itself, or lacks the ENI that cannot go.
func (c *controller) plausible(enis []awsutils.ENI) error {
	primary := c.id.PrimaryMAC
	if e := c.enis[c.id.PrimaryENI]; e != nil {
		primary = e.MAC.String()
	}
	seen := map[string]bool{}
	owner := map[netip.Prefix]bool{}
	for i := range enis {
		mac := enis[i].MAC.String()
		if seen[mac] {
			return fmt.Errorf("%s is there twice", mac)
		}
		seen[mac] = true
		for _, p := range poolOf(&enis[i]) {
			if owner[p] {
				return fmt.Errorf("%s is there twice", p)
			}
			owner[p] = true
		}
	}
	if len(enis) == 0 || primary != "" && !seen[primary] {
		return errors.New("it lacks the primary ENI")
	}
	return nil
}

func (c *controller) walkPause() time.Duration {
	pause := walkEvery
	if (c.set.NoProvisioning || c.blind && len(c.suspects) > 0) && len(c.queue) > 0 {
		pause = walkSoon
	}
	if c.set.IMDSOnly {
		pause = min(pause, c.patiencePause())
	}
	return pause*9/10 + time.Duration(c.rand.Float64()*float64(pause)/5)
}

// differences compares IMDS's last answer with what the node holds. What this node changed a moment ago, or is about
// to change, is no difference.
func (c *controller) differences() []doubt {
	told := map[string]*awsutils.ENI{}
	for i := range c.answer {
		told[c.answer[i].MAC.String()] = &c.answer[i]
	}
	var out []doubt
	c.lookAgain = time.Time{}
	note := func(d doubt) {
		switch until := c.lag[doubt{mac: d.mac, block: d.block}]; {
		case !c.heard.Before(until):
			out = append(out, d)
		case c.lookAgain.IsZero() || until.Before(c.lookAgain):
			c.lookAgain = until
		}
	}
	for _, e := range c.sorted() {
		mac := e.MAC.String()
		x := told[mac]
		delete(told, mac)
		switch {
		case !e.managed || c.removing(e) || !e.link:
		case e.lost && x != nil:
			note(doubt{mac: mac, extra: true})
		case e.lost:
		case x == nil:
			note(doubt{mac: mac})
		default:
			c.compareBlocks(e, poolOf(x), note)
		}
	}
	for _, mac := range slices.Sorted(maps.Keys(told)) {
		// An ENI without an IPv4 address serves nobody.
		if told[mac].Primary.IsValid() && !c.arriving(mac) {
			note(doubt{mac: mac, extra: true})
		}
	}
	return out
}

func (c *controller) compareBlocks(e *iface, want []netip.Prefix, note func(doubt)) {
	mac := e.MAC.String()
	have := c.store.Pool(e.ID)
	for _, p := range have {
		if (c.prefixed || p.IsSingleIP()) && !slices.Contains(want, p) && c.denied[p] != e.ID && !c.leavingBlock(e, p) {
			note(doubt{mac: mac, block: p})
		}
	}
	if e.busy != nil || c.heard.Before(e.touched.Add(settleTime)) {
		return // these may be what a call of this node has just brought
	}
	for _, p := range want {
		if !slices.Contains(have, p) || c.denied[p] == e.ID {
			note(doubt{mac: mac, block: p, extra: true})
		}
	}
}

// leavingBlock tells whether a block is on its way back to EC2.
func (c *controller) leavingBlock(e *iface, p netip.Prefix) bool {
	return e.busy != nil && e.busy.kind == opUnassign && slices.Contains(e.busy.blocks, p)
}

// arriving tells whether an ENI of this MAC address is being attached by this node.
func (c *controller) arriving(mac string) bool {
	for _, op := range c.ops {
		if op.kind == opCreate && op.created.MAC.String() == mac {
			return true
		}
	}
	return false
}

// lagging says until when IMDS need not know of a change of a block, or of an ENI (the zero Prefix).
func (c *controller) lagging(e *iface, p netip.Prefix, until time.Time) {
	c.lag[doubt{mac: e.MAC.String(), block: p}] = until
}

// weigh brings the doubts up to date and returns how many EC2 has to be asked about now. That IMDS does not list a thing
// is not made undone by a later answer that does, which may be an older one.
func (c *controller) weigh(now time.Time) (fresh int) {
	next := map[doubt]*sighting{}
	if !c.heard.IsZero() {
		for _, d := range c.differences() {
			s := c.doubts[d]
			if s == nil {
				s = &sighting{since: now}
				fresh++
			}
			s.last = c.heard
			next[d] = s
		}
	}
	for d, s := range c.doubts {
		if next[d] == nil && !d.extra && !c.set.IMDSOnly && s.open() && c.stands(d) && (s.firm || !c.blind) {
			next[d] = s
			fresh++
		}
	}
	c.doubts = next
	c.suspect(now)
	return fresh
}

// stands tells whether the node still has what a doubt is about, and has not got it anew.
func (c *controller) stands(d doubt) bool {
	e := c.byMAC(d.mac)
	return e != nil && e.held && !e.lost && !c.removing(e) && !c.heard.Before(c.lag[d]) &&
		(!d.block.IsValid() || slices.Contains(c.store.Pool(e.ID), d.block) && c.denied[d.block] != e.ID && !c.leavingBlock(e, d.block))
}

// suspect keeps what is missing in IMDS from being handed out, and nothing else.
func (c *controller) suspect(now time.Time) {
	wanted := map[netip.Prefix]string{}
	for d, s := range c.doubts {
		e := c.byMAC(d.mac)
		// What EC2 said before IMDS's last answer may have changed since: IMDS would say the same.
		if d.extra || e == nil || !s.open() {
			continue
		}
		blocks := []netip.Prefix{d.block}
		if !d.block.IsValid() {
			blocks = c.store.Pool(e.ID)
		}
		for _, p := range blocks {
			if c.denied[p] != e.ID && !c.leavingBlock(e, p) && (d.block.IsValid() || !c.heard.Before(c.lag[doubt{mac: d.mac, block: p}])) {
				wanted[p] = e.ID
			}
		}
	}
	if !maps.Equal(wanted, c.suspects) {
		c.unsaved = true
		c.planBy(0, now)
	}
	for _, p := range slices.SortedFunc(maps.Keys(c.suspects), netip.Prefix.Compare) {
		if wanted[p] == "" && c.denied[p] == "" {
			c.quarantine(p, false, now)
		}
	}
	for _, p := range slices.SortedFunc(maps.Keys(wanted), netip.Prefix.Compare) {
		c.quarantine(p, true, now)
	}
	c.suspects = wanted
}

func (c *controller) byMAC(mac string) *iface {
	for _, e := range c.enis {
		if e.MAC.String() == mac {
			return e
		}
	}
	return nil
}

// askAbout has EC2 asked about new doubts: soon, unless IMDS has been wrong time and again.
func (c *controller) askAbout(now time.Time) {
	if now.Sub(c.liedAt) > liesForgotten {
		c.liedNo = 0
	}
	c.resyncBy(later(now, c.verified.Add(settleTime<<min(c.liedNo, maxLies))))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// recheck has EC2 asked again about what it has explained a while ago and IMDS still says.
func (c *controller) recheck(now time.Time) {
	if c.recheckAt.IsZero() || now.Before(c.recheckAt) {
		return
	}
	c.recheckAt = time.Time{}
	for _, s := range c.doubts {
		if !s.explained.IsZero() && s.asked < maxAsked {
			c.resyncBy(now)
		}
	}
}

// hurry has the truth asked for at once when pods wait for what it would set free.
func (c *controller) hurry(now time.Time) {
	if len(c.queue) == 0 || !c.isReady {
		return
	}
	if (c.set.NoProvisioning || c.blind && len(c.suspects) > 0) && c.walks && c.walking == 0 && c.walkAt.After(now.Add(walkSoon)) {
		c.walkAt = now.Add(walkSoon)
	}
	if c.observing != 0 || c.observeNo > 0 {
		return
	}
	switch {
	case !c.synced():
		c.resyncBy(now)
	case len(c.suspects) > 0:
		c.resyncBy(later(now, c.verified.Add(hurryPace)))
	}
}

// explain ends the doubts that EC2's answer, asked for at issued, has an answer to.
func (c *controller) explain(enis []awsutils.ENI, issued, now time.Time) {
	c.weigh(now)
	lies := 0
	for _, d := range slices.SortedFunc(maps.Keys(c.doubts), doubt.compare) {
		s, e := c.doubts[d], c.byMAC(d.mac)
		at := slices.IndexFunc(enis, func(x awsutils.ENI) bool { return x.MAC.String() == d.mac })
		listed := at >= 0 && (!d.block.IsValid() || slices.Contains(poolOf(&enis[at]), d.block))
		switch {
		case issued.Before(s.last), s.firm && e != nil && e.tooFresh(issued, now):
			// EC2 may have been asked before that happened which gave rise to it.
		case d.extra, listed:
			if !d.extra && !s.firm && s.explained.IsZero() {
				lies++
			}
			s.explained, s.firm = now, false
			s.asked++
		case at >= 0 && d.block.IsValid(): // older than what this node is about on the ENI
			c.vanished(e, d.block, now)
		}
	}
	c.weigh(now)
	if lies > 0 {
		c.liedNo, c.liedAt = c.liedNo+1, now
	}
	for _, s := range c.doubts {
		switch {
		case s.open():
			c.resyncBy(now.Add(2 * settleTime))
		case s.asked < maxAsked:
			c.recheckAt = now.Add(liesForgotten)
		}
	}
}

// vanished takes a block away that is not on its ENI any more. What a pod holds stays with the pod; nobody gets it
// after that.
func (c *controller) vanished(e *iface, p netip.Prefix, now time.Time) {
	if e == nil || c.denied[p] == e.ID || !slices.Contains(c.store.Pool(e.ID), p) {
		return
	}
	delete(c.suspects, p)
	c.dirty, c.unsaved = true, true
	c.lagging(e, p, now)
	if err := c.store.RemoveBlocks(e.ID, []netip.Prefix{p}); err != nil {
		c.denied[p] = e.ID
		c.quarantine(p, true, now)
		c.log(slog.LevelError, "a pod holds an address that is not on the ENI any more", "eni", e.ID, "address", p)
		c.notify(true, NoticeAddressLost, fmt.Sprintf("Somebody took %s off %s while a pod holds an address of it: that pod has no network", p, e.ID))
		return
	}
	c.counters.AddressesGone++
	c.log(slog.LevelWarn, "address is gone from the ENI", "eni", e.ID, "address", p)
}

// yield takes away what was doubted anyway and is proved gone by EC2's having given its addresses to another block.
func (c *controller) yield(eni string, p netip.Prefix, now time.Time) {
	for _, q := range slices.SortedFunc(maps.Keys(c.suspects), netip.Prefix.Compare) {
		if id := c.suspects[q]; q.Overlaps(p) && (q != p || id != eni) {
			c.vanished(c.enis[id], q, now)
		}
	}
}

// clash hears that an ENI or a block cannot be taken in: its address is in the ledger already, on an ENI that it was
// taken off behind this node's back. EC2 is asked what is where, but not again and again while a pod keeps it there.
func (c *controller) clash(eni string, p netip.Prefix, err error, now time.Time) {
	if c.clashes[p] {
		return
	}
	c.clashes[p] = true
	c.log(slog.LevelError, "address cannot be used", "eni", eni, "address", p, "error", err)
	c.resyncSoon(now)
}

// pardon forgets what was denied of an ENI that is not the node's any more.
func (c *controller) pardon(eni string) {
	maps.DeleteFunc(c.denied, func(_ netip.Prefix, on string) bool { return on == eni })
}

// acquit ends the quarantine of a block that is on its ENI after all.
func (c *controller) acquit(p netip.Prefix, now time.Time) {
	delete(c.denied, p)
	c.quarantine(p, false, now)
}

// freeDenied forgets blocks that are not on the ENI any more and whose last pod has gone.
func (c *controller) freeDenied(eni string, now time.Time) {
	for p, on := range c.denied {
		if on == eni && c.store.RemoveBlocks(eni, []netip.Prefix{p}) == nil {
			delete(c.denied, p)
			c.dirty, c.unsaved = true, true
			if len(c.clashes) > 0 {
				c.resyncSoon(now) // another ENI of this node may have it now
			}
		}
	}
}
