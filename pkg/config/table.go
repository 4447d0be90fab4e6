package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"vpccni/pkg/networkutils/names"
)

type section string

const (
	poolSection     section = "Pool"
	modeSection     section = "Modes"
	identitySection section = "Identity and AWS"
	filesSection    section = "Files, endpoints, logs"
	dataSection     section = "Data plane"
)

const (
	minMTU, minMTUv6, maxMTU = 576, 1280, 9001
	minHTTPTimeout           = 10 * time.Second
	// maxAddWait stays below the plugin's own deadline of 90 s, so that it is ipamd's reason that a user reads.
	maxAddWait = 80 * time.Second
	// minShrinkDelay and maxShrinkDelay bound POOL_SHRINK_DELAY: 0 would have ENIs come and go with every pod.
	minShrinkDelay = time.Second
	maxShrinkDelay = 24 * time.Hour
)

// daemonVariables are those that ipamd reads.
var daemonVariables = []variable{
	count("WARM_ENI_TARGET", 1, func(c *Config) *int { return &c.WarmENITarget },
		"ENIs' worth of free addresses to hold ready. Ignored if `WARM_IP_TARGET` or `MINIMUM_IP_TARGET` is set, and with prefix delegation."),
	count("WARM_IP_TARGET", 0, func(c *Config) *int { return &c.WarmIPTarget },
		"Free addresses to hold ready. 0 is off."),
	count("MINIMUM_IP_TARGET", 0, func(c *Config) *int { return &c.MinimumIPTarget },
		"Addresses to hold in all, free and assigned. 0 is off."),
	count("WARM_PREFIX_TARGET", 0, func(c *Config) *int { return &c.WarmPrefixTarget },
		"Free /28 prefixes, or as many addresses, to hold ready with prefix delegation. Ignored if `WARM_IP_TARGET` or `MINIMUM_IP_TARGET` is set. While the subnet has no free /28, as many single addresses."),
	spec[int]{
		section: poolSection, name: "MAX_ENI", kind: intKind, defText: "(the instance type's limit)",
		field: func(c *Config) *int { return &c.MaxENI },
		check: atLeast(1), valid: "1 or more",
		effect: "ENIs of a network card at most, the primary one included; never more than the instance type takes.",
	},
	spec[time.Duration]{
		section: poolSection, name: "IP_COOLDOWN_PERIOD", kind: secondsKind, def: 30 * time.Second,
		field: func(c *Config) *time.Duration { return &c.IPCooldown },
		check: atLeast(time.Duration(0)), valid: "0 or more", strict: true, notEmpty: true,
		effect: "Time between a pod's end and the next use of its address.",
	},
	spec[time.Duration]{
		section: poolSection, name: "ADD_WAIT_TIMEOUT", kind: secondsKind, def: time.Minute,
		field: func(c *Config) *time.Duration { return &c.AddWait },
		check: between(0, maxAddWait), valid: "0 to 80", strict: true, status: ours,
		effect: "How long the ADD of a pod waits for an address that is on its way. 0 refuses at once.",
	},
	spec[time.Duration]{
		section: poolSection, name: "POOL_SHRINK_DELAY", kind: secondsKind, def: time.Minute,
		field: func(c *Config) *time.Duration { return &c.ShrinkDelay },
		check: between(minShrinkDelay, maxShrinkDelay), valid: "1 to 86400", strict: true, status: ours,
		effect: "How long a new ENI is kept, whatever the targets. Single addresses and prefixes go back after half of it, and at most one ENI is removed in a sixth of it.",
	},

	toggle("ENABLE_IPv4", false, func(c *Config) *bool { return &c.IPv4 },
		"Pods get IPv4 addresses. Exactly one of `ENABLE_IPv4` and `ENABLE_IPv6` must be true; the manifest sets this one."),
	absent("ENABLE_IPv6", false, func(c *Config) *bool { return &c.IPv6 },
		"Pods get IPv6 addresses."),
	toggle("ENABLE_PREFIX_DELEGATION", false, func(c *Config) *bool { return &c.PrefixDelegation },
		"ENIs hold /28 prefixes instead of single addresses. One of `WARM_PREFIX_TARGET`, `WARM_IP_TARGET` and `MINIMUM_IP_TARGET` must be above 0 then. On an instance type that takes no prefixes (neither Nitro nor bare metal) it has no effect. Where the subnet has no free /28, single addresses stand in."),
	absent("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", false, func(c *Config) *bool { return &c.CustomNetworking },
		"Subnet and security groups of new ENIs come from an ENIConfig."),
	eniConfigKey("ENI_CONFIG_LABEL_DEF", "label", func(c *Config) *string { return &c.ENIConfigLabel }),
	eniConfigKey("ENI_CONFIG_ANNOTATION_DEF", "annotation", func(c *Config) *string { return &c.ENIConfigAnnotation }),
	absent("ENABLE_POD_ENI", false, func(c *Config) *bool { return &c.PodENI },
		"Pods with security groups of their own get branch ENIs."),
	spec[SecurityGroupMode]{
		section: modeSection, name: "POD_SECURITY_GROUP_ENFORCING_MODE", def: SecurityGroupStrict,
		kind:   enumKind(false, SecurityGroupStrict, SecurityGroupStandard),
		field:  func(c *Config) *SecurityGroupMode { return &c.SecurityGroupMode },
		valid:  "`strict`, `standard`",
		effect: "How a branch ENI's pod is cut off from its node. Without `ENABLE_POD_ENI` it has no effect.",
	},
	absent("ENABLE_MULTI_NIC", false, func(c *Config) *bool { return &c.MultiNIC },
		"ENIs of network cards other than the default one serve pods too."),
	spec[bool]{
		section: modeSection, name: "ENABLE_SUBNET_DISCOVERY", kind: boolKind, def: true,
		field:  func(c *Config) *bool { return &c.SubnetDiscovery },
		effect: "New ENIs are made in the subnet of the zone that has the most free addresses, among those with the tag kubernetes.io/role/cni (and the primary ENI's, unless its tag is 0). Where no subnet is tagged, and without ec2:DescribeSubnets, that is the primary ENI's. See warm-pool.md.",
	},
	spec[NetworkPolicyMode]{
		section: modeSection, name: "NETWORK_POLICY_ENFORCING_MODE", def: NetworkPolicyUnset, defText: "(unset: no agent)",
		kind:  enumKind(true, NetworkPolicyNone, NetworkPolicyStandard, NetworkPolicyStrict),
		field: func(c *Config) *NetworkPolicyMode { return &c.NetworkPolicyMode },
		valid: "`none`, `standard`, `strict`", strict: true, notEmpty: true,
		missing: func(m NetworkPolicyMode) string {
			if m == NetworkPolicyStrict {
				return "not implemented in this version (a pod would start with its network open)"
			}
			return ""
		},
		remark: when(NetworkPolicyStandard, "this version does not announce pods to the network policy agent"),
		effect: "What a pod may do before its network policies are in force. This version does not announce pods to the network policy agent and refuses `strict`.",
	},
	absent("ANNOTATE_POD_IP", false, func(c *Config) *bool { return &c.AnnotatePodIP },
		"A pod's address is written to its annotation `vpc.amazonaws.com/pod-ips`."),
	spec[bool]{
		section: modeSection, name: "MANAGE_UNTAGGED_ENI", kind: boolKind, def: true, status: undocumented,
		field:  func(c *Config) *bool { return &c.ManageUntaggedENIs },
		effect: "ENIs of this instance that do not carry this instance's tag `node.k8s.amazonaws.com/instance_id` serve pods too.",
	},
	toggle("DISABLE_NETWORK_RESOURCE_PROVISIONING", false, func(c *Config) *bool { return &c.DisableProvisioning },
		"The pool neither grows nor shrinks and nothing is changed in EC2: somebody else attaches ENIs and addresses, which IMDS tells of within about a minute (5 s while a pod waits) and EC2 confirms."),
	toggle("ENABLE_IMDS_ONLY_MODE", false, func(c *Config) *bool { return &c.IMDSOnly },
		"EC2 is never called: IMDS says which ENIs and addresses the node has. What two reads in a row list serves pods, whatever its tags; what three reads over a minute lack is forgotten, unless a pod holds it. It implies `DISABLE_NETWORK_RESOURCE_PROVISIONING`."),
	toggle("DISABLE_LEAKED_ENI_CLEANUP", false, func(c *Config) *bool { return &c.DisableLeakedENICleanup },
		"ENIs that ended instances of the cluster left behind are not deleted by this node. Otherwise one elected node of the cluster does that, if `CLUSTER_NAME` is set."),
	toggle("AWS_MANAGE_ENIS_NON_SCHEDULABLE", false, func(c *Config) *bool { return &c.ManageENIsWhenNonSchedulable },
		"The pool is also resized while the node is cordoned. Otherwise it grows then for pods that wait only, and does not shrink."),
	toggle("ENABLE_V6_EGRESS", false, func(c *Config) *bool { return &c.V6Egress },
		"IPv4 pods reach IPv6 destinations through the node's address, by the plugin egress-cni. The init container must have it, too. On a node without an IPv6 address it has no effect."),

	text("MY_NODE_NAME", identitySection, documented, func(c *Config) *string { return &c.NodeName },
		"Name of this node's Node object, from the downward API. Without it nothing is learnt of the Node (max-pods, cordon)."),
	text("MY_POD_NAME", identitySection, documented, func(c *Config) *string { return &c.PodName },
		"Name of this pod, from the downward API: missing IAM permissions are reported as its events. Without it, as the node's."),
	text("CLUSTER_NAME", identitySection, documented, func(c *Config) *string { return &c.ClusterName },
		"Value of the ENI tag `cluster.k8s.amazonaws.com/name`; with it ENIs also get `eks:eni:owner=amazon-vpc-cni`."),
	text("CLUSTER_ENDPOINT", identitySection, documented, func(c *Config) *string { return &c.ClusterEndpoint },
		"URL of the Kubernetes API, in place of `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`; `https://` where no scheme is given."),
	text("KUBERNETES_SERVICE_HOST", identitySection, documented, func(c *Config) *string { return &c.KubernetesHost },
		"Address of the Kubernetes API. The kubelet sets it."),
	text("KUBERNETES_SERVICE_PORT", identitySection, documented, func(c *Config) *string { return &c.KubernetesPort },
		"Its port. The kubelet sets it."),
	text("VPC_CNI_VERSION", identitySection, documented, func(c *Config) *string { return &c.Version },
		"Version in the user agent of EC2 calls."),
	spec[map[string]string]{
		section: identitySection, name: "ADDITIONAL_ENI_TAGS", kind: tagsKind,
		field:  func(c *Config) *map[string]string { return &c.AdditionalENITags },
		valid:  "keys with `k8s.amazonaws.com` are left out",
		effect: "More tags for the ENIs that are created.",
	},
	spec[time.Duration]{
		section: identitySection, name: "HTTP_TIMEOUT", kind: secondsKind, def: minHTTPTimeout,
		field: func(c *Config) *time.Duration { return &c.HTTPTimeout },
		check: atLeast(minHTTPTimeout), valid: "10 or more", status: undocumented,
		effect: "Bound on one HTTP attempt to EC2 or IMDS.",
	},
	text("AWS_EC2_ENDPOINT", identitySection, documented, func(c *Config) *string { return &c.EC2Endpoint },
		"URL of the EC2 API. `AWS_ENDPOINT_URL_EC2` goes before it."),

	spec[string]{
		section: filesSection, name: "AWS_VPC_K8S_CNI_BACKING_STORE", kind: stringKind, def: names.CheckpointFile,
		field: func(c *Config) *string { return &c.CheckpointFile }, status: undocumented,
		effect: "State file of the allocations.",
	},
	spec[string]{
		section: filesSection, name: "INTROSPECTION_BIND_ADDRESS", kind: stringKind, def: "127.0.0.1:61679",
		field: func(c *Config) *string { return &c.IntrospectionAddress },
		check: listenAddress, valid: "`host:port` or `unix:PATH`",
		effect: "Where the introspection endpoint listens.",
	},
	inFiles(toggle("DISABLE_INTROSPECTION", false, func(c *Config) *bool { return &c.DisableIntrospection },
		"No introspection endpoint.")),
	inFiles(toggle("DISABLE_METRICS", false, func(c *Config) *bool { return &c.DisableMetrics },
		"No Prometheus endpoint.")),
	spec[slog.Level]{
		section: filesSection, name: "AWS_VPC_K8S_CNI_LOGLEVEL", kind: levelKind, def: slog.LevelDebug,
		field:  func(c *Config) *slog.Level { return &c.LogLevel },
		valid:  "`debug`, `info`, `warn`, `error`, `fatal`, in any case",
		effect: "Least level that is logged.",
	},
	spec[string]{
		section: filesSection, name: "AWS_VPC_K8S_CNI_LOG_FILE", kind: stringKind,
		def:    "/host/var/log/aws-routed-eni/ipamd.log",
		field:  func(c *Config) *string { return &c.LogFile },
		valid:  "a path, `stdout`, `stderr`",
		effect: "Where ipamd logs to.",
	},

	inData(toggle("AWS_VPC_K8S_CNI_EXTERNALSNAT", false, func(c *Config) *bool { return &c.ExternalSNAT },
		"No source NAT on the node: something outside of it does that, or destinations know the way back to pods.")),
	spec[[]netip.Prefix]{
		section: dataSection, name: "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", kind: cidrsKind,
		field:  func(c *Config) *[]netip.Prefix { return &c.ExcludeSNATCIDRs },
		valid:  "entries that are not IPv4 CIDRs are left out",
		effect: "Ranges besides the VPC's that pods reach without source NAT. Ignored with `AWS_VPC_K8S_CNI_EXTERNALSNAT`.",
	},
	spec[[]netip.Prefix]{
		section: dataSection, name: "AWS_EXTERNAL_SERVICE_CIDRS", kind: cidrsKind,
		field:  func(c *Config) *[]netip.Prefix { return &c.ExternalServiceCIDRs },
		valid:  "entries that are not IPv4 CIDRs are left out",
		effect: "Ranges that are always reached by the main route table.",
	},
	spec[SNATRandom]{
		section: dataSection, name: "AWS_VPC_K8S_CNI_RANDOMIZESNAT", def: SNATRandomFully,
		kind:   enumKind(false, SNATRandomFully, SNATRandomHash, SNATRandomNone),
		field:  func(c *Config) *SNATRandom { return &c.SNATRandom },
		valid:  "`prng`, `hashrandom`, `none`",
		effect: "How source ports are picked in source NAT.",
	},
	inData(toggle("AWS_VPC_CNI_NODE_PORT_SUPPORT", true, func(c *Config) *bool { return &c.NodePort },
		"Replies to connections that came in by the primary ENI leave by it, whichever ENI the pod's address is on.")),
	spec[uint32]{
		section: dataSection, name: "AWS_VPC_K8S_CNI_CONNMARK", kind: markKind, def: names.DefaultPrimaryMark,
		field: func(c *Config) *uint32 { return &c.PrimaryMark }, valid: "1 to 0xffffffff", status: undocumented,
		effect: "Bits of a packet's and a connection's mark that mean \"by the primary ENI\". The ENI's index is in the bits 0x7f, or where these overlap in the widest run of 0xff beside them; less than 4 bits in a row stop the process.",
	},
	spec[int]{
		section: dataSection, name: "AWS_VPC_ENI_MTU", kind: mtuKind, def: maxMTU,
		field: func(c *Config) *int { return &c.MTU },
		check: between(minMTU, maxMTU), valid: "576 to 9001, from 1280 with IPv6", strict: true, notEmpty: true,
		effect: "MTU of the ENIs.",
	},
	spec[string]{
		section: dataSection, name: "AWS_VPC_K8S_CNI_VETHPREFIX", kind: stringKind, def: "eni",
		field: func(c *Config) *string { return &c.VethPrefix },
		check: vethPrefix, valid: "4 characters at most, not `eth`, `lo` or `vlan`", strict: true,
		effect: "Start of the names of pods' interfaces on the node.",
	},
	spec[RuleLayout]{
		section: dataSection, name: "POD_RULE_LAYOUT", def: RuleLayoutTables, kind: enumKind(false, RuleLayoutTables, RuleLayoutPerPod),
		field: func(c *Config) *RuleLayout { return &c.RuleLayout }, valid: "`tables`, `per-pod`", strict: true, status: ours,
		effect: "How ip rules lead to pods. `tables`: one rule for all of them. `per-pod`: rules of each pod's own at 512 and 1536, as amazon-vpc-cni-k8s has them, for tools that look for these; every packet then costs more the more pods there are. Running pods follow a change at ipamd's next start.",
	},
}

// count is a target of the pool.
func count(name string, def int, field func(*Config) *int, effect string) variable {
	return spec[int]{
		section: poolSection, name: name, kind: intKind, def: def, field: field,
		check: atLeast(0), valid: "0 or more", effect: effect,
	}
}

// eniConfigKey is the key under which a node names its ENIConfig.
func eniConfigKey(name, what string, field func(*Config) *string) variable {
	return spec[string]{
		section: modeSection, name: name, kind: stringKind, def: "k8s.amazonaws.com/eniConfig", field: field,
		effect: "Key of the node's " + what + " that names its ENIConfig. Without `AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG` it has no effect.",
	}
}

// toggle is a switch.
func toggle(name string, def bool, field func(*Config) *bool, effect string) spec[bool] {
	return spec[bool]{section: modeSection, name: name, kind: boolKind, def: def, field: field, effect: effect}
}

// absent is a switch of a mode that this version does not have: any value but the default is an error.
func absent(name string, def bool, field func(*Config) *bool, effect string) spec[bool] {
	s := toggle(name, def, field, effect)
	s.valid = fmt.Sprintf("`%v`; `%v` stops the process: not implemented in this version", def, !def)
	s.missing = func(v bool) string {
		if v == def {
			return ""
		}
		return "not implemented in this version"
	}
	return s
}

// when is a remark on one value.
func when[T comparable](value T, remark string) func(T) string {
	return func(v T) string {
		if v == value {
			return remark
		}
		return ""
	}
}

func inFiles(s spec[bool]) spec[bool] { s.section = filesSection; return s }
func inData(s spec[bool]) spec[bool]  { s.section = dataSection; return s }

func text(name string, in section, st status, field func(*Config) *string, effect string) variable {
	return spec[string]{section: in, name: name, kind: stringKind, field: field, effect: effect, status: st}
}

func atLeast[T int | time.Duration](low T) func(T) error {
	return func(v T) error {
		if v < low {
			return fmt.Errorf("less than %v", low)
		}
		return nil
	}
}

func between[T int | time.Duration](low, high T) func(T) error {
	return func(v T) error {
		if v < low || v > high {
			return fmt.Errorf("not between %v and %v", low, high)
		}
		return nil
	}
}

func listenAddress(text string) error {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		if path == "" {
			return errors.New("unix: without a path")
		}
		return nil
	}
	_, _, err := net.SplitHostPort(text)
	return err
}

func vethPrefix(text string) error {
	switch {
	case text == "eth", text == "lo", text == "vlan":
		return errors.New("taken by interfaces that are not pods'")
	case text == "", len(text) > 4:
		return errors.New("must have 1 to 4 characters")
	case strings.ContainsAny(text, "/ \t\n%:"):
		return errors.New("not the start of an interface's name")
	}
	return nil
}
