package checkpoint

import "slices"

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
	allocations []*Allocation
	ends        []int // of each allocation's text in out
	out         []byte
}

// encode returns the file. The slice is valid until the call after the next.
func (e *encoder) encode(allocations []*Allocation) []byte {
	last, next := &e.last, &e.next
	next.allocations, next.ends = allocations, next.ends[:0]
	next.out = append(next.out[:0], fileHead...)
	at := 0 // in last
	for i := range allocations {
		if i > 0 {
			next.out = append(next.out, ',')
		}
		if found := last.find(allocations[i], at); found >= 0 {
			next.out = append(next.out, last.text(found)...)
			at = found + 1
		} else {
			next.out = appendAllocation(next.out, allocations[i])
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
		if g.allocations[i] == a || *g.allocations[i] == *a {
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

// journalEncoder turns journals into bytes and copies the text of ENIs that did not change, which is most of a journal
// and nearly all ENIs nearly always. An ENI's ranges did not change if they are the same slice.
type journalEncoder struct {
	enis  []HeldENI
	texts [][]byte
}

func (e *journalEncoder) encode(b []byte, j *Journal) []byte {
	texts := make([][]byte, len(j.ENIs))
	for i := range j.ENIs {
		if i < len(e.enis) && sameENI(&e.enis[i], &j.ENIs[i]) {
			texts[i] = e.texts[i]
		} else {
			texts[i] = appendENI(nil, &j.ENIs[i])
		}
	}
	e.enis, e.texts = j.ENIs, texts
	return appendJournalOf(b, j, texts)
}

func sameENI(x, y *HeldENI) bool {
	return x.ID == y.ID && x.MAC == y.MAC && x.Device == y.Device && x.Card == y.Card && x.Address == y.Address &&
		x.SubnetID == y.SubnetID && x.SubnetCIDR == y.SubnetCIDR && sameSlice(x.Pool, y.Pool) && slices.Equal(x.Doubted, y.Doubted)
}

func sameSlice[T any](x, y []T) bool {
	return len(x) == len(y) && (len(x) == 0 || &x[0] == &y[0])
}
