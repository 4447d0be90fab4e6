package egress

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"vpccni/pkg/hostlocal"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// MTUs, in bytes.
const (
	minMTUv4 = 68   // the kernel refuses less
	minMTUv6 = 1280 // the kernel switches IPv6 off on a link with less
	maxMTU   = 65535
)

// config is the network configuration on stdin: CNI's own keys, and ours.
type config struct {
	types.NetConf
	// Enabled is "true", or the plugin does nothing.
	Enabled string `json:"enabled"`
	// MTU is a decimal number in a string.
	MTU string `json:"mtu"`
	// NodeIP is the node's address in the family of the way out.
	NodeIP string `json:"nodeIP"`
	// RandomizeSNAT is known and not used: source NAT is ipamd's, with its own setting.
	RandomizeSNAT string `json:"randomizeSNAT"`
	IPAM          ipam   `json:"ipam"`
	LogFile       string `json:"pluginLogFile"`
	LogLevel      string `json:"pluginLogLevel"`

	prev    *current.Result
	rawPrev json.RawMessage
}

// ipam is what host-local's configuration can say of one range.
type ipam struct {
	Type    string `json:"type"`
	DataDir string `json:"dataDir"`
	// Ranges are read by those who need them: a DEL is not refused for what it does not.
	Ranges json.RawMessage `json:"ranges"`
}

type ipamRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

func parseConfig(stdin []byte) (*config, error) {
	var conf config
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode the network configuration: %v", err), "")
	}
	if err := conf.parsePrevious(stdin); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, fmt.Sprintf("decode prevResult: %v", err), "")
	}
	return &conf, nil
}

// parsePrevious reads prevResult into prev, and keeps it as it came.
func (c *config) parsePrevious(stdin []byte) (err error) {
	// The library follows entries that are null.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	if err := version.ParsePrevResult(&c.NetConf); err != nil || c.PrevResult == nil {
		return err
	}
	if c.prev, err = current.NewResultFromResult(c.PrevResult); err != nil {
		return err
	}
	if slices.Contains(c.prev.Interfaces, nil) || slices.Contains(c.prev.IPs, nil) {
		return errors.New("an interface or an address is null")
	}
	var members struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	err = json.Unmarshal(stdin, &members)
	c.rawPrev = members.PrevResult
	return err
}

func (c *config) enabled() bool { return c.Enabled == "true" }

// addable says what an ADD cannot work with, also one that has nothing to do.
func (c *config) addable() error {
	if c.prev == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "must be called as a chained plugin", "")
	}
	if _, err := strconv.Atoi(c.MTU); err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("mtu %q: must be a number", c.MTU), "")
	}
	return nil
}

// way is what an enabled plugin works with.
type way struct {
	v6    bool
	mtu   int
	addrs hostlocal.Range
}

// way reads the direction, which is the family of the node's address, and the range of addresses.
func (c *config) way() (way, error) {
	invalid := func(format string, args ...any) (way, error) {
		return way{}, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
	}
	node, err := netip.ParseAddr(c.NodeIP)
	if err != nil {
		return invalid("nodeIP %q: must be an address", c.NodeIP)
	}
	w := way{v6: !node.Unmap().Is4()}
	if w.v6 && (!node.IsGlobalUnicast() || node.Zone() != "") {
		return invalid("nodeIP %q: must be a global unicast address", c.NodeIP)
	}
	w.mtu, _ = strconv.Atoi(c.MTU) // addable has seen it
	if w.mtu < minMTUv4 || w.mtu > maxMTU {
		return invalid("mtu %q: must be from %d to %d", c.MTU, minMTUv4, maxMTU)
	}
	if w.v6 {
		w.mtu = max(w.mtu, minMTUv6)
	}
	if c.IPAM.Type != "host-local" {
		return invalid("ipam type %q: only host-local's configuration is understood", c.IPAM.Type)
	}
	if !c.stateful() {
		return invalid("ipam dataDir and the network's name must be set")
	}
	var ranges [][]ipamRange
	if err := json.Unmarshal(c.IPAM.Ranges, &ranges); err != nil || len(ranges) != 1 || len(ranges[0]) != 1 {
		return invalid("ipam ranges: must be one range, or a pod would not get exactly one address")
	}
	r := ranges[0][0]
	subnet, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return invalid("ipam subnet %q: %v", r.Subnet, err)
	}
	var bounds [3]netip.Addr
	for i, text := range []string{r.RangeStart, r.RangeEnd, r.Gateway} {
		if text == "" {
			continue
		}
		if bounds[i], err = netip.ParseAddr(text); err != nil {
			return invalid("ipam range of %s: %v", subnet, err)
		}
	}
	if w.addrs, err = hostlocal.NewRange(subnet, bounds[0], bounds[1], bounds[2]); err != nil {
		return invalid("ipam: %v", err)
	}
	if subnet.Addr().Is6() != w.v6 {
		return invalid("ipam subnet %s and nodeIP %s are of different families", subnet, node)
	}
	return w, nil
}

// stateful tells whether there is a place where addresses are kept.
func (c *config) stateful() bool {
	return c.IPAM.DataDir != "" && c.Name != ""
}
