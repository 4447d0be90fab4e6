package config

import (
	"fmt"
	"strings"
)

const intro = `# Configuration

<!-- Printed from the table in pkg/config. Change it there, then: go test ./pkg/config -update -->

ipamd is configured by environment variables, which it reads once, at its start. Names, defaults and the treatment of
wrong values are those of aws/amazon-vpc-cni-k8s, so a manifest written for it means the same here. A variable that is
set but empty counts as unset, except ` + "`" + `IP_COOLDOWN_PERIOD` + "`" + `, ` + "`" + `AWS_VPC_ENI_MTU` + "`" + ` and ` + "`" + `NETWORK_POLICY_ENFORCING_MODE` + "`" + `, where
that stops the process. All values that stop the process are reported together. The values in force are logged at the
start, each with where it comes from.

Where the pool's targets compete, ` + "`WARM_IP_TARGET` and `MINIMUM_IP_TARGET`" + ` go before the others.

The SDK's own variables (` + "`AWS_ENDPOINT_URL_EC2`, `AWS_EC2_METADATA_SERVICE_ENDPOINT`, `AWS_CA_BUNDLE`, `AWS_MAX_ATTEMPTS`" + `,
proxies, web identity, container credentials) keep their meaning, except that the region is always the instance's.
`

// Markdown returns docs/configuration.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString(intro)
	section := ""
	for _, v := range table {
		r := v.describe()
		if r.section != section {
			section = r.section
			fmt.Fprintf(&b, "\n## %s\n\n| Variable | Type | Default | Values | A wrong value | Effect |\n|---|---|---|---|---|---|\n", section)
		}
		name := "`" + r.name + "`"
		if r.status != "" {
			name += " (" + r.status + ")"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", name, r.kind, code(r.def), r.valid, r.invalid, r.effect)
	}
	return b.String()
}

// code quotes a default. One that is a remark stands in parentheses already.
func code(text string) string {
	switch {
	case text == "":
		return "(empty)"
	case strings.HasPrefix(text, "("):
		return text
	}
	return "`" + text + "`"
}
