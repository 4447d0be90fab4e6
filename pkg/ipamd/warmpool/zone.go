package warmpool

import "time"

// How old the answer may be by which a subnet is chosen.
const (
	// zoneFresh is short enough to follow tags and free addresses, and long enough to cost a growing node one call.
	zoneFresh = 10 * time.Minute
	// zoneRetry is the age at which the answer is doubted when pods wait and every subnet in it refuses.
	zoneRetry = time.Minute
)

// Zone is what is known of the subnets of the node's zone.
type Zone struct {
	// Subnets may get new ENIs, the best first.
	Subnets []string
	// Discover says that EC2 knows which these are. Known is when it said so last, zero if it has not yet; Asking, that
	// it is being asked.
	Discover bool
	Known    time.Time
	Asking   bool
}

// find asks which subnets there are, if that can be asked. It returns false if growth has to do with what is known.
func (d *Decision) find(s State, why string, now time.Time) bool {
	if !s.Zone.Discover {
		return false
	}
	if s.Zone.Asking {
		return true
	}
	if !s.mayFind(0, now) {
		return false
	}
	d.Actions = append(d.Actions, Action{Kind: FindSubnets, Reason: why})
	return true
}

// mayFind tells whether EC2 can be asked for the subnets, whose last answer is of some age.
func (s State) mayFind(age time.Duration, now time.Time) bool {
	_, refused := s.Refusals.Get(OpFind, "", now)
	return s.Zone.Discover && !refused && now.Sub(s.Zone.Known) >= age
}

// choose finds the subnet for a new ENI, and how many of the blocks that it is to have may be asked for there: the first
// that may be asked for all, or else the one that may be asked for most. It returns "" if there is none, or none yet.
func (d *Decision) choose(s State, g growth, wanted int, probed map[string]bool, now time.Time) (subnet string, n int) {
	for _, id := range s.Zone.Subnets {
		if probed[id] || g.instead && !s.Refusals.noPrefix(id, now) {
			continue
		}
		if s.Refusals.everywhere(OpCreate, id, now) {
			d.wakeAt(g.until(s.Refusals, OpCreate, id, now), now)
			return "", 0
		}
		can := g.allowed(s.Refusals, OpCreate, id, wanted, now)
		if can <= 0 {
			d.wakeAt(g.until(s.Refusals, OpCreate, id, now), now)
		}
		if can > n {
			subnet, n = id, can
		}
		if n == wanted {
			break
		}
	}
	age := now.Sub(s.Zone.Known)
	if subnet != "" && age >= zoneFresh || subnet == "" && g.waiting && age >= zoneRetry {
		if d.find(s, g.why, now) {
			return "", 0
		}
	}
	return subnet, n
}
