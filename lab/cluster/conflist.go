package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	manifests "vpccni/config"
)

// installed are the plugins of the template that a node has besides aws-cni.
type installed struct{ egress, portmap bool }

// networkList renders the shipped template as the container's entrypoint does with this environment, on a node with this IPv6
// address (invalid: none). It leaves out plugins that are not there.
func networkList(env map[string]string, node netip.Addr, have installed) ([]byte, error) {
	enabled, nodeIP := "false", ""
	if env["ENABLE_V6_EGRESS"] == "true" && node.IsValid() {
		enabled, nodeIP = "true", node.String()
	}
	text := manifests.Conflist
	for placeholder, value := range map[string]string{
		"__VETHPREFIX__":         cmp.Or(env["AWS_VPC_K8S_CNI_VETHPREFIX"], "eni"),
		"__MTU__":                cmp.Or(env["POD_MTU"], env["AWS_VPC_ENI_MTU"], "9001"),
		"__PODSGENFORCINGMODE__": cmp.Or(env["POD_SECURITY_GROUP_ENFORCING_MODE"], "strict"),
		"__PODSOURCECHECK__":     cmp.Or(env["POD_SOURCE_CHECK"], "strict"),
		"__PLUGINLOGFILE__":      cmp.Or(env["AWS_VPC_K8S_PLUGIN_LOG_FILE"], pluginLog),
		"__PLUGINLOGLEVEL__":     cmp.Or(env["AWS_VPC_K8S_PLUGIN_LOG_LEVEL"], "Debug"),

		"__EGRESSPLUGINLOGFILE__":     cmp.Or(env["AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE"], egressLog),
		"__EGRESSPLUGINENABLED__":     enabled,
		"__EGRESSPLUGINIPAMSUBNET__":  "fd00::ac:00/118",
		"__EGRESSPLUGINIPAMDST__":     "::/0",
		"__EGRESSPLUGINIPAMDATADIR__": "/run/cni/v4pd/egress-v6-ipam",
		"__RANDOMIZESNAT__":           cmp.Or(env["AWS_VPC_K8S_CNI_RANDOMIZESNAT"], "prng"),
		"__NODEIP__":                  nodeIP,
	} {
		quoted, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		text = strings.ReplaceAll(text, placeholder, strings.Trim(string(quoted), `"`))
	}
	var list map[string]any
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("template of the conflist: %w", err)
	}
	plugins, ok := list["plugins"].([]any)
	if !ok {
		return nil, errors.New("template of the conflist: no plugins")
	}
	kept := []any{}
	for _, p := range plugins {
		plugin, ok := p.(map[string]any)
		if !ok {
			return nil, errors.New("template of the conflist: a plugin is no object")
		}
		if kind := plugin["type"]; kind == "egress-cni" && !have.egress || kind == "portmap" && !have.portmap {
			continue
		}
		kept = append(kept, plugin)
	}
	list["plugins"] = kept
	return json.MarshalIndent(list, "", "  ")
}
