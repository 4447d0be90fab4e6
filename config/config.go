// Package manifests holds the files that are installed with the CNI, as they are shipped.
package manifests

import _ "embed"

// Conflist is the template of /etc/cni/net.d/10-aws.conflist. Placeholders (__MTU__ …) are replaced as text.
//
//go:embed 10-aws.conflist
var Conflist string
