package config

import (
	"fmt"
	"strings"
)

const introText = `# Configuration

<!-- Printed from the table in pkg/config. Change it there, then: go test ./pkg/config -update -->

Everything is configured by environment variables, which are read once, at the start. Names, defaults and the treatment of
wrong values are those of aws/amazon-vpc-cni-k8s, so a manifest written for it means the same here.

- A boolean is one of ~1 t T TRUE true True 0 f F FALSE false False~ and nothing else: ~yes~ and ~on~ are wrong values.
- A variable that is set but empty counts as unset, except ~IP_COOLDOWN_PERIOD~, ~AWS_VPC_ENI_MTU~, ~POD_MTU~ and
  ~NETWORK_POLICY_ENFORCING_MODE~, where that stops the process.
- All values that stop the process are reported together, each with its variable, and so are combinations that exclude each other.
- The values in force are logged at the start and shown at ~/v1/config~, each with where it comes from (~default~, ~env~,
  ~invalid→default~, ~computed~), and with a note where it does not do what it seems to: a wrong value, one that another variable
  overrules, a mark that belongs to kube-proxy, Cilium or Calico, a pod MTU above that of the ENIs.
- Where the pool's targets compete, ~WARM_IP_TARGET~ and ~MINIMUM_IP_TARGET~ go before the others.

Different from upstream, on purpose: wrong targets are noted, not passed over in silence; an empty ~INTROSPECTION_BIND_ADDRESS~ is
its default, not a random port on all interfaces; ~AWS_EC2_ENDPOINT~ is where EC2 is called; the targets that prefix delegation needs
are compared as numbers, so ~00~ is 0.

The entrypoint and cni-metrics-helper come with the container images; ipamd checks the entrypoint's variables with its own.

The SDK's other variables (proxies, web identity, container credentials, ~AWS_EC2_METADATA_SERVICE_ENDPOINT~) keep their meaning.
`

// intro is introText with its quotes, which a Go literal cannot hold.
var intro = strings.ReplaceAll(introText, "~", "`")

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
