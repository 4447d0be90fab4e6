package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/onecall"
	"vpccni/pkg/delnote"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// minAge is the age from which an allocation can be garbage. The runtime must not collect while it adds, but if it does,
// a pod that is just being set up loses nothing.
const minAge = Timeout + 15*time.Second

// maxInterfaces is how many interfaces a pod can have at most: one for each network card.
const maxInterfaces = 8

// GC takes back what the runtime does not list as living: addresses that ipamd holds for other sandboxes of the network,
// and host veths that belong to no allocation, with their routes. What it cannot tell for certain stays: allocations
// whose pod's name is not known, those of other networks, and all veths while one of these could belong to them.
func (p *Plugin) GC(ctx context.Context, args *skel.CmdArgs) error {
	c, err := p.begin("GC", args)
	if err != nil {
		return err
	}
	living, err := livingAttachments(args.StdinData, c.conf.ValidAttachments)
	if err != nil {
		return err
	}
	// The links first: a pod that is wired later may be in neither list, and one that is wired now is in the file.
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("gc cmd: %w", err)
	}
	held, err := readHeld(names.CheckpointFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // ipamd has not run yet, and holds nothing
	case err != nil:
		return fmt.Errorf("gc cmd: %s: %w", names.CheckpointFile, err)
	}
	plan := sortOut(c.conf.Name, held, living, time.Now())
	branches, unsure, err := branchPods(ctx, links)
	if err != nil {
		return fmt.Errorf("gc cmd: %w", err)
	}
	plan.unsure = plan.unsure || unsure
	branches = plan.sortBranches(branches, living, time.Now())
	failed := releaseBranches(ctx, c, branches)
	for _, link := range links {
		if !plan.isGarbage(link.Name, c.conf.prefix()) && !plan.isBranchGarbage(link.Name, branches) {
			continue
		}
		if err := podnet.DeleteVeth(ctx, link.Name, link.Index); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		c.log.Info("link without a sandbox deleted", "link", link.Name)
	}
	if err := errors.Join(failed, p.releaseAll(ctx, c, plan.gone)); err != nil {
		return fmt.Errorf("gc cmd: %w", err)
	}
	return nil
}

// livingAttachments is the runtime's list as a set. Without a list everything would be garbage, so there must be one.
func livingAttachments(stdin []byte, list []types.GCAttachment) (map[types.GCAttachment]bool, error) {
	const key = "cni.dev/valid-attachments"
	var members map[string]json.RawMessage
	if err := json.Unmarshal(stdin, &members); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if _, given := members[key]; !given {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "gc cmd: "+key+" is missing", "")
	}
	living := make(map[types.GCAttachment]bool, len(list))
	for _, a := range list {
		living[a] = true
	}
	return living, nil
}

// holding is an allocation as ipamd's state file has it.
type holding struct {
	NetworkName string `json:"networkName"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
	Timestamp   int64  `json:"allocationTimestamp"` // Unix time, ns
	Metadata    struct {
		Namespace string `json:"k8sPodNamespace"`
		Pod       string `json:"k8sPodName"`
	} `json:"metadata"`
}

func readHeld(path string) ([]holding, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseHeld(text)
}

func parseHeld(text []byte) ([]holding, error) {
	var file struct {
		Version     string    `json:"version"`
		Allocations []holding `json:"allocations"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, err
	}
	if file.Version != "vpc-cni-ipam/1" {
		return nil, fmt.Errorf("version %q is not known", file.Version)
	}
	return file.Allocations, nil
}

// collection is what GC has found out.
type collection struct {
	gone []holding
	// kept are the suffixes of veths that belong to somebody.
	kept map[string]bool
	// keptVeths are those of living pods on branch ENIs.
	keptVeths []string
	// unsure says that a veth may belong to somebody who is not in kept.
	unsure bool
}

// sortOut tells the living from the gone.
func sortOut(network string, held []holding, living map[types.GCAttachment]bool, now time.Time) collection {
	plan := collection{kept: map[string]bool{}}
	for _, h := range held {
		named := h.Metadata.Namespace != "" && h.Metadata.Pod != ""
		alive := living[types.GCAttachment{ContainerID: h.ContainerID, IfName: h.IfName}]
		if named && !alive && h.NetworkName == network && now.Sub(time.Unix(0, h.Timestamp)) >= minAge {
			plan.gone = append(plan.gone, h)
			continue
		}
		plan.unsure = plan.unsure || !named
		for i := range maxInterfaces {
			plan.kept[names.VethSuffix(h.Metadata.Namespace, h.Metadata.Pod, i)] = true
		}
	}
	return plan
}

// isGarbage tells whether a link is a pod's that nobody has. Pods on branch ENIs are in no list of ipamd's; on a node
// with VLAN links that do not say whom they serve, no veth is garbage for certain but those of allocations that are gone.
func (c collection) isGarbage(link, prefix string) bool {
	suffix, ok := strings.CutPrefix(link, prefix)
	if !ok || len(suffix) != 11 || strings.Trim(suffix, "0123456789abcdef") != "" || c.kept[suffix] || slices.Contains(c.keptVeths, link) {
		return false
	}
	if !c.unsure {
		return true
	}
	for _, h := range c.gone {
		for i := range maxInterfaces {
			if names.VethSuffix(h.Metadata.Namespace, h.Metadata.Pod, i) == suffix {
				return true
			}
		}
	}
	return false
}

// isBranchGarbage tells whether a link is that of a pod on a branch ENI that is gone, and nobody else's.
func (c collection) isBranchGarbage(link string, gone []branchPod) bool {
	return !slices.Contains(c.keptVeths, link) && slices.ContainsFunc(gone, func(b branchPod) bool {
		return b.owner.HostVeth == link && !c.kept[link[max(0, len(link)-11):]]
	})
}

// releaseAll has ipamd release what sandboxes that are gone hold. An ipamd that is away finds notes.
func (p *Plugin) releaseAll(ctx context.Context, c *call, gone []holding) error {
	waiting, cancel := context.WithTimeout(ctx, delPatience)
	defer cancel()
	var failed error
	for _, h := range gone {
		since := time.Now()
		reply, err := p.release(waiting, h)
		switch {
		case err != nil && strings.Contains(err.Error(), unknownPod):
			continue
		case err != nil && onecall.CodeOf(err) != onecall.Unavailable && onecall.CodeOf(err) != onecall.DeadlineExceeded:
			failed = errors.Join(failed, fmt.Errorf("container %s: %w", h.ContainerID, err))
			continue
		case err != nil:
			note := delnote.Note{Key: delnote.Key{NetworkName: h.NetworkName, ContainerID: h.ContainerID, IfName: h.IfName},
				Namespace: h.Metadata.Namespace, Pod: h.Metadata.Pod, Time: since}
			failed = errors.Join(failed, delnote.Node.Write(note))
			continue
		}
		c.log.Info("address without a sandbox released", "container", h.ContainerID, "namespace", h.Metadata.Namespace, "pod", h.Metadata.Pod)
		list, err := allocations(reply.addresses)
		if err != nil {
			continue
		}
		failed = errors.Join(failed, podnet.Teardown(ctx, remains(list)))
	}
	return failed
}

func (p *Plugin) release(ctx context.Context, h holding) (delReply, error) {
	request := delRequest{
		pod:              podName{name: h.Metadata.Pod, namespace: h.Metadata.Namespace},
		infraContainerID: h.ContainerID,
		reason:           "PodDeleted",
		ifName:           h.IfName,
		networkName:      h.NetworkName,
		containerID:      h.ContainerID,
	}
	var reply delReply
	err := p.askIPAMD(ctx, "/rpc.CNIBackend/DelNetwork", request.encode(), reply.decode)
	return reply, err
}
