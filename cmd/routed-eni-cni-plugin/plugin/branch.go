package plugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// Pods on branch ENIs (security groups for pods). An annotation of the pod says which branch ENI it has, so ipamd holds no
// address for it, and prevResult alone says at DEL what it was.

// onBranch puts a pod's interface on the branch ENI of ipamd's answer.
func (c *call) onBranch(iface *podnet.Interface, reply addReply) error {
	b := podnet.Branch{VLAN: int(reply.vlan), Parent: int(reply.trunk)}
	var err error
	if b.MAC, err = net.ParseMAC(reply.branchMAC); err != nil {
		return fmt.Errorf("ipamd's answer has no usable branch ENI: %w", err)
	}
	if b.Gateway, err = netip.ParseAddr(reply.branchRouter); err != nil {
		return fmt.Errorf("ipamd's answer has no usable gateway of the branch ENI: %w", err)
	}
	switch c.conf.enforcingMode() {
	case enforceStrict:
		b.Mode = podnet.BranchStrict
		iface.HostVeth = names.HostVeth(names.StrictVethPrefix, c.pod.namespace(), c.pod.name(), 0)
		iface.RuleTable = 0
	case enforceStandard:
		b.Mode = podnet.BranchStandard
		if iface.RuleTable != 0 {
			iface.RuleTable = names.VLANTable(b.VLAN)
		}
	default:
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("podSGEnforcingMode %q is not known", c.conf.enforcingMode()), "")
	}
	iface.Branch = &b
	return nil
}

// delBranch removes what a pod on a branch ENI has left, without ipamd, which holds nothing for such a pod. The VLAN may
// belong to a newer sandbox of the same pod by now; its link says whose it is, but for one that another version made, which
// stays when the DEL comes without network namespace, a late one.
func (p *Plugin) delBranch(ctx context.Context, c *call, prev *previous) error {
	for _, iface := range prev.interfaces {
		if iface.name != c.args.IfName {
			continue
		}
		remains := c.branchRemains(prev.vlan, iface.addrs())
		remains.Via = iface.hostVeth
		return p.teardownBranch(ctx, c, remains)
	}
	return p.teardownBranch(ctx, c, c.branchRemains(prev.vlan, nil))
}

func (c *call) branchRemains(vlan int, addrs []netip.Addr) podnet.Remains {
	return podnet.Remains{VLAN: vlan, Addresses: addrs, ContainerID: c.args.ContainerID, IfName: c.args.IfName, Late: c.args.Netns == ""}
}

func (p *Plugin) teardownBranch(ctx context.Context, c *call, remains podnet.Remains) error {
	found, err := podnet.TeardownBranch(ctx, remains)
	switch {
	case errors.Is(err, podnet.ErrNewerSandbox):
		c.log.Info("nothing to delete: the branch ENI may serve a newer sandbox", "vlan", remains.VLAN)
		return nil
	case err != nil:
		c.log.Error("the pod's branch ENI is not free", "vlan", remains.VLAN, "err", err)
		return fmt.Errorf("del cmd: failed on tear down pod network: %w", err)
	}
	if found {
		p.deletePolicyIfAny(ctx, c)
	}
	c.log.Info("deleted", "ips", remains.Addresses, "vlan", remains.VLAN)
	return nil
}

// deletePolicyIfAny tells the network policy agent that the pod is gone, where nobody says whether there is an agent.
func (p *Plugin) deletePolicyIfAny(ctx context.Context, c *call) {
	if _, err := os.Stat(npaSocket); err != nil {
		return
	}
	if err := p.deletePolicy(ctx, c); err != nil {
		c.log.Warn("the network policy agent was not told", "err", err)
	}
}

// checkBranch is CHECK for a pod on a branch ENI.
func checkBranch(ctx context.Context, args *skel.CmdArgs, prev *previous) error {
	for _, iface := range prev.interfaces {
		if iface.name != args.IfName {
			continue
		}
		address := iface.address
		if iface.gateway.Is6() && iface.address6.IsValid() { // another plugin has added an IPv4 address
			address = iface.address6
		}
		return podnet.Check(ctx, podnet.Pod{Netns: args.Netns, ContainerID: args.ContainerID, Interfaces: []podnet.Interface{{
			Name: iface.name, HostVeth: iface.hostVeth, Address: address,
			Branch: &podnet.Branch{VLAN: prev.vlan, Gateway: iface.gateway},
		}}})
	}
	return fmt.Errorf("prevResult has no address of %s", args.IfName)
}

// branchPod is a sandbox on a branch ENI as the VLAN link names it.
type branchPod struct {
	vlan  int
	owner podnet.Owner
}

// branchPods reads whom the VLAN links serve; unsure says that one of them does not tell.
func branchPods(ctx context.Context, links []net.Interface) (list []branchPod, unsure bool, err error) {
	for _, link := range links {
		number, ok := strings.CutPrefix(link.Name, names.VLANLinkPrefix)
		if !ok {
			continue
		}
		vlan, err := strconv.Atoi(number)
		if err != nil || vlan < 1 || vlan > names.MaxVLAN {
			unsure = true
			continue
		}
		owner, ok, err := podnet.BranchOwner(ctx, vlan)
		switch {
		case err != nil:
			return nil, false, err
		case !ok:
			unsure = true // or gone by now, which changes nothing
		default:
			list = append(list, branchPod{vlan, owner})
		}
	}
	return list, unsure, nil
}

// sortBranches keeps the names of living pods' veths and returns the pods that are garbage.
func (c *collection) sortBranches(list []branchPod, living map[types.GCAttachment]bool, now time.Time) []branchPod {
	alive := map[podnet.Sandbox]bool{}
	for a := range living {
		alive[podnet.SandboxOf(a.ContainerID, a.IfName)] = true
	}
	var gone []branchPod
	for _, b := range list {
		if alive[b.owner.Sandbox()] || now.Sub(b.owner.Since) < minAge {
			c.keptVeths = append(c.keptVeths, b.owner.HostVeth)
			continue
		}
		gone = append(gone, b)
	}
	return gone
}

// releaseBranches removes VLAN links without a sandbox, and what belongs to them.
func releaseBranches(ctx context.Context, c *call, gone []branchPod) error {
	var failed error
	for _, b := range gone {
		_, err := podnet.TeardownBranch(ctx, podnet.Remains{
			VLAN: b.vlan, Addresses: []netip.Addr{b.owner.Address}, Via: b.owner.HostVeth, ContainerID: b.owner.ContainerID, IfName: b.owner.IfName,
		})
		if err != nil {
			if !errors.Is(err, podnet.ErrNewerSandbox) {
				failed = errors.Join(failed, err)
			}
			continue
		}
		c.log.Info("branch ENI without a sandbox released", "container", b.owner.ContainerID, "vlan", b.vlan)
	}
	return failed
}
