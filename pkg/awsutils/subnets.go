package awsutils

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// Subnet is a subnet as EC2 describes it.
type Subnet struct {
	ID   string
	CIDR netip.Prefix // IPv4; the zero Prefix if it has none
	Free int          // IPv4 addresses that nobody has
	Tags map[string]string
}

// DescribeSubnets returns the subnets of a zone of a VPC, ordered by id.
func (e *EC2) DescribeSubnets(ctx context.Context, vpcID, zone string) ([]Subnet, error) {
	pages := ec2.NewDescribeSubnetsPaginator(e.api, &ec2.DescribeSubnetsInput{
		Filters: []types.Filter{
			{Name: aws.String("vpc-id"), Values: []string{vpcID}},
			{Name: aws.String("availability-zone"), Values: []string{zone}},
		},
		MaxResults: aws.Int32(pageSize),
	})
	var subnets []Subnet
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("describe subnets of %s in %s: %w", vpcID, zone, err)
		}
		for i := range page.Subnets {
			subnet, err := subnetFromEC2(&page.Subnets[i])
			if err != nil {
				return nil, fmt.Errorf("describe subnets of %s in %s: %w", vpcID, zone, err)
			}
			subnets = append(subnets, subnet)
		}
	}
	slices.SortFunc(subnets, func(a, b Subnet) int { return cmp.Compare(a.ID, b.ID) })
	return subnets, nil
}

func subnetFromEC2(in *types.Subnet) (Subnet, error) {
	s := Subnet{ID: aws.ToString(in.SubnetId), Free: int(aws.ToInt32(in.AvailableIpAddressCount)),
		Tags: make(map[string]string, len(in.Tags))}
	for _, tag := range in.Tags {
		s.Tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
	}
	// A subnet of IPv6 only has no IPv4 range.
	if cidr := aws.ToString(in.CidrBlock); cidr != "" {
		var err error
		if s.CIDR, err = netip.ParsePrefix(cidr); err != nil {
			return Subnet{}, fmt.Errorf("%s: %w", s.ID, err)
		}
	}
	return s, nil
}
