package bootstrap

import (
	"context"
	"log/slog"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/config"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/networkutils/hostnet"
)

// Settings are the operator's choices in the daemon's terms, as far as the instance type allows.
func Settings(c config.Config, limits awsutils.Limits, log *slog.Logger) ipamd.Settings {
	s := ipamd.Settings{
		MaxENI:   c.MaxENI,
		Cooldown: c.IPCooldown,
		// 0 refuses at once here, and is the default there.
		AddWait:            max(c.AddWait, 1),
		ManageWhenCordoned: c.ManageENIsWhenNonSchedulable,
		IgnoreUntagged:     !c.ManageUntaggedENIs,
		NoProvisioning:     c.DisableProvisioning,
		IMDSOnly:           c.IMDSOnly,
		SubnetDiscovery:    c.SubnetDiscovery,
		ClusterName:        c.ClusterName,
		ENITags:            c.AdditionalENITags,
		Host: hostnet.Config{
			IPv4:                 c.IPv4,
			IPv6:                 c.IPv6,
			BranchPods:           branchPods(c),
			ExcludeSNATCIDRs:     c.ExcludeSNATCIDRs,
			ExternalServiceCIDRs: c.ExternalServiceCIDRs,
			ExternalSNAT:         c.ExternalSNAT,
			NodePort:             c.NodePort,
			SNATRandom:           snatRandom[c.SNATRandom],
			PrimaryMark:          c.PrimaryMark,
			ENIMask:              c.ENIMask,
			VethPrefix:           c.VethPrefix,
			MTU:                  c.MTU,
			RuleLayout:           ruleLayout[c.RuleLayout],
		},
	}
	s.Targets.WarmENI, s.Targets.WarmIP, s.Targets.MinimumIP = c.WarmENITarget, c.WarmIPTarget, c.MinimumIPTarget
	s.Targets.Prefixes, s.Targets.WarmPrefix = c.PrefixDelegation, c.WarmPrefixTarget
	if c.PrefixDelegation && !limits.TakesPrefixes() {
		log.Warn("ENABLE_PREFIX_DELEGATION has no effect: this instance type takes no prefixes", "hypervisor", limits.Hypervisor)
		s.Targets.Prefixes = false
	}
	// The proportions of warmpool's defaults, which POOL_SHRINK_DELAY's default gives.
	s.Targets.MinENIAge, s.Targets.ShrinkDelay, s.Targets.RemovePace = c.ShrinkDelay, c.ShrinkDelay/2, c.ShrinkDelay/6
	return s
}

func branchPods(c config.Config) hostnet.BranchMode {
	switch {
	case !c.PodENI:
		return hostnet.BranchOff
	case c.SecurityGroupMode == config.SecurityGroupStandard:
		return hostnet.BranchStandard
	default:
		return hostnet.BranchStrict
	}
}

var snatRandom = map[config.SNATRandom]hostnet.SNATRandom{
	config.SNATRandomFully: hostnet.SNATRandomFully,
	config.SNATRandomHash:  hostnet.SNATRandomHash,
	config.SNATRandomNone:  hostnet.SNATRandomNone,
}

var ruleLayout = map[config.RuleLayout]hostnet.RuleLayout{
	config.RuleLayoutTables: hostnet.LayoutTables,
	config.RuleLayoutPerPod: hostnet.LayoutPerPod,
}

// TypeLimits asks EC2 for an instance type's limits. *awsutils.EC2 has it.
type TypeLimits interface {
	InstanceTypeLimits(ctx context.Context, instanceType string) (awsutils.Limits, error)
}

// LimitsOf returns the limits of an instance type, from EC2 if the type is younger than the table built in. Without the
// right to ask, or with nobody to ask (nil), it returns the least that any type of the same size has, which is good for
// what is held and some more; other failures may pass, and end in an error.
func LimitsOf(ctx context.Context, instanceType string, ec2 TypeLimits, log *slog.Logger) (awsutils.Limits, error) {
	if limits, ok := awsutils.LimitsOf(instanceType); ok {
		return limits, nil
	}
	if ec2 == nil {
		return awsutils.LeastLimits(instanceType), nil
	}
	limits, err := ec2.InstanceTypeLimits(ctx, instanceType)
	if awsutils.Classify(err) != awsutils.Denied {
		return limits, err
	}
	limits = awsutils.LeastLimits(instanceType)
	log.Warn("the limits of this instance type are not known, and may not be asked for; those of a small one count until ipamd starts again",
		"type", instanceType, "enis", limits.ENIs, "addresses", limits.IPv4PerENI, "error", err)
	return limits, nil
}
