package config

import (
	"errors"
	"strings"
)

const installSection section = "Installation: entrypoint and init container"

// installVariables are those that the container's entrypoint and its init container read: where the plugins go, and
// what the conflist tells them. They are one contract with ipamd's own, and are checked with them.
var installVariables = []variable{
	spec[string]{
		section: installSection, name: "HOST_CNI_BIN_PATH", kind: stringKind, def: "/host/opt/cni/bin",
		field: func(c *Config) *string { return &c.BinDir }, effect: "Directory that the plugins are copied to.",
	},
	spec[string]{
		section: installSection, name: "HOST_CNI_CONFDIR_PATH", kind: stringKind, def: "/host/etc/cni/net.d",
		field: func(c *Config) *string { return &c.ConfDir }, effect: "Directory of the conflist, which is written once ipamd serves.",
	},
	spec[int]{
		section: installSection, name: "POD_MTU", kind: mtuKind, defText: "(`AWS_VPC_ENI_MTU`)",
		field: func(c *Config) *int { return &c.PodMTU },
		check: between(minMTU, maxMTU), valid: "576 to 9001, from 1280 with IPv6", strict: true, notEmpty: true,
		effect: "MTU of pods' interfaces.",
	},
	spec[SourceCheck]{
		section: installSection, name: "POD_SOURCE_CHECK", def: SourceCheckStrict,
		kind:  enumKind(false, SourceCheckStrict, SourceCheckPod, SourceCheckOff),
		field: func(c *Config) *SourceCheck { return &c.SourceCheck }, valid: "`strict`, `pod`, `off`", strict: true, status: ours,
		effect: "What a pod sends must come from its own address. `pod` leaves out pods with the annotation `vpc.amazonaws.com/source-check: off`, `off` leaves out all: for VPN gateways and nested networks (aws-cni.md). It holds for pods that are added from then on.",
	},
	spec[string]{
		section: installSection, name: "AWS_VPC_K8S_PLUGIN_LOG_FILE", kind: stringKind, def: "/var/log/aws-routed-eni/plugin.log",
		field: func(c *Config) *string { return &c.PluginLogFile },
		check: notStdout, valid: "a path or `stderr`", strict: true,
		effect: "Where the plugin logs to, as a path of the host. Its standard output is the runtime's.",
	},
	spec[string]{
		section: installSection, name: "AWS_VPC_K8S_PLUGIN_LOG_LEVEL", kind: stringKind, def: "Debug",
		field: func(c *Config) *string { return &c.PluginLogLevel },
		check: logLevel, valid: "`debug`, `info`, `warn`, `error`, `fatal`, in any case",
		effect: "Least level that the plugin logs.",
	},
	egressLog("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/egress-v4-plugin.log",
		func(c *Config) *string { return &c.EgressV4LogFile }, "an IPv6 cluster's pods that reach IPv4"),
	egressLog("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/egress-v6-plugin.log",
		func(c *Config) *string { return &c.EgressV6LogFile }, "an IPv4 cluster's pods that reach IPv6"),
	inInstall(toggle("ENABLE_V4_EGRESS", true, func(c *Config) *bool { return &c.V4Egress },
		"Pods of an IPv6 cluster reach IPv4 destinations through the node's address. Without `ENABLE_IPv6` it has no effect.")),
	inInstall(toggle("ENABLE_BANDWIDTH_PLUGIN", false, func(c *Config) *bool { return &c.BandwidthPlugin },
		"The conflist has the bandwidth plugin, which obeys pods' bandwidth annotations.")),
	inInstall(toggle("DISABLE_POD_V6", false, func(c *Config) *bool { return &c.DisablePodV6 },
		"The conflist has the tuning plugin switch IPv6 off in pods.")),
	inInstall(toggle("DISABLE_TCP_EARLY_DEMUX", false, func(c *Config) *bool { return &c.DisableTCPEarlyDemux },
		"The init container switches `net.ipv4.tcp_early_demux` off, which kubelet's TCP probes of pods on branch ENIs need in `strict` mode.")),
}

var mtuKind = kind[int]{name: "integer, bytes", read: intKind.read, show: intKind.show}

func inInstall(s spec[bool]) spec[bool] { s.section = installSection; return s }

func egressLog(name, def string, field func(*Config) *string, whose string) variable {
	return spec[string]{
		section: installSection, name: name, kind: stringKind, def: def, field: field, valid: "a path or `stderr`",
		effect: "Where the egress plugin of " + whose + " logs to.",
	}
}

func notStdout(text string) error {
	if text == "stdout" {
		return errors.New("the plugin's standard output is its answer to the runtime")
	}
	return nil
}

func logLevel(text string) error {
	if _, ok := levels[strings.ToLower(text)]; !ok {
		return errors.New("not a log level")
	}
	return nil
}
