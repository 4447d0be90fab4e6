package ec2

import (
	"net/netip"
	"slices"
)

// CreateVPC makes a VPC with its default security group. The first range is the VPC's own, the others are associated
// with it.
func (c *Cloud) CreateVPC(cidrs ...netip.Prefix) (VPC, error) {
	if len(cidrs) == 0 {
		return VPC{}, missing("CidrBlock")
	}
	v := &VPC{Tags: map[string]string{}}
	err := c.change(func(ch *change) error {
		v.ID = c.source.id("vpc")
		for _, cidr := range cidrs {
			if err := v.addCIDR(cidr); err != nil {
				return err
			}
		}
		ch.vpcs[v.ID] = v
		g := &SecurityGroup{
			ID: c.source.id("sg"), VPCID: v.ID,
			Name: defaultGroup, Description: "default VPC security group", Tags: map[string]string{},
		}
		ch.groups[g.ID] = g
		return nil
	})
	if err != nil {
		return VPC{}, err
	}
	return v.clone(), nil
}

const defaultGroup = "default"

// AddVPCCIDR associates one more range with a VPC that is in use.
func (c *Cloud) AddVPCCIDR(vpcID string, cidr netip.Prefix) error {
	return c.change(func(ch *change) error {
		old, ok := c.vpcs[vpcID]
		if !ok {
			return kindVPC.notFound(vpcID)
		}
		v := ref(old.clone())
		ch.vpcs[vpcID] = v
		return v.addCIDR(cidr)
	})
}

func (v *VPC) addCIDR(cidr netip.Prefix) error {
	if !cidr.Addr().Is4() || cidr != cidr.Masked() || cidr.Bits() < 16 || cidr.Bits() > 28 {
		return errorf("InvalidVpc.Range", "The CIDR '%s' is invalid.", cidr)
	}
	if slices.ContainsFunc(v.CIDRs, cidr.Overlaps) {
		return errorf("CidrConflict", "The CIDR '%s' conflicts with another range of the VPC", cidr)
	}
	v.CIDRs = append(v.CIDRs, cidr)
	return nil
}

// CreateSubnet makes a subnet in one of the VPC's ranges. An empty ID is filled in.
func (c *Cloud) CreateSubnet(s Subnet) (Subnet, error) {
	err := c.change(func(ch *change) error {
		v, ok := c.vpcs[s.VPCID]
		if !ok {
			return kindVPC.notFound(s.VPCID)
		}
		if err := c.checkSubnet(v, &s); err != nil {
			return err
		}
		if s.ID == "" {
			s.ID = c.source.id("subnet")
		}
		if s.Zone == "" {
			s.Zone = c.opts.Region + "a"
		}
		if s.Tags == nil {
			s.Tags = map[string]string{}
		}
		ch.subnets[s.ID] = ref(s.clone())
		ch.pools[s.ID] = newPool(s.CIDR)
		return nil
	})
	if err != nil {
		return Subnet{}, err
	}
	return s, nil
}

func (c *Cloud) checkSubnet(v *VPC, s *Subnet) error {
	inVPC := func(at netip.Prefix) bool { return at.Contains(s.CIDR.Addr()) && at.Bits() <= s.CIDR.Bits() }
	switch {
	case !s.CIDR.IsValid() || !s.CIDR.Addr().Is4() || s.CIDR != s.CIDR.Masked() || s.CIDR.Bits() < 16 || s.CIDR.Bits() > 28:
		return errorf("InvalidSubnet.Range", "The CIDR '%s' is invalid.", s.CIDR)
	case !slices.ContainsFunc(v.CIDRs, inVPC):
		return errorf("InvalidSubnet.Range", "The CIDR '%s' is invalid: it is in no range of the VPC.", s.CIDR)
	case s.IPv6.IsValid() && (!s.IPv6.Addr().Is6() || s.IPv6.Bits() != 64 || s.IPv6 != s.IPv6.Masked()):
		return errorf("InvalidSubnet.Range", "The IPv6 CIDR '%s' is invalid.", s.IPv6)
	}
	for _, id := range sortedKeys(c.subnets) {
		o := c.subnets[id]
		if id == s.ID || o.VPCID == s.VPCID && (o.CIDR.Overlaps(s.CIDR) || s.IPv6.IsValid() && o.IPv6.IsValid() && o.IPv6.Overlaps(s.IPv6)) {
			return errorf("InvalidSubnet.Conflict", "The CIDR '%s' conflicts with another subnet", s.CIDR)
		}
	}
	return nil
}

// CreateSecurityGroup makes a security group. An empty ID is filled in.
func (c *Cloud) CreateSecurityGroup(g SecurityGroup) (SecurityGroup, error) {
	err := c.change(func(ch *change) error {
		if _, ok := c.vpcs[g.VPCID]; !ok {
			return kindVPC.notFound(g.VPCID)
		}
		for _, o := range c.groups {
			if o.VPCID == g.VPCID && o.Name == g.Name || o.ID == g.ID {
				return errorf("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", g.Name, g.VPCID)
			}
		}
		if g.ID == "" {
			g.ID = c.source.id("sg")
		}
		if g.Tags == nil {
			g.Tags = map[string]string{}
		}
		ch.groups[g.ID] = ref(g.clone())
		return nil
	})
	if err != nil {
		return SecurityGroup{}, err
	}
	return g, nil
}

// groupsFor gives the ids of the groups asked for, or of the VPC's default group if none are.
func (ch *change) groupsFor(vpcID string, ids []string) ([]string, error) {
	for _, id := range ids {
		g, ok := ch.c.groups[id]
		if !ok {
			return nil, kindGroup.notFound(id)
		}
		if g.VPCID != vpcID {
			return nil, invalidCombination("The security group '%s' and the subnet are in different VPCs", id)
		}
	}
	if len(ids) > 0 {
		sorted := slices.Clone(ids)
		slices.Sort(sorted)
		return slices.Compact(sorted), nil
	}
	for _, id := range sortedKeys(ch.c.groups) {
		if g := ch.c.groups[id]; g.VPCID == vpcID && g.Name == defaultGroup {
			return []string{id}, nil
		}
	}
	return nil, nil
}
