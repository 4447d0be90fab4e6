package checkpointtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
)

// Entry is an allocation as upstream knows it.
type Entry struct {
	NetworkName string           `json:"networkName"`
	ContainerID string           `json:"containerID"`
	IfName      string           `json:"ifName"`
	IPv4        string           `json:"ipv4,omitempty"`
	IPv6        string           `json:"ipv6,omitempty"`
	Timestamp   int64            `json:"allocationTimestamp"`
	Metadata    UpstreamMetadata `json:"metadata"`
}

// UpstreamMetadata says whose allocation it is.
type UpstreamMetadata struct {
	Namespace  string `json:"k8sPodNamespace,omitempty"`
	Pod        string `json:"k8sPodName,omitempty"`
	Interfaces int    `json:"interfacesCount,omitempty"`
}

// ReadAsUpstream reads ipam.json as upstream's daemon does at its start, by the rules that are known of it: no file is
// an empty one; one that is not a single JSON object, has another version, or names an address twice, stops the daemon.
func ReadAsUpstream(path string) (map[netip.Addr]Entry, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var file struct {
		Version     string  `json:"version"`
		Allocations []Entry `json:"allocations"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, err
	}
	if file.Version != "vpc-cni-ipam/1" {
		return nil, fmt.Errorf("version %q", file.Version)
	}
	out := map[netip.Addr]Entry{}
	for _, e := range file.Allocations {
		if (e.IPv4 == "") == (e.IPv6 == "") {
			return nil, fmt.Errorf("not exactly one address: %+v", e)
		}
		ip, err := netip.ParseAddr(e.IPv4 + e.IPv6)
		if err != nil {
			return nil, err
		}
		if _, twice := out[ip]; twice {
			return nil, fmt.Errorf("%s is there twice", ip)
		}
		out[ip] = e
	}
	return out, nil
}
