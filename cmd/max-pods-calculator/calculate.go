package main

import (
	"context"
	"errors"
	"fmt"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/maxpods"
)

// cloud is asked for what the command line and the built-in table do not tell.
type cloud interface {
	// InstanceType says what the instance is that this runs on.
	InstanceType(context.Context) (string, error)
	// Limits are EC2's word on an instance type.
	Limits(ctx context.Context, instanceType string) (awsutils.Limits, error)
}

// calculate gives max-pods. It asks the cloud only for what it needs.
func calculate(ctx context.Context, o options, aws cloud, warn func(string)) (int, error) {
	if o.fromIMDS {
		found, err := aws.InstanceType(ctx)
		if err != nil {
			return 0, fmt.Errorf("instance type: %w", err)
		}
		o.instanceType = found
	}
	limits, ok := awsutils.LimitsOf(o.instanceType)
	if !ok {
		var err error
		if limits, err = aws.Limits(ctx, o.instanceType); err != nil {
			return 0, fmt.Errorf("%s is not in the built-in table: %w", o.instanceType, err)
		}
	}
	prefixes, err := prefixes(o, limits, warn)
	if err != nil {
		return 0, err
	}
	pods := maxpods.Node{
		ENIs:             limits.ENIs,
		IPv4PerENI:       limits.IPv4PerENI,
		MaxENI:           o.maxENI,
		CustomNetworking: o.customNetworking,
		Prefixes:         prefixes,
	}.Pods()
	if o.showMaxAllowed || pods <= maxpods.SmallCap {
		return pods, nil
	}
	limit, err := capOf(ctx, o.instanceType, limits, aws)
	if err != nil {
		return 0, fmt.Errorf("%s has addresses for %d pods, to be capped at %d or, with more than 30 vCPUs, at %d "+
			"(--show-max-allowed does without): how many vCPUs it has, its name does not tell: %w",
			o.instanceType, pods, maxpods.SmallCap, maxpods.LargeCap, err)
	}
	return min(pods, limit), nil
}

// prefixes tells whether the node will use prefixes: whether it was asked for and can be had.
func prefixes(o options, limits awsutils.Limits, warn func(string)) (bool, error) {
	if !o.prefixDelegation {
		return false, nil
	}
	can, err := maxpods.TakesPrefixes(o.cniVersion)
	switch {
	case err != nil:
		return false, err
	case !can:
		warn("no prefix delegation: the cni needs version 1.9 for it")
		return false, nil
	case limits.Hypervisor != "nitro" && !limits.BareMetal:
		warn("no prefix delegation: " + o.instanceType + " is neither nitro nor bare metal")
		return false, nil
	}
	return true, nil
}

// capOf takes EC2's number of vCPUs if it is at hand, then what the name tells, and asks EC2 last.
func capOf(ctx context.Context, instanceType string, limits awsutils.Limits, aws cloud) (int, error) {
	if limits.VCPUs > 0 {
		return maxpods.Cap(limits.VCPUs), nil
	}
	if limit, ok := maxpods.CapByName(instanceType); ok {
		return limit, nil
	}
	limits, err := aws.Limits(ctx, instanceType)
	switch {
	case err != nil:
		return 0, err
	case limits.VCPUs < 1:
		return 0, errors.New("nor does ec2")
	}
	return maxpods.Cap(limits.VCPUs), nil
}
