package awsutils

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// LimitsOf returns the limits of an instance type from the table built in, and false for a type younger than it.
func LimitsOf(instanceType string) (Limits, bool) {
	entry, ok := vpc.Limits[instanceType]
	if !ok {
		return Limits{}, false
	}
	l := Limits{
		IPv4PerENI:  entry.IPv4PerInterface,
		DefaultCard: entry.DefaultNetworkCardIndex,
		Hypervisor:  entry.Hypervisor,
		BareMetal:   entry.IsBareMetal,
		Trunking:    entry.IsTrunkingCompatible,
	}
	for _, card := range entry.NetworkCards {
		l.Cards = append(l.Cards, CardLimits{Index: int(card.NetworkCardIndex), ENIs: int(card.MaximumNetworkInterfaces)})
	}
	return l.complete(entry.Interface), true
}

// LeastLimits returns what every type of the table has that is of the same size ("xlarge"), or every type at all if there
// is none: limits that a new type can be trusted to have, too.
func LeastLimits(instanceType string) Limits {
	_, size, _ := strings.Cut(instanceType, ".")
	var least, ofSize Limits
	lower := func(l *Limits, of Limits) {
		if l.ENIs == 0 || of.ENIs < l.ENIs {
			l.ENIs = of.ENIs
		}
		if l.IPv4PerENI == 0 || of.IPv4PerENI < l.IPv4PerENI {
			l.IPv4PerENI = of.IPv4PerENI
		}
	}
	for name := range vpc.Limits {
		limits, _ := LimitsOf(name)
		lower(&least, limits)
		if strings.HasSuffix(name, "."+size) {
			lower(&ofSize, limits)
		}
	}
	if ofSize.ENIs > 0 {
		least = ofSize
	}
	least.Hypervisor = "nitro" // as all new types have it
	return least.complete(least.ENIs)
}

// InstanceTypeLimits asks EC2 for the limits of an instance type. EC2 does not tell whether a type takes a trunk ENI,
// so Trunking is false.
func (e *EC2) InstanceTypeLimits(ctx context.Context, instanceType string) (Limits, error) {
	out, err := e.api.DescribeInstanceTypes(ctx, &ec2.DescribeInstanceTypesInput{
		InstanceTypes: []types.InstanceType{types.InstanceType(instanceType)},
	})
	if err != nil {
		return Limits{}, fmt.Errorf("limits of %s: %w", instanceType, err)
	}
	if len(out.InstanceTypes) != 1 || out.InstanceTypes[0].NetworkInfo == nil {
		return Limits{}, fmt.Errorf("limits of %s: ec2 does not know them", instanceType)
	}
	info, network := out.InstanceTypes[0], out.InstanceTypes[0].NetworkInfo
	l := Limits{
		IPv4PerENI:  int(aws.ToInt32(network.Ipv4AddressesPerInterface)),
		DefaultCard: int(aws.ToInt32(network.DefaultNetworkCardIndex)),
		Hypervisor:  string(info.Hypervisor),
		BareMetal:   aws.ToBool(info.BareMetal),
	}
	if info.VCpuInfo != nil {
		l.VCPUs = int(aws.ToInt32(info.VCpuInfo.DefaultVCpus))
	}
	for _, card := range network.NetworkCards {
		l.Cards = append(l.Cards, CardLimits{
			Index: int(aws.ToInt32(card.NetworkCardIndex)),
			ENIs:  int(aws.ToInt32(card.MaximumNetworkInterfaces)),
		})
	}
	l = l.complete(int(aws.ToInt32(network.MaximumNetworkInterfaces)))
	if l.ENIs < 1 || l.IPv4PerENI < 1 {
		return Limits{}, fmt.Errorf("limits of %s: ec2 says %d enis with %d addresses", instanceType, l.ENIs, l.IPv4PerENI)
	}
	return l, nil
}

// complete fills in what follows from the rest. Both sources give the number of ENIs of the whole instance, the sum
// over its cards, which is more than the default card takes.
func (l Limits) complete(sum int) Limits {
	if l.Hypervisor == "" {
		l.Hypervisor = "unknown"
	}
	if len(l.Cards) == 0 {
		l.Cards = []CardLimits{{Index: l.DefaultCard, ENIs: sum}}
	}
	slices.SortFunc(l.Cards, func(a, b CardLimits) int { return a.Index - b.Index })
	for _, card := range l.Cards {
		if card.Index == l.DefaultCard {
			l.ENIs = card.ENIs
		}
	}
	return l
}
