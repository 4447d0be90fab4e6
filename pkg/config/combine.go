package config

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// combine checks and completes what depends on more than one variable. What upstream's processes stop at is an error;
// what they accept although it cannot be meant is a note on the variable, which is logged and shown.
func (c *Config) combine() []error {
	errs := c.contradictions()
	mask, err := eniMask(c.PrimaryMark)
	if err != nil {
		errs = append(errs, err)
	}
	c.ENIMask = mask
	c.values = append(c.values, Value{Name: "(ENI mark mask)", Value: fmt.Sprintf("%#x", mask), Origin: FromOthers})
	if c.PodMTU == 0 {
		c.PodMTU = c.MTU
		c.compute("POD_MTU", fmt.Sprint(c.MTU))
	}
	c.notePool()
	c.noteModes()
	c.noteNetwork()
	if c.ExternalSNAT {
		c.ExcludeSNATCIDRs = nil
	}
	return errs
}

// contradictions are combinations that no node can be run with.
func (c *Config) contradictions() []error {
	var errs []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	wrong(c.IPv4 && c.IPv6, "ENABLE_IPv4 and ENABLE_IPv6: both are true, and exactly one must be")
	wrong(!c.IPv4 && !c.IPv6, "ENABLE_IPv4 and ENABLE_IPv6: neither is true, and exactly one must be (both are false when unset)")
	wrong(c.IPv6 && !c.PrefixDelegation, "ENABLE_IPv6: needs ENABLE_PREFIX_DELEGATION=true")
	wrong(c.IPv6 && c.CustomNetworking, "ENABLE_IPv6 and AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG: cannot both be true")
	wrong(c.PrefixDelegation && c.WarmIPTarget == 0 && c.MinimumIPTarget == 0 && c.WarmPrefixTarget == 0,
		"ENABLE_PREFIX_DELEGATION: needs one of WARM_PREFIX_TARGET, WARM_IP_TARGET and MINIMUM_IP_TARGET above 0")
	wrong(c.IPv6 && c.MTU < minMTUv6, "AWS_VPC_ENI_MTU=%d: IPv6 needs %d at least", c.MTU, minMTUv6)
	wrong(c.IPv6 && c.PodMTU != 0 && c.PodMTU < minMTUv6, "POD_MTU=%d: IPv6 needs %d at least", c.PodMTU, minMTUv6)
	// Elsewhere an unknown mode counts as strict, but a pod with security groups of its own must get what was meant.
	if v := c.value("POD_SECURITY_GROUP_ENFORCING_MODE"); c.PodENI && v != nil && v.Origin == FromInvalid {
		errs = append(errs, errors.New("POD_SECURITY_GROUP_ENFORCING_MODE: with ENABLE_POD_ENI=true it must be strict or standard"))
	}
	return errs
}

// notePool remarks on targets that another one overrules.
func (c *Config) notePool() {
	targets := []string{"WARM_ENI_TARGET", "WARM_IP_TARGET", "MINIMUM_IP_TARGET", "WARM_PREFIX_TARGET", "MAX_ENI"}
	switch {
	case c.IMDSOnly:
		c.noteAll("ignored: with ENABLE_IMDS_ONLY_MODE the pool neither grows nor shrinks", targets...)
		return
	case c.DisableProvisioning:
		c.noteAll("ignored: with DISABLE_NETWORK_RESOURCE_PROVISIONING the pool neither grows nor shrinks", targets...)
		return
	case c.WarmIPTarget > 0 || c.MinimumIPTarget > 0:
		c.noteAll("ignored: WARM_IP_TARGET or MINIMUM_IP_TARGET is set", "WARM_ENI_TARGET", "WARM_PREFIX_TARGET")
	case c.PrefixDelegation:
		c.note("WARM_ENI_TARGET", "ignored: ENABLE_PREFIX_DELEGATION is true")
	default:
		c.note("WARM_PREFIX_TARGET", "ignored: ENABLE_PREFIX_DELEGATION is false")
	}
	if c.MinimumIPTarget > 0 && c.MinimumIPTarget <= c.WarmIPTarget {
		c.note("MINIMUM_IP_TARGET", fmt.Sprintf("has no effect: WARM_IP_TARGET=%d holds as many ready anyway", c.WarmIPTarget))
	}
	if c.MinimumIPTarget > 0 && c.WarmIPTarget == 0 {
		c.note("MINIMUM_IP_TARGET", "without WARM_IP_TARGET the pool grows beyond it only when a pod waits")
	}
}

// noteModes remarks on settings of a mode that is off.
func (c *Config) noteModes() {
	if c.IMDSOnly {
		c.note("DISABLE_NETWORK_RESOURCE_PROVISIONING", "implied by ENABLE_IMDS_ONLY_MODE")
	}
	if !c.CustomNetworking {
		c.noteAll("has no effect: AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG is false", "ENI_CONFIG_LABEL_DEF", "ENI_CONFIG_ANNOTATION_DEF")
	}
	if !c.PodENI {
		// The manifest sets it everywhere, so that it has no effect is worth a word only where it is not its default.
		if c.SecurityGroupMode != SecurityGroupStrict {
			c.note("POD_SECURITY_GROUP_ENFORCING_MODE", "has no effect: ENABLE_POD_ENI is false")
		}
	}
	if c.IPv6 && c.DisablePodV6 {
		c.note("DISABLE_POD_V6", "contradicts ENABLE_IPv6: pods get no address")
	}
	if c.IPv6 && c.V6Egress {
		c.note("ENABLE_V6_EGRESS", "has no effect with ENABLE_IPv6: pods have IPv6 addresses of their own")
	}
	if host, port, err := net.SplitHostPort(c.IntrospectionAddress); err == nil && !c.DisableIntrospection {
		if ip := net.ParseIP(host); host == "" || ip != nil && !ip.IsLoopback() {
			c.note("INTROSPECTION_BIND_ADDRESS", "is not a loopback address: whoever reaches the node can read the state of its pods")
		}
		if port == metricsPort && !c.DisableMetrics {
			c.note("INTROSPECTION_BIND_ADDRESS", "the metrics endpoint has this port: one of the two will not be served")
		}
	}
}

// metricsPort is the port of :61678/metrics, which no variable moves.
const metricsPort = "61678"

// noteNetwork remarks on what cannot work on the wire.
func (c *Config) noteNetwork() {
	if c.ExternalSNAT {
		c.noteAll("ignored: AWS_VPC_K8S_CNI_EXTERNALSNAT is true", "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS")
		if c.SNATRandom != SNATRandomFully {
			c.note("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "ignored: AWS_VPC_K8S_CNI_EXTERNALSNAT is true")
		}
	}
	if c.PodMTU > c.MTU {
		c.note("POD_MTU", fmt.Sprintf("larger than AWS_VPC_ENI_MTU=%d: pods' large packets are fragmented or lost", c.MTU))
	}
	if claims := markClaims(c.PrimaryMark); len(claims) > 0 {
		c.note("AWS_VPC_K8S_CNI_CONNMARK", "overlaps marks of "+strings.Join(claims, ", "))
	}
}

func (c *Config) value(name string) *Value {
	for i := range c.values {
		if c.values[i].Name == name {
			return &c.values[i]
		}
	}
	return nil
}

// compute gives a variable that nobody has set the value that follows from others.
func (c *Config) compute(name, text string) {
	if v := c.value(name); v != nil {
		v.Value, v.Origin = text, FromOthers
	}
}

// note adds a remark to a variable that somebody has set.
func (c *Config) note(name, text string) {
	v := c.value(name)
	if v == nil || v.Origin != FromEnv {
		return
	}
	if v.Note != "" {
		v.Note += "; "
	}
	v.Note += text
}

func (c *Config) noteAll(text string, names ...string) {
	for _, name := range names {
		c.note(name, text)
	}
}
