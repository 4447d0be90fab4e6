package ec2

import "net/netip"

const ipv6PrefixBits = 80 // of a delegated IPv6 prefix

// index finds ENIs by what they hold. It follows Cloud.enis.
type index struct {
	owners      map[claim]string               // ENI by address (as a /32 or /128) or prefix
	singles     map[claim]int                  // single IPv6 addresses within a /80
	attached    map[string]map[string]struct{} // ENIs by instance
	attachments map[string]string              // ENI by attachment
}

// claim is an address or prefix in a VPC: two VPCs may have the same ranges.
type claim struct {
	vpc string
	at  netip.Prefix
}

func newIndex() index {
	return index{owners: map[claim]string{}, singles: map[claim]int{}, attached: map[string]map[string]struct{}{}, attachments: map[string]string{}}
}

// owner is the ENI that holds the address, empty if none does.
func (x *index) owner(vpcID string, a netip.Addr) string {
	if id, ok := x.owners[claim{vpcID, single(a)}]; ok {
		return id
	}
	return x.owners[claim{vpcID, around(a)}]
}

func (x *index) add(e *ENI) {
	for _, at := range e.claims() {
		x.owners[claim{e.VPCID, at}] = e.ID
	}
	for _, a := range e.IPv6 {
		x.singles[claim{e.VPCID, around(a)}]++
	}
	if e.Attachment == nil {
		return
	}
	on := x.attached[e.Attachment.InstanceID]
	if on == nil {
		on = map[string]struct{}{}
		x.attached[e.Attachment.InstanceID] = on
	}
	on[e.ID] = struct{}{}
	x.attachments[e.Attachment.ID] = e.ID
}

// remove forgets the ENI. An address may already be another's, who was added first.
func (x *index) remove(e *ENI) {
	for _, at := range e.claims() {
		if c := (claim{e.VPCID, at}); x.owners[c] == e.ID {
			delete(x.owners, c)
		}
	}
	for _, a := range e.IPv6 {
		c := claim{e.VPCID, around(a)}
		if x.singles[c]--; x.singles[c] == 0 {
			delete(x.singles, c)
		}
	}
	if e.Attachment == nil {
		return
	}
	on := x.attached[e.Attachment.InstanceID]
	delete(on, e.ID)
	delete(x.attachments, e.Attachment.ID)
	if len(on) == 0 {
		delete(x.attached, e.Attachment.InstanceID)
	}
}

// claims are all addresses and prefixes of the ENI.
func (e *ENI) claims() []netip.Prefix {
	all := make([]netip.Prefix, 0, 1+len(e.Secondary)+len(e.Prefixes)+len(e.IPv6)+len(e.IPv6Prefixes))
	all = append(all, single(e.Primary))
	for _, a := range e.Secondary {
		all = append(all, single(a))
	}
	for _, a := range e.IPv6 {
		all = append(all, single(a))
	}
	return append(append(all, e.Prefixes...), e.IPv6Prefixes...)
}

// single is the prefix of only this address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// around is the prefix, of the size that EC2 delegates, that the address is in.
func around(a netip.Addr) netip.Prefix {
	n := prefixBits
	if a.Is6() {
		n = ipv6PrefixBits
	}
	return netip.PrefixFrom(a, n).Masked()
}
