package ipamd

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"vpccni/pkg/awsutils"
)

// The reasons of notices: one per change of state that somebody who looks at the node should know of. Those of what
// lasts come in pairs, for its beginning and its end.
const (
	NoticeSubnetExhausted   = "SubnetExhausted"
	NoticeSubnetRecovered   = "SubnetRecovered"
	NoticeSubnetFragmented  = "SubnetFragmented"
	NoticePrefixesAvailable = "PrefixesAvailable"
	NoticeEC2Denied         = "EC2Denied"
	NoticeEC2Allowed        = "EC2Allowed"
	NoticeEC2Unreachable    = "EC2Unreachable"
	NoticeEC2Reachable      = "EC2Reachable"
	NoticeUnverified        = "ServingUnverified"
	NoticeVerified          = "Verified"
	NoticeNodeFull          = "NodeFull"
	NoticeENILost           = "ENILost"
	NoticeLostENIFreed      = "LostENIFreed"
	NoticeAddressLost       = "AddressLost"
	NoticeLeaving           = "InstanceLeaving"
)

const (
	// noticeRest is how long a state must be over before it counts as over: a subnet that has an address now and then is
	// exhausted all the same, and a full node is one episode although pods come and go on it.
	noticeRest = 10 * time.Minute
	// silentFor is how long EC2 must not answer before people hear of it.
	silentFor = time.Minute
	// unverifiedFor is more than a start takes that spreads its question to EC2.
	unverifiedFor = 2 * time.Minute
)

// notices are the episodes that people have been told of. A state is told when it begins and when it ends, not with
// every try in between.
type notices struct {
	episodes map[string]*episode
	// silent is since when EC2 has not answered, and how often; zero: it answers.
	silent      time.Time
	silentTries int
	started     time.Time
}

// episode is a state that has begun and not ended.
type episode struct {
	last   time.Time // when it showed last
	better time.Time // when it last showed that it may be over; zero: not since last
	reason string    // of the end; empty: it ends without a word
	over   string    // what is said then
}

// begins opens an episode, or notes that it lasts.
func (c *controller) begins(key string, begin Notice, end, over string, now time.Time) {
	if e := c.episodes[key]; e != nil {
		e.last, e.better = now, time.Time{}
		return
	}
	c.episodes[key] = &episode{last: now, reason: end, over: over}
	c.notify(begin.Warning, begin.Reason, begin.Message)
}

// mends notes that what an episode is about works again. It ends once it has for a while, or at once.
func (c *controller) mends(key string, atOnce bool, now time.Time) {
	e := c.episodes[key]
	switch {
	case e == nil:
	case atOnce:
		c.ends(key)
	case e.better.IsZero():
		e.better = now
	}
}

func (c *controller) ends(key string) {
	e := c.episodes[key]
	delete(c.episodes, key)
	if e != nil && e.reason != "" {
		c.notify(false, e.reason, e.over)
	}
}

// keys of episodes
const (
	keySilent     = "ec2"
	keyUnverified = "unverified"
	keyFull       = "full"
)

// noticeCall draws what people should know from the answer to a call.
func (c *controller) noticeCall(op *operation, ev evCalled, now time.Time) {
	if ev.call.method == callWaitLink || ev.call.method.metadata() {
		return // not EC2
	}
	class := classOf(ev.err)
	c.noticeSilence(ev, now)
	denied := "denied " + string(ev.call.method)
	switch {
	case ev.err == nil:
		c.mends(denied, true, now)
	case class == awsutils.Denied:
		c.begins(denied, Notice{true, NoticeEC2Denied, fmt.Sprintf("IAM does not allow this node %s: %v", ev.call.method, ev.err)},
			NoticeEC2Allowed, fmt.Sprintf("IAM allows this node %s again", ev.call.method), now)
	}
	if subnet := c.subnetOf(op); subnet != "" {
		c.noticeSubnet(op, subnet, class, ev.err, now)
	}
}

// noticeSilence follows whether EC2 answers at all. A refusal is an answer.
func (c *controller) noticeSilence(ev evCalled, now time.Time) {
	if ev.err == nil || awsutils.Code(ev.err) != "" {
		c.silent, c.silentTries = time.Time{}, 0
		c.mends(keySilent, true, now)
		return
	}
	if c.silentTries++; c.silent.IsZero() {
		c.silent = now
	}
	if lasted := now.Sub(c.silent); lasted >= silentFor && c.silentTries > 1 {
		c.begins(keySilent, Notice{true, NoticeEC2Unreachable, fmt.Sprintf(
			"EC2 has not answered for %s (%v): pods get the addresses that this node holds, and no others", lasted.Round(time.Second), ev.err)},
			NoticeEC2Reachable, "EC2 answers again", now)
	}
}

// subnetOf is where an operation would get addresses; empty if it asks for none.
func (c *controller) subnetOf(op *operation) string {
	switch e := c.enis[op.eni]; {
	case op.kind == opCreate && op.stage == stageCreate:
		return op.spec.SubnetID
	case op.kind == opAssign && op.stage == stageCall && e != nil:
		return e.SubnetID
	}
	return ""
}

func (c *controller) noticeSubnet(op *operation, subnet string, class awsutils.Class, err error, now time.Time) {
	exhausted, fragmented := "exhausted "+subnet, "fragmented "+subnet
	refused := class == awsutils.InsufficientAddresses || class == awsutils.InsufficientPrefixes
	switch {
	case err == nil && op.prefix:
		c.mends(fragmented, false, now)
		c.mends(exhausted, false, now)
	case err == nil:
		c.mends(exhausted, false, now)
	case refused && op.prefix:
		c.begins(fragmented, Notice{true, NoticeSubnetFragmented, fmt.Sprintf(
			"Subnet %s has no free /28 prefix: single addresses stand in, which the node holds fewer of", subnet)},
			NoticePrefixesAvailable, fmt.Sprintf("Subnet %s has free /28 prefixes again", subnet), now)
	case refused:
		c.begins(exhausted, Notice{true, NoticeSubnetExhausted, fmt.Sprintf(
			"Subnet %s has no free address: pods beyond the addresses that this node holds cannot start", subnet)},
			NoticeSubnetRecovered, fmt.Sprintf("Subnet %s has free addresses again", subnet), now)
	}
}

// noticeFull hears that pods get no address because the node cannot have more.
func (c *controller) noticeFull(reason string, pods int, now time.Time) {
	c.begins(keyFull, Notice{true, NoticeNodeFull, fmt.Sprintf("%d pods wait for an address in vain: %s", pods, reason)}, "", "", now)
}

// noticeVerified follows a start that serves from its journal.
func (c *controller) noticeVerified(now time.Time) {
	switch {
	case c.synced():
		c.mends(keyUnverified, true, now)
	case c.isReady && now.Sub(c.started) >= unverifiedFor:
		c.begins(keyUnverified, Notice{true, NoticeUnverified,
			"Pods get addresses from what this node held before its restart; nothing could be compared with EC2 yet, and nothing is added"},
			NoticeVerified, "What this node holds has been compared with EC2", now)
	}
}

// settleNotices ends what has been over for long enough.
func (c *controller) settleNotices(now time.Time) {
	c.noticeVerified(now)
	for _, key := range slices.Sorted(maps.Keys(c.episodes)) {
		e := c.episodes[key]
		over := !e.better.IsZero() && now.Sub(e.better) >= noticeRest
		if over || key == keyFull && now.Sub(e.last) >= noticeRest {
			c.ends(key)
		}
	}
}

// noticeAt is when settleNotices has something to do if nothing happens before.
func (c *controller) noticeAt() time.Time {
	var at time.Time
	if c.isReady && !c.synced() && c.episodes[keyUnverified] == nil {
		at = c.started.Add(unverifiedFor)
	}
	for key, e := range c.episodes {
		due := e.better
		if key == keyFull {
			due = e.last
		}
		if due.IsZero() {
			continue
		}
		if due = due.Add(noticeRest); at.IsZero() || due.Before(at) {
			at = due
		}
	}
	return at
}
