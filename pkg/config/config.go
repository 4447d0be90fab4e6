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

// RuleLayout says how the node's ip rules lead to pods.
type RuleLayout string

// The values of POD_RULE_LAYOUT.
const (
	RuleLayoutTables RuleLayout = "tables"
	RuleLayoutPerPod RuleLayout = "per-pod"
)

// SourceCheck says which pods are held to their own source addresses.
type SourceCheck string

// The values of POD_SOURCE_CHECK, which are also the conflist's.
const (
	SourceCheckStrict SourceCheck = "strict" // all
	SourceCheckPod    SourceCheck = "pod"    // all but those whose annotation says otherwise
	SourceCheckOff    SourceCheck = "off"    // none
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
	ENIConfigLabel               string
	ENIConfigAnnotation          string
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
	RuleLayout           RuleLayout

	// What the entrypoint and the init container do.
	BinDir               string
	ConfDir              string
	PodMTU               int // bytes; MTU unless set
	SourceCheck          SourceCheck
	PluginLogFile        string
	PluginLogLevel       string // as the conflist has it
	EgressV4LogFile      string
	EgressV6LogFile      string
	V4Egress             bool
	BandwidthPlugin      bool
	DisablePodV6         bool
	DisableTCPEarlyDemux bool

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
		if !own(v) {
			continue
		}
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
