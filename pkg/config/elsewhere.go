package config

import "slices"

const (
	librarySection section = "Read by libraries"
	helperSection  section = "cni-metrics-helper"
	deadSection    section = "Without effect"
)

// elsewhere is a variable that something reads which is not configured by a Config: a library, another program, or
// nothing any more. It stands in the table so that whoever looks for it finds what became of it.
type elsewhere struct {
	section                               section
	name, kind, def, valid, wrong, effect string
	// dead variables have no effect, and somebody who sets one is told so. Those that platforms set are not dead.
	dead bool
	// hidden ones belong to another pod: they do not appear among this process's values.
	hidden bool
}

// elsewhereVariables are those of the reference that have no field in Config.
var elsewhereVariables = []variable{
	elsewhere{section: librarySection, name: "AWS_ENDPOINT_URL_EC2", kind: "URL", effect: "EC2's API; goes before `AWS_EC2_ENDPOINT`."},
	elsewhere{section: librarySection, name: "AWS_MAX_ATTEMPTS", kind: "integer", def: "3", valid: "1 or more", effect: "HTTP attempts of one call, within its deadline."},
	elsewhere{section: librarySection, name: "AWS_RETRY_MODE", kind: "string", def: "standard", valid: "`standard`, `adaptive`", wrong: "the process does not start", effect: "How the SDK spaces the attempts of one call."},
	elsewhere{section: librarySection, name: "AWS_CA_BUNDLE", kind: "path", wrong: "the process does not start", effect: "Certificates to trust besides the system's."},

	elsewhere{section: helperSection, name: "USE_CLOUDWATCH", kind: "string", valid: "`yes`, `true`, `no`, `false`, in any case", wrong: "it is ignored", effect: "Whether metrics go to CloudWatch. Goes before the flag `--cloudwatch`.", hidden: true},
	elsewhere{section: helperSection, name: "USE_PROMETHEUS", kind: "string", valid: "`yes`, `true`, `no`, `false`, in any case", wrong: "it is ignored", effect: "Whether the cluster's sums are served on `:61681/metrics`.", hidden: true},
	elsewhere{section: helperSection, name: "METRIC_UPDATE_INTERVAL", kind: "integer, seconds", def: "30", wrong: "the process does not start", effect: "Time between two rounds.", hidden: true},
	elsewhere{section: helperSection, name: "AWS_CLUSTER_ID", kind: "string", def: "(a tag of the instance)", effect: "CloudWatch's dimension `CLUSTER_ID`.", hidden: true},

	elsewhere{section: deadSection, name: "AWS_REGION", kind: "string", effect: "ipamd takes the region from the instance; only cni-metrics-helper reads this."},
	elsewhere{section: deadSection, name: "KUBECONFIG", kind: "path", effect: "ipamd asks the API server as its pod's service account.", dead: true},
	elsewhere{section: deadSection, name: "VPC_ID", kind: "string", effect: "The VPC is the instance's. Manifests of the EKS add-on set it."},
	elsewhere{section: deadSection, name: "AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", kind: "boolean", effect: "Deprecated upstream. `rp_filter` is always as the routes need it.", dead: true},
	elsewhere{section: deadSection, name: "ENABLE_NFTABLES", kind: "boolean", effect: "Deprecated upstream. The rules are always nftables.", dead: true},
}

func (e elsewhere) load(_ *Config, getenv func(string) (string, bool)) (Value, error) {
	value := Value{Name: e.name, Value: e.def, Origin: FromDefault}
	if text, set := getenv(e.name); set {
		value.Value, value.Origin = text, FromEnv
		if e.dead {
			value.Note = "has no effect"
		}
	}
	return value, nil
}

func (e elsewhere) describe() row {
	r := row{section: string(e.section), name: e.name, kind: e.kind, def: e.def, valid: e.valid, invalid: e.wrong, effect: e.effect}
	if r.valid == "" {
		r.valid = "any"
	}
	if r.invalid == "" {
		r.invalid = "there is none"
	}
	return r
}

// own tells whether a variable belongs to this process's pod.
func own(v variable) bool {
	e, ok := v.(elsewhere)
	return !ok || !e.hidden
}

// table has every variable, in the order of the documentation.
var table = slices.Concat(daemonVariables, installVariables, elsewhereVariables)
