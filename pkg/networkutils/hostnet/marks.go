package hostnet

import (
	"fmt"
	"math/bits"
)

// devicesPerCard spreads the ENIs of several network cards over the ENI field of the mark: card 0 keeps the device
// index itself, every further card has the next sixteen values.
const devicesPerCard = 16

// marks is the layout of the bits in a packet's and a connection's mark that are ours.
type marks struct {
	primary uint32 // leave by the primary ENI
	eni     uint32 // field with the index of a secondary ENI
}

func newMarks(primary, eni uint32) (marks, error) {
	m := marks{primary: primary, eni: eni}
	switch {
	case primary == 0:
		return m, fmt.Errorf("mark of the primary ENI is 0: it needs at least one bit")
	case eni == 0:
		return m, fmt.Errorf("mask of the ENI mark is 0: it needs at least one bit")
	case primary&eni != 0:
		return m, fmt.Errorf("mark of the primary ENI %#x and mask of the ENI mark %#x share the bits %#x",
			primary, eni, primary&eni)
	case bits.LeadingZeros32(eni)+bits.OnesCount32(eni)+bits.TrailingZeros32(eni) != 32:
		return m, fmt.Errorf("mask of the ENI mark %#x has a gap: its bits must be contiguous", eni)
	}
	return m, nil
}

// eniIndex returns the number of a secondary ENI in the mark. It follows from where the ENI is attached alone, so that
// connections that carry it survive a restart.
func eniIndex(card, device int) int { return card*devicesPerCard + device }

// value returns the mark of the ENI with the index.
func (m marks) value(index int) (uint32, error) {
	shift := bits.TrailingZeros32(m.eni)
	highest := int(m.eni >> shift)
	if index < 1 || index > highest {
		return 0, fmt.Errorf("ENI number %d does not fit the ENI mark's mask %#x (1 to %d)", index, m.eni, highest)
	}
	return uint32(index) << shift, nil
}

// own is all bits that are ours.
func (m marks) own() uint32 { return m.primary | m.eni }
