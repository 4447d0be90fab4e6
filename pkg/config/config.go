// Package config reads the process's environment, once, into one struct. Each variable stands in one table (table.go)
// with its type, default, unit, range and effect; that table is what Load parses by and what docs/configuration.md is
// printed from, so that the three cannot differ.
//
// Names and defaults are those of the predecessor, and so is the tolerance: a value that it has always replaced by the
// default does not stop a node from starting now. What it stopped at stops here too, and every such error is reported
// in one go.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// SNATRandom says how source ports of masqueraded connections are picked.
type SNATRandom string

// The values of AWS_VPC_K8S_CNI_RANDOMIZESNAT.
const (
	SNATRandomFully SNATRandom = "prng"
	SNATRandomHash  SNATRandom = "hashrandom"
	SNATRandomNone  SNATRandom = "none"
)

// NetworkPolicyMode says what a pod may do before its network policies are in force.
type NetworkPolicyMode string

// The values of NETWORK_POLICY_ENFORCING_MODE. Unset means that there is no network policy agent.
const (
	NetworkPolicyUnset    NetworkPolicyMode = ""
	NetworkPolicyNone     NetworkPolicyMode = "none"
	NetworkPolicyStandard NetworkPolicyMode = "standard"
	NetworkPolicyStrict   NetworkPolicyMode = "strict"
)

// SecurityGroupMode says which traffic of a branch ENI's pod its security groups see.
type SecurityGroupMode string

// The values of POD_SECURITY_GROUP_ENFORCING_MODE.
const (
	SecurityGroupStrict   SecurityGroupMode = "strict"
	SecurityGroupStandard SecurityGroupMode = "standard"
)

// Config is the configuration of a process. Load makes one; it does not change afterwards.
type Config struct {
	// Pool sizes. Targets count addresses, ENIs or /28 prefixes; 0 switches one off.
	WarmENITarget    int
	WarmIPTarget     int
	MinimumIPTarget  int
	WarmPrefixTarget int
	MaxENI           int // 0: as many as the instance type takes
	IPCooldown       time.Duration
	AddWait          time.Duration // how long an ADD waits for an address
	ShrinkDelay      time.Duration // how long unused capacity is kept

	// Modes.
	IPv4                         bool
	IPv6                         bool
	PrefixDelegation             bool
	CustomNetworking             bool
	PodENI                       bool
	SecurityGroupMode            SecurityGroupMode
	MultiNIC                     bool
	SubnetDiscovery              bool
	NetworkPolicyMode            NetworkPolicyMode
	AnnotatePodIP                bool
	ManageUntaggedENIs           bool
	DisableProvisioning          bool
	IMDSOnly                     bool
	DisableLeakedENICleanup      bool
	ManageENIsWhenNonSchedulable bool
	V6Egress                     bool

	// Identity and AWS.
	NodeName          string
	PodName           string
	ClusterName       string
	ClusterEndpoint   string // of the Kubernetes API; empty: KubernetesHost and KubernetesPort
	KubernetesHost    string
	KubernetesPort    string
	Version           string
	AdditionalENITags map[string]string
	HTTPTimeout       time.Duration // of one HTTP attempt
	EC2Endpoint       string        // empty: the SDK's choice

	// Files, endpoints, logs.
	CheckpointFile       string
	IntrospectionAddress string // host:port or unix:PATH
	DisableIntrospection bool
	DisableMetrics       bool
	LogLevel             slog.Level
	LogFile              string // a path, stdout or stderr

	// Data plane.
	ExternalSNAT         bool
	ExcludeSNATCIDRs     []netip.Prefix // none if ExternalSNAT
	ExternalServiceCIDRs []netip.Prefix
	SNATRandom           SNATRandom
	NodePort             bool
	PrimaryMark          uint32
	ENIMask              uint32 // computed: one run of bits that PrimaryMark does not touch
	MTU                  int    // bytes
	VethPrefix           string

	values []Value
}

// Origin says where a value comes from.
type Origin string

// The origins of a value.
const (
	FromDefault Origin = "default"
	FromEnv     Origin = "env"
	// FromInvalid is a default that took the place of a value that could not be used.
	FromInvalid Origin = "invalid→default"
	// FromOthers is a value that follows from other variables.
	FromOthers Origin = "computed"
)

// Value is the value in force of one variable.
type Value struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin Origin `json:"origin"`
	// Note says why the value is not, or does not do, what whoever set it may think.
	Note string `json:"note,omitempty"`
}

// Load reads the environment. Its error names every variable that cannot be used, one per line.
func Load(getenv func(string) (string, bool)) (Config, error) {
	var (
		c    Config
		errs []error
	)
	for _, v := range table {
		value, err := v.load(&c, getenv)
		c.values = append(c.values, value)
		if err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, c.combine()...)
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Effective returns every variable with its value in force, in the order of docs/configuration.md.
func (c Config) Effective() []Value { return c.values }

// combine checks and completes what depends on more than one variable.
func (c *Config) combine() []error {
	var errs []error
	switch {
	case c.IPv4 && c.IPv6:
		errs = append(errs, errors.New("ENABLE_IPv4 and ENABLE_IPv6: both are true, and exactly one must be"))
	case !c.IPv4 && !c.IPv6:
		errs = append(errs, errors.New("ENABLE_IPv4 and ENABLE_IPv6: neither is true, and exactly one must be (both are false when unset)"))
	}
	if c.IPv6 && !c.PrefixDelegation {
		errs = append(errs, errors.New("ENABLE_IPv6: needs ENABLE_PREFIX_DELEGATION=true"))
	}
	if c.IPv6 && c.CustomNetworking {
		errs = append(errs, errors.New("ENABLE_IPv6 and AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG: cannot both be true"))
	}
	if c.PrefixDelegation && c.WarmIPTarget == 0 && c.MinimumIPTarget == 0 && c.WarmPrefixTarget == 0 {
		errs = append(errs, errors.New("ENABLE_PREFIX_DELEGATION: needs one of WARM_PREFIX_TARGET, WARM_IP_TARGET and MINIMUM_IP_TARGET above 0"))
	}
	if c.IPv6 && c.MTU < minMTUv6 {
		errs = append(errs, fmt.Errorf("AWS_VPC_ENI_MTU=%d: IPv6 needs %d at least", c.MTU, minMTUv6))
	}
	mask, err := eniMask(c.PrimaryMark)
	if err != nil {
		errs = append(errs, err)
	}
	c.ENIMask = mask
	c.values = append(c.values, Value{Name: "(ENI mark mask)", Value: fmt.Sprintf("%#x", mask), Origin: FromOthers})

	if c.ExternalSNAT && len(c.ExcludeSNATCIDRs) > 0 {
		c.ExcludeSNATCIDRs = nil
		c.note("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "ignored: AWS_VPC_K8S_CNI_EXTERNALSNAT is true")
	}
	if c.WarmIPTarget > 0 || c.MinimumIPTarget > 0 {
		const ignored = "ignored: WARM_IP_TARGET or MINIMUM_IP_TARGET is set"
		c.note("WARM_ENI_TARGET", ignored)
		c.note("WARM_PREFIX_TARGET", ignored)
	} else if c.PrefixDelegation {
		c.note("WARM_ENI_TARGET", "ignored: ENABLE_PREFIX_DELEGATION is true")
	} else {
		c.note("WARM_PREFIX_TARGET", "ignored: ENABLE_PREFIX_DELEGATION is false")
	}
	return errs
}

// note adds a remark to a variable that somebody has set.
func (c *Config) note(name, text string) {
	for i := range c.values {
		if v := &c.values[i]; v.Name == name && v.Origin == FromEnv {
			if v.Note != "" {
				v.Note += "; "
			}
			v.Note += text
		}
	}
}
