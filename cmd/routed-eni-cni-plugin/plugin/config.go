package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// MTU of pods, in bytes.
const (
	defaultMTU = 9001 // jumbo frames, as between instances of a VPC
	minMTU     = 576
	maxMTU     = 9001
	minMTUv6   = 1280 // the kernel switches IPv6 off on a link with less
)

// multiNICValue is the value of the annotation multiNICKey by which a pod asks for an interface on each network card.
const (
	multiNICKey   = "k8s.amazonaws.com/nicConfig"
	multiNICValue = "multi-nic-attachment"
)

// sourceCheckKey is the annotation by which a pod, where the node's configuration leaves it the choice, is not held to
// its own source address.
const sourceCheckKey = "vpc.amazonaws.com/source-check"

// config is the network configuration on stdin: CNI's own keys, and ours.
type config struct {
	types.NetConf
	// VethPrefix starts the names of host veths; nil means the default.
	VethPrefix *string `json:"vethPrefix"`
	// MTU is a decimal number in a string.
	MTU string `json:"mtu"`
	// EnforcingMode is how security groups of pods on branch ENIs are enforced; nil means strict.
	EnforcingMode *string `json:"podSGEnforcingMode"`
	// SourceCheck says whether pods are held to their own source addresses; nil means always.
	SourceCheck   *string `json:"podSourceCheck"`
	LogFile       string  `json:"pluginLogFile"`
	LogLevel      string  `json:"pluginLogLevel"`
	RuntimeConfig struct {
		PodAnnotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`

	prev *current.Result
}

func parseConfig(stdin []byte) (*config, error) {
	var conf config
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode the network configuration: %v", err), "")
	}
	if p := conf.prefix(); len(p) < 1 || len(p) > 4 || strings.ContainsAny(p, "/: \t\n") {
		return nil, types.NewError(types.ErrInvalidNetworkConfig,
			fmt.Sprintf("vethPrefix %q: must be 1 to 4 characters that a link's name may have", p), "")
	}
	if err := conf.parsePrevious(); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode prevResult: %v", err), "")
	}
	return &conf, nil
}

// parsePrevious reads prevResult into prev.
func (c *config) parsePrevious() (err error) {
	// The library follows entries that are null.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	if err := version.ParsePrevResult(&c.NetConf); err != nil || c.PrevResult == nil {
		return err
	}
	prev, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return err
	}
	if slices.Contains(prev.Interfaces, nil) || slices.Contains(prev.IPs, nil) {
		return errors.New("an interface or an address is null")
	}
	c.prev = prev
	return nil
}

func (c *config) prefix() string {
	if c.VethPrefix == nil {
		return "eni"
	}
	return *c.VethPrefix
}

// mtu falls back to the default for whatever is no MTU, as versions before this one do.
func (c *config) mtu(v6 bool) int {
	mtu, err := strconv.Atoi(c.MTU)
	switch {
	case err != nil || mtu < minMTU || mtu > maxMTU:
		return defaultMTU
	case v6 && mtu < minMTUv6:
		return minMTUv6
	default:
		return mtu
	}
}

// wirable says what of the configuration a pod cannot be wired by. A pod that was wired by an earlier one can still go.
func (c *config) wirable() error {
	for _, v := range []struct {
		key   string
		value *string
		known []string
	}{
		{"podSGEnforcingMode", c.EnforcingMode, []string{"", enforceStrict, enforceStandard}},
		{"podSourceCheck", c.SourceCheck, []string{"", "strict", "pod", "off"}},
	} {
		if v.value != nil && !slices.Contains(v.known, *v.value) {
			return types.NewError(types.ErrInvalidNetworkConfig,
				fmt.Sprintf("%s %q: must be one of %s", v.key, *v.value, strings.Join(v.known[1:], ", ")), "")
		}
	}
	return nil
}

// How security groups of pods on branch ENIs are enforced.
const (
	enforceStrict   = "strict"
	enforceStandard = "standard"
)

func (c *config) enforcingMode() string {
	if c.EnforcingMode == nil || *c.EnforcingMode == "" {
		return enforceStrict
	}
	return *c.EnforcingMode
}

// multiNIC tells whether the pod asks for an interface on each network card.
func (c *config) multiNIC() bool { return c.RuntimeConfig.PodAnnotations[multiNICKey] == multiNICValue }

// sourceCheck tells whether what the pod sends must come from its own address.
func (c *config) sourceCheck() bool {
	switch {
	case c.SourceCheck == nil || *c.SourceCheck == "" || *c.SourceCheck == "strict":
		return true
	case *c.SourceCheck == "pod":
		return c.RuntimeConfig.PodAnnotations[sourceCheckKey] != "off"
	default:
		return false
	}
}

// podArgs is what the plugin reads of CNI_ARGS as kubelet's runtimes fill it.
type podArgs struct{ podName, podNamespace, infraContainerID, podUID string }

func (a *podArgs) name() string      { return a.podName }
func (a *podArgs) namespace() string { return a.podNamespace }

// parseArgs reads "K=V;K2=V2;...". Errors name keys and never values, which may be anything.
func parseArgs(args string) (podArgs, error) {
	var pod podArgs
	if args == "" {
		return pod, nil
	}
	var unknown []string
	ignoreUnknown := false
	for pair := range strings.SplitSeq(args, ";") {
		key, value, found := strings.Cut(pair, "=")
		if !found || strings.Contains(value, "=") {
			return podArgs{}, fmt.Errorf("%s: %q is not followed by one value", badArgs, key)
		}
		switch key {
		case "K8S_POD_NAME":
			pod.podName = value
		case "K8S_POD_NAMESPACE":
			pod.podNamespace = value
		case "K8S_POD_INFRA_CONTAINER_ID":
			pod.infraContainerID = value
		case "K8S_POD_UID":
			pod.podUID = value
		case "IgnoreUnknown":
			switch strings.ToLower(value) {
			case "1", "true":
				ignoreUnknown = true
			case "0", "false":
				ignoreUnknown = false
			default:
				return podArgs{}, fmt.Errorf("%s: IgnoreUnknown is neither true nor false", badArgs)
			}
		default:
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 && !ignoreUnknown {
		return podArgs{}, fmt.Errorf("%s: unknown keys %q", badArgs, unknown)
	}
	return pod, nil
}

const badArgs = "failed to load k8s config from arg(s)"
