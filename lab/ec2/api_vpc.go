package ec2

import (
	"fmt"
	"net/netip"
)

type xmlIPv6Block struct {
	ID    string `xml:"associationId"`
	CIDR  string `xml:"ipv6CidrBlock"`
	State string `xml:"ipv6CidrBlockState>state"`
}

type xmlSubnet struct {
	ID        string               `xml:"subnetId"`
	ARN       string               `xml:"subnetArn"`
	State     string               `xml:"state"`
	OwnerID   string               `xml:"ownerId"`
	VPCID     string               `xml:"vpcId"`
	CIDR      string               `xml:"cidrBlock"`
	IPv6      xmlSet[xmlIPv6Block] `xml:"ipv6CidrBlockAssociationSet"`
	Available int                  `xml:"availableIpAddressCount"`
	Zone      string               `xml:"availabilityZone"`
	Default   bool                 `xml:"defaultForAz"`
	MapPublic bool                 `xml:"mapPublicIpOnLaunch"`
	AssignV6  bool                 `xml:"assignIpv6AddressOnCreation"`
	Tags      xmlSet[xmlTag]       `xml:"tagSet"`
}

type describeSubnetsReply struct {
	reply
	Subnets xmlSet[xmlSubnet] `xml:"subnetSet"`
	Next    string            `xml:"nextToken,omitempty"`
}

func (c *Cloud) xmlSubnet(s *Subnet) xmlSubnet {
	x := xmlSubnet{
		ID: s.ID, ARN: c.arn("subnet", s.ID), State: "available", OwnerID: c.opts.AccountID, VPCID: s.VPCID,
		CIDR: s.CIDR.String(), Available: c.pools[s.ID].free, Zone: s.Zone, Tags: xmlTags(s.Tags),
	}
	if s.IPv6.IsValid() {
		x.IPv6.Items = []xmlIPv6Block{{"subnet-cidr-assoc-" + s.ID[len("subnet-"):], s.IPv6.String(), "associated"}}
	}
	return x
}

func (c *Cloud) arn(kind, id string) string {
	return fmt.Sprintf("arn:aws:ec2:%s:%s:%s/%s", c.opts.Region, c.opts.AccountID, kind, id)
}

func (c *Cloud) describeSubnets(q *call) (response, error) {
	ids, filters, pg := q.list("SubnetId"), q.filters(), q.paging("SubnetId", maxResults)
	if err := q.ready(); err != nil {
		return nil, err
	}
	c.state.RLock()
	defer c.state.RUnlock()
	cidr := one(func(s *Subnet) string { return s.CIDR.String() })
	by := fields[*Subnet]{
		"subnet-id":         one(func(s *Subnet) string { return s.ID }),
		"vpc-id":            one(func(s *Subnet) string { return s.VPCID }),
		"availability-zone": one(func(s *Subnet) string { return s.Zone }),
		"availabilityZone":  one(func(s *Subnet) string { return s.Zone }),
		"cidr":              cidr, "cidrBlock": cidr, "cidr-block": cidr,
		"state":                      one(func(*Subnet) string { return "available" }),
		"owner-id":                   one(func(*Subnet) string { return c.opts.AccountID }),
		"available-ip-address-count": one(func(s *Subnet) string { return decimal(c.pools[s.ID].free) }),
		"ipv6-cidr-block-association.ipv6-cidr-block": func(s *Subnet) []string {
			if !s.IPv6.IsValid() {
				return nil
			}
			return []string{s.IPv6.String()}
		},
	}
	found, err := described[Subnet]{kindSubnet, c.subnets, func(s *Subnet) map[string]string { return s.Tags }, by}.find(ids, filters)
	if err != nil {
		return nil, err
	}
	shown, next := cut(pg, found, func(s *Subnet) string { return s.ID })
	return &describeSubnetsReply{Subnets: setOf(shown, c.xmlSubnet), Next: next}, nil
}

type xmlBlock struct {
	ID    string `xml:"associationId"`
	CIDR  string `xml:"cidrBlock"`
	State string `xml:"cidrBlockState>state"`
}

type xmlVPC struct {
	ID      string           `xml:"vpcId"`
	OwnerID string           `xml:"ownerId"`
	State   string           `xml:"state"`
	CIDR    string           `xml:"cidrBlock"`
	CIDRs   xmlSet[xmlBlock] `xml:"cidrBlockAssociationSet"`
	Tenancy string           `xml:"instanceTenancy"`
	Default bool             `xml:"isDefault"`
	Tags    xmlSet[xmlTag]   `xml:"tagSet"`
}

type describeVPCsReply struct {
	reply
	VPCs xmlSet[xmlVPC] `xml:"vpcSet"`
	Next string         `xml:"nextToken,omitempty"`
}

func (c *Cloud) xmlVPC(v *VPC) xmlVPC {
	n := 0
	return xmlVPC{
		ID: v.ID, OwnerID: c.opts.AccountID, State: "available", CIDR: v.CIDRs[0].String(), Tenancy: "default", Tags: xmlTags(v.Tags),
		CIDRs: setOf(v.CIDRs, func(p netip.Prefix) xmlBlock {
			n++
			return xmlBlock{fmt.Sprintf("vpc-cidr-assoc-%s%d", v.ID[len("vpc-"):], n), p.String(), "associated"}
		}),
	}
}

func (c *Cloud) describeVPCs(q *call) (response, error) {
	ids, filters, pg := q.list("VpcId"), q.filters(), q.paging("VpcId", maxResults)
	if err := q.ready(); err != nil {
		return nil, err
	}
	c.state.RLock()
	defer c.state.RUnlock()
	cidr := one(func(v *VPC) string { return v.CIDRs[0].String() })
	by := fields[*VPC]{
		"vpc-id": one(func(v *VPC) string { return v.ID }),
		"cidr":   cidr, "cidr-block": cidr,
		"cidr-block-association.cidr-block": func(v *VPC) []string { return texts(v.CIDRs) },
		"state":                             one(func(*VPC) string { return "available" }),
		"owner-id":                          one(func(*VPC) string { return c.opts.AccountID }),
		"is-default":                        one(func(*VPC) string { return "false" }),
	}
	found, err := described[VPC]{kindVPC, c.vpcs, func(v *VPC) map[string]string { return v.Tags }, by}.find(ids, filters)
	if err != nil {
		return nil, err
	}
	shown, next := cut(pg, found, func(v *VPC) string { return v.ID })
	return &describeVPCsReply{VPCs: setOf(shown, c.xmlVPC), Next: next}, nil
}

type xmlGroup struct {
	OwnerID     string           `xml:"ownerId"`
	ID          string           `xml:"groupId"`
	Name        string           `xml:"groupName"`
	Description string           `xml:"groupDescription"`
	VPCID       string           `xml:"vpcId"`
	ARN         string           `xml:"securityGroupArn"`
	Ingress     xmlSet[struct{}] `xml:"ipPermissions"`
	Egress      xmlSet[struct{}] `xml:"ipPermissionsEgress"`
	Tags        xmlSet[xmlTag]   `xml:"tagSet"`
}

type describeGroupsReply struct {
	reply
	Groups xmlSet[xmlGroup] `xml:"securityGroupInfo"`
	Next   string           `xml:"nextToken,omitempty"`
}

func (c *Cloud) xmlGroup(g *SecurityGroup) xmlGroup {
	return xmlGroup{
		OwnerID: c.opts.AccountID, ID: g.ID, Name: g.Name, Description: g.Description, VPCID: g.VPCID,
		ARN: c.arn("security-group", g.ID), Tags: xmlTags(g.Tags),
	}
}

func (c *Cloud) describeSecurityGroups(q *call) (response, error) {
	ids, filters, pg := q.list("GroupId"), q.filters(), q.paging("GroupId", maxResults)
	if names := q.list("GroupName"); len(names) > 0 {
		filters = append(filters, filter{"group-name", names})
	}
	if err := q.ready(); err != nil {
		return nil, err
	}
	c.state.RLock()
	defer c.state.RUnlock()
	by := fields[*SecurityGroup]{
		"group-id":    one(func(g *SecurityGroup) string { return g.ID }),
		"group-name":  one(func(g *SecurityGroup) string { return g.Name }),
		"vpc-id":      one(func(g *SecurityGroup) string { return g.VPCID }),
		"description": one(func(g *SecurityGroup) string { return g.Description }),
		"owner-id":    one(func(*SecurityGroup) string { return c.opts.AccountID }),
	}
	found, err := described[SecurityGroup]{kindGroup, c.groups, func(g *SecurityGroup) map[string]string { return g.Tags }, by}.find(ids, filters)
	if err != nil {
		return nil, err
	}
	shown, next := cut(pg, found, func(g *SecurityGroup) string { return g.ID })
	return &describeGroupsReply{Groups: setOf(shown, c.xmlGroup), Next: next}, nil
}
