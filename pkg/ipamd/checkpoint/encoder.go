package checkpoint

// lookAhead is how many vanished entries in a row the encoder steps over before it takes an entry for a new one. A
// group commit of a burst of DELs removes about that many neighbours.
const lookAhead = 32

// encoder turns allocations into the bytes of ipam.json and copies what it has encoded before: between two writes a
// few entries of thousands differ, and copying costs a tenth of formatting. It relies on nothing but equality; entries
// that keep their relative order (Source's do) are the ones it finds again.
//
// It keeps two generations, the one before and the one being made, and swaps them.
type encoder struct {
	last, next generation
}

type generation struct {
	allocations []Allocation
	ends        []int // of each allocation's text in out
	out         []byte
}

// encode returns the file. The slice is valid until the call after the next.
func (e *encoder) encode(allocations []Allocation) []byte {
	last, next := &e.last, &e.next
	next.allocations, next.ends = allocations, next.ends[:0]
	next.out = append(next.out[:0], fileHead...)
	at := 0 // in last
	for i := range allocations {
		if i > 0 {
			next.out = append(next.out, ',')
		}
		if found := last.find(&allocations[i], at); found >= 0 {
			next.out = append(next.out, last.text(found)...)
			at = found + 1
		} else {
			next.out = appendAllocation(next.out, &allocations[i])
		}
		next.ends = append(next.ends, len(next.out))
	}
	next.out = append(next.out, fileTail...)
	e.last, e.next = e.next, e.last
	return e.last.out
}

// find looks for an allocation among the entries from at on.
func (g *generation) find(a *Allocation, at int) int {
	for i := at; i < min(at+lookAhead, len(g.allocations)); i++ {
		if g.allocations[i] == *a {
			return i
		}
	}
	return -1
}

func (g *generation) text(i int) []byte {
	start := len(fileHead)
	if i > 0 {
		start = g.ends[i-1] + len(",")
	}
	return g.out[start:g.ends[i]]
}
