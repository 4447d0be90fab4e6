package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	manifests "vpccni/config"
)

// networkList renders the shipped template as the container's entrypoint does with this environment. It leaves out
// egress-cni, which this version does not have, and portmap where there is no such binary.
func networkList(env map[string]string, portmap bool) ([]byte, error) {
	text := manifests.Conflist
	for placeholder, value := range map[string]string{
		"__VETHPREFIX__":         cmp.Or(env["AWS_VPC_K8S_CNI_VETHPREFIX"], "eni"),
		"__MTU__":                cmp.Or(env["POD_MTU"], env["AWS_VPC_ENI_MTU"], "9001"),
		"__PODSGENFORCINGMODE__": cmp.Or(env["POD_SECURITY_GROUP_ENFORCING_MODE"], "strict"),
		"__PODSOURCECHECK__":     cmp.Or(env["POD_SOURCE_CHECK"], "strict"),
		"__PLUGINLOGFILE__":      cmp.Or(env["AWS_VPC_K8S_PLUGIN_LOG_FILE"], pluginLog),
		"__PLUGINLOGLEVEL__":     cmp.Or(env["AWS_VPC_K8S_PLUGIN_LOG_LEVEL"], "Debug"),
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
		if kind := plugin["type"]; kind == "egress-cni" || kind == "portmap" && !portmap {
			continue
		}
		kept = append(kept, plugin)
	}
	list["plugins"] = kept
	return json.MarshalIndent(list, "", "  ")
}
