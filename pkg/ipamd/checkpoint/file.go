package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// fileVersion is the version string of ipam.json. It has never changed; members were added compatibly.
const fileVersion = "vpc-cni-ipam/1"

// maxFile bounds what is read: 4,000 allocations take about 1 MiB.
const maxFile = 16 << 20

// fileJSON is ipam.json for the reader. The writer is encoder: it runs once per group of ADDs with thousands of
// entries, where reflection would cost more than the write itself.
type fileJSON struct {
	Version     string            `json:"version"`
	Allocations []json.RawMessage `json:"allocations"` // of entryJSON; null in files of old versions without pods
}

type entryJSON struct {
	NetworkName string       `json:"networkName"`
	ContainerID string       `json:"containerID"`
	IfName      string       `json:"ifName"`
	IPv4        string       `json:"ipv4"`
	IPv6        string       `json:"ipv6"`
	Timestamp   int64        `json:"allocationTimestamp"` // Unix time, ns
	Metadata    metadataJSON `json:"metadata"`            // absent before v1.11
}

type metadataJSON struct {
	Namespace  string `json:"k8sPodNamespace"`
	Pod        string `json:"k8sPodName"`
	Interfaces int    `json:"interfacesCount"` // absent before v1.20
}

// ipam.json is one object on one line: head, entries with commas between them, tail.
const (
	fileHead = `{"version":"` + fileVersion + `","allocations":[`
	fileTail = "]}\n"
)

func appendAllocation(b []byte, a *Allocation) []byte {
	b = append(b, `{"networkName":`...)
	b = appendString(b, a.NetworkName)
	b = append(b, `,"containerID":`...)
	b = appendString(b, a.ContainerID)
	b = append(b, `,"ifName":`...)
	b = appendString(b, a.IfName)
	if a.Address.Is4() {
		b = append(b, `,"ipv4":"`...)
	} else {
		b = append(b, `,"ipv6":"`...)
	}
	b = a.Address.AppendTo(b)
	b = append(b, `","allocationTimestamp":`...)
	b = appendNanos(b, a.Time)
	b = append(b, `,"metadata":{`...)
	sep := ""
	if a.Namespace != "" {
		b = append(b, `"k8sPodNamespace":`...)
		b = appendString(b, a.Namespace)
		sep = ","
	}
	if a.Pod != "" {
		b = append(b, sep+`"k8sPodName":`...)
		b = appendString(b, a.Pod)
		sep = ","
	}
	if a.Interfaces != 0 {
		b = append(b, sep+`"interfacesCount":`...)
		b = appendInt(b, int64(a.Interfaces))
	}
	return append(b, "}}"...)
}

// decodeFile reads what any version of the field's CNI since 1.12 wrote. The error means that the file is damaged or of
// a version to come; what is returned beside it could be read all the same. Problems are single entries that were left
// out, and why.
func decodeFile(raw []byte) (allocations []Allocation, problems []string, err error) {
	var f fileJSON
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&f); err != nil {
		f = salvage(raw)
		if f.Version != fileVersion {
			return nil, nil, fmt.Errorf("decode: %w", err)
		}
		allocations, problems = decodeEntries(f.Allocations)
		return allocations, problems, fmt.Errorf("decode: %w", err)
	}
	if f.Version != fileVersion {
		return nil, nil, fmt.Errorf("version %q, want %q", f.Version, fileVersion)
	}
	allocations, problems = decodeEntries(f.Allocations)
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		problems = append(problems, "data behind the end of the state was ignored")
	}
	return allocations, problems, nil
}

// salvage reads as much of a file as makes sense: the entries before the point where it was damaged.
func salvage(raw []byte) (f fileJSON) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return f
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return f
		}
		switch name {
		case "version":
			err = dec.Decode(&f.Version)
		case "allocations":
			f.Allocations, err = salvageList(dec)
		default:
			err = dec.Decode(new(json.RawMessage))
		}
		if err != nil {
			return f
		}
	}
	return f
}

func salvageList(dec *json.Decoder) (out []json.RawMessage, err error) {
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.Join(err, errors.New("no list"))
	}
	for dec.More() {
		var entry json.RawMessage
		if err := dec.Decode(&entry); err != nil {
			return out, err
		}
		out = append(out, entry)
	}
	_, err = dec.Token()
	return out, err
}

func decodeEntries(entries []json.RawMessage) (allocations []Allocation, problems []string) {
	for i, raw := range entries {
		var e entryJSON
		err := json.Unmarshal(raw, &e)
		var a Allocation
		if err == nil {
			a, err = e.allocation()
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("entry %d (container %q) left out: %v", i, e.ContainerID, err))
			continue
		}
		allocations = append(allocations, a)
	}
	allocations, duplicates := dropDuplicates(allocations)
	return allocations, append(problems, duplicates...)
}

func (e entryJSON) allocation() (Allocation, error) {
	text := e.IPv4
	if text == "" {
		text = e.IPv6
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return Allocation{}, err
	}
	if addr.Zone() != "" {
		return Allocation{}, fmt.Errorf("address %q has a zone", text)
	}
	return Allocation{
		NetworkName: e.NetworkName,
		ContainerID: e.ContainerID,
		IfName:      e.IfName,
		Address:     addr.Unmap(),
		Time:        nanos(e.Timestamp),
		Namespace:   e.Metadata.Namespace,
		Pod:         e.Metadata.Pod,
		Interfaces:  max(e.Metadata.Interfaces, 1),
	}, nil
}

// dropDuplicates keeps the newest of the entries that claim one address, and of those that claim one sandbox in one
// address family: the format can hold at most one of each. What remains keeps its order.
func dropDuplicates(in []Allocation) (out []Allocation, problems []string) {
	type sandbox struct {
		network, container, ifName string
		v4                         bool
	}
	byAddress := make(map[netip.Addr]int, len(in))
	bySandbox := make(map[sandbox]int, len(in))
	drop := make(map[int]bool)
	newestFirst := make([]int, len(in))
	for i := range in {
		newestFirst[i] = i
	}
	slices.SortStableFunc(newestFirst, func(i, j int) int { return in[j].Time.Compare(in[i].Time) })
	for _, i := range newestFirst {
		a := in[i]
		key := sandbox{a.NetworkName, a.ContainerID, a.IfName, a.Address.Is4()}
		if kept, ok := byAddress[a.Address]; ok {
			drop[i] = true
			problems = append(problems, fmt.Sprintf("%v is held twice: container %q gives way to %q, which is newer",
				a.Address, a.ContainerID, in[kept].ContainerID))
			continue
		}
		if kept, ok := bySandbox[key]; ok {
			drop[i] = true
			problems = append(problems, fmt.Sprintf("container %q holds two addresses: %v gives way to %v, which is newer",
				a.ContainerID, a.Address, in[kept].Address))
			continue
		}
		byAddress[a.Address], bySandbox[key] = i, i
	}
	for i, a := range in {
		if !drop[i] {
			out = append(out, a)
		}
	}
	return out, problems
}
