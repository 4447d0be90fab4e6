package ec2

import (
	"cmp"
	"maps"
	"slices"
)

func (v *VPC) clone() VPC {
	c := *v
	c.CIDRs, c.Tags = slices.Clone(v.CIDRs), maps.Clone(v.Tags)
	return c
}

func (s *Subnet) clone() Subnet {
	c := *s
	c.Tags = maps.Clone(s.Tags)
	return c
}

func (g *SecurityGroup) clone() SecurityGroup {
	c := *g
	c.Tags = maps.Clone(g.Tags)
	return c
}

func (i *Instance) clone() Instance {
	c := *i
	c.Tags = maps.Clone(i.Tags)
	return c
}

func (e *ENI) clone() ENI {
	c := *e
	c.MAC = slices.Clone(e.MAC)
	c.Groups = slices.Clone(e.Groups)
	c.Secondary = slices.Clone(e.Secondary)
	c.Prefixes = slices.Clone(e.Prefixes)
	c.IPv6 = slices.Clone(e.IPv6)
	c.IPv6Prefixes = slices.Clone(e.IPv6Prefixes)
	c.Tags = maps.Clone(e.Tags)
	if e.Attachment != nil {
		a := *e.Attachment
		c.Attachment = &a
	}
	return c
}

// ref is a copy to modify.
func ref[T any](v T) *T { return &v }

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
