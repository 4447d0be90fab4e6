// Package maxpods computes how many pods a node can run: the kubelet's max-pods. It decides only: no I/O, and what an
// instance type can do comes in from outside.
package maxpods

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	// addressesPerPrefix is the size of the /28 that EC2 delegates.
	addressesPerPrefix = 16
	// hostPods is the number of pods of every node that use the host's network and need no address: the CNI's own and
	// kube-proxy.
	hostPods = 2
)

// Node is what bounds the number of addresses that a node has for pods. ENIs and IPv4PerENI are at least 1.
type Node struct {
	ENIs       int // that the default network card takes, the primary one included
	IPv4PerENI int // addresses per ENI, the ENI's own included
	// MaxENI is the CNI's MAX_ENI; 0 means no limit but the instance's.
	MaxENI int
	// CustomNetworking is AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG: pods get no address of the primary ENI.
	CustomNetworking bool
	// Prefixes says that every secondary address of an ENI is a /28 prefix instead.
	Prefixes bool
}

// Pods is the number of pods that the node has addresses for, those on the host's network included. It is at least 2.
func (n Node) Pods() int {
	enis := n.ENIs
	if n.MaxENI > 0 {
		enis = min(enis, n.MaxENI)
	}
	if n.CustomNetworking {
		enis--
	}
	addresses := enis * (n.IPv4PerENI - 1)
	if n.Prefixes {
		addresses *= addressesPerPrefix
	}
	return addresses + hostPods
}

// TakesPrefixes tells whether the CNI of this version ("1.18.0") can use prefixes: from 1.9 on. A leading v and what
// follows the minor number do not matter.
func TakesPrefixes(cniVersion string) (bool, error) {
	parts := strings.SplitN(strings.TrimPrefix(cniVersion, "v"), ".", 3)
	if len(parts) < 2 {
		return false, fmt.Errorf("cni version %q is not of the form 1.18.0", cniVersion)
	}
	major, err1 := strconv.ParseUint(parts[0], 10, 16)
	minor, err2 := strconv.ParseUint(parts[1], 10, 16)
	if err1 != nil || err2 != nil {
		return false, fmt.Errorf("cni version %q is not of the form 1.18.0", cniVersion)
	}
	return major > 1 || major == 1 && minor >= 9, nil
}
