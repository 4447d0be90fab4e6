package warmpool

// PrefixSize is the number of addresses in a prefix: EC2 delegates /28s.
const PrefixSize = 16

// blockSize is how many addresses a slot holds.
func blockSize(prefixes bool) int {
	if prefixes {
		return PrefixSize
	}
	return 1
}

// Part is what an ENI holds of one kind: prefixes, or single addresses. Asked is in blocks, and so are the first two;
// the others are addresses.
type Part struct {
	Blocks      int // slots taken
	Idle        int // blocks all of whose addresses are free: they could go back
	Total       int
	Assigned    int
	Free        int
	Cooling     int
	Quarantined int
	Returning   int // part of Total
	Asked       int // not in Total
}

// part is what the ENI holds of one kind.
func (e ENI) part(prefixes bool) Part {
	p := e.Prefixes
	if prefixes {
		return p
	}
	single := Part{Total: e.Total - p.Total, Assigned: e.Assigned - p.Assigned, Free: e.Free - p.Free, Cooling: e.Cooling - p.Cooling,
		Quarantined: e.Quarantined - p.Quarantined, Returning: e.Returning - p.Returning, Asked: e.Asked}
	single.Blocks, single.Idle = single.Total, single.Free
	return single
}

// hold is what the ENI will hold when everything in flight has arrived.
func (e ENI) hold() int { return e.Total - e.Returning + e.Asked + e.Prefixes.Asked*PrefixSize }

// room is how many more slots are free.
func (e ENI) room(l Limits) int {
	singles := e.part(false)
	return max(l.IPsPerENI-singles.Blocks-singles.Asked-e.Prefixes.Blocks-e.Prefixes.Asked, 0)
}

// figures are the sums that the formulas of both directions use, in addresses.
type figures struct {
	held     int // of both kinds, when everything in flight has arrived
	total    int // of these, what counts
	usable   int // of these, neither assigned nor cooling nor quarantined
	ready    int // ready to be handed out now
	cooling  int // usable before long
	waiting  int // pods that wait
	slots    int // ENI slots taken
	inFlight bool
}

func sum(s State) figures {
	f := figures{waiting: s.Waiting}
	for _, e := range s.ENIs {
		if !e.Detached {
			f.slots++
		}
		if !e.serves() {
			continue
		}
		f.inFlight = f.inFlight || e.Busy || e.Asked > 0 || e.Prefixes.Asked > 0 || !e.Usable
		if e.Excluded {
			f.total += e.Assigned // nothing but its pods
			continue
		}
		f.total += e.hold()
		f.usable += e.hold() - e.Assigned - e.Cooling - e.Quarantined
		if e.Usable {
			f.ready += e.Free
			f.cooling += e.Cooling
		}
	}
	for _, c := range s.Creating {
		f.slots++
		f.total += c.IPs + c.Prefixes*PrefixSize
		f.usable += c.IPs + c.Prefixes*PrefixSize
		f.inFlight = true
	}
	f.held = f.total
	return f
}

// without leaves out what is unused of one kind, which is to go back: pods that wait may have it, the targets may not
// count on it.
func (f figures) without(s State, prefixes bool) figures {
	size, spare := blockSize(prefixes), 0
	for _, e := range s.ENIs {
		if !e.serves() || e.Excluded {
			continue
		}
		p := e.part(prefixes)
		unused := p.Total - p.Returning + p.Asked*size - p.Assigned
		f.total -= unused
		spare += unused - p.Cooling - p.Quarantined
		if e.Usable {
			f.ready -= p.Free
			f.cooling -= p.Cooling
		}
	}
	for _, c := range s.Creating {
		n := c.IPs
		if prefixes {
			n = c.Prefixes * PrefixSize
		}
		f.total -= n
		spare += n
	}
	f.usable -= spare
	f.waiting = max(f.waiting-spare, 0)
	return f
}
