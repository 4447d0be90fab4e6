package plugin

import (
	"encoding/json"
	"fmt"
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
)

// config is the network configuration on stdin: CNI's own keys, and ours.
type config struct {
	types.NetConf
	// VethPrefix starts the names of host veths; nil means the default.
	VethPrefix *string `json:"vethPrefix"`
	// MTU is a decimal number in a string.
	MTU           string `json:"mtu"`
	LogFile       string `json:"pluginLogFile"`
	LogLevel      string `json:"pluginLogLevel"`
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
	if err := version.ParsePrevResult(&conf.NetConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode prevResult: %v", err), "")
	}
	if conf.PrevResult != nil {
		prev, err := current.NewResultFromResult(conf.PrevResult)
		if err != nil {
			return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("convert prevResult: %v", err), "")
		}
		conf.prev = prev
	}
	return &conf, nil
}

func (c *config) prefix() string {
	if c.VethPrefix == nil {
		return "eni"
	}
	return *c.VethPrefix
}

// mtu falls back to the default for whatever is no MTU, as versions before this one do.
func (c *config) mtu() int {
	mtu, err := strconv.Atoi(c.MTU)
	if err != nil || mtu < minMTU || mtu > maxMTU {
		return defaultMTU
	}
	return mtu
}

// multiNIC tells whether the pod asks for an interface on each network card.
func (c *config) multiNIC() bool {
	return c.RuntimeConfig.PodAnnotations["k8s.amazonaws.com/nicConfig"] == "multi-nic-attachment"
}

// podArgs is CNI_ARGS as kubelet's runtimes fill it. The library matches keys with field names.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
}

func (a *podArgs) name() string      { return string(a.K8S_POD_NAME) }
func (a *podArgs) namespace() string { return string(a.K8S_POD_NAMESPACE) }

func parseArgs(args string) (podArgs, error) {
	var pod podArgs
	if err := types.LoadArgs(args, &pod); err != nil {
		return podArgs{}, fmt.Errorf("failed to load k8s config from arg(s): %w", err)
	}
	return pod, nil
}
