package plugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/onecall"
	"vpccni/pkg/deadline"
	"vpccni/pkg/delnote"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// delPatience is how long a DEL waits for ipamd: long enough for most restarts, short enough for a node that is being
// drained without it. A pod's DEL never fails for ipamd's absence, or no pod could leave such a node.
const delPatience = 5 * time.Second

// unknownPod is the text by which ipamd says, in every version, that the sandbox holds nothing.
const unknownPod = "datastore: unknown pod"

// Del takes back the pod's addresses and its routes on the host.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	c, err := p.begin("DEL", args)
	if err != nil {
		return err
	}
	if prev := c.previous(); prev != nil && prev.vlan != 0 {
		return p.delBranch(ctx, c, prev)
	}
	waiting, cancel := context.WithTimeout(ctx, delPatience)
	defer cancel()
	reply, err := p.del(waiting, c, "PodDeleted")
	switch {
	case err != nil && strings.Contains(err.Error(), unknownPod):
		c.log.Info("nothing to delete: ipamd does not know the sandbox")
		p.teardownPrevious(ctx, c)
		return nil
	case err != nil:
		// Until ipamd has read the note, the address stays allocated.
		since := time.Now()
		c.log.Warn("deleted without ipamd", "err", err)
		p.teardownPrevious(ctx, c)
		if noteErr := leaveNote(ctx, c, since); noteErr != nil && answered(err) {
			// A full disk, mostly. An ipamd that lives will do it soon.
			return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("del cmd: %v; no note for ipamd: %v", err, noteErr), "")
		}
		return nil
	case !reply.success:
		return errors.New("del cmd: failed to process delete request")
	}

	list, err := allocations(reply.addresses)
	if err != nil {
		c.log.Warn("nothing to tear down", "err", err)
	}
	remains := remains(list)
	if reply.vlan != 0 {
		remains = c.branchRemains(int(reply.vlan), remains.Addresses)
		err = podnet.Teardown(ctx, remains)
	} else {
		err = c.teardown(ctx, list)
	}
	switch {
	case errors.Is(err, podnet.ErrNewerSandbox):
		c.log.Info("nothing to delete: the branch ENI may serve a newer sandbox", "vlan", remains.VLAN)
		return nil
	case err != nil:
		c.log.Error("the pod's routes are left", "err", err)
		return fmt.Errorf("del cmd: failed on tear down pod network: %w", err)
	}
	if reply.policyMode != "" {
		if err := p.deletePolicy(ctx, c); err != nil {
			return fmt.Errorf("del cmd: failed to connect to network policy agent: %w", err)
		}
	}
	c.log.Info("deleted", "ips", remains.Addresses)
	return nil
}

// teardown removes the host's routes to addresses that the sandbox held until ipamd's answer, as far as they lead into
// veths of its own: should this process be stopped now, they may be another pod's when it goes on.
func (c *call) teardown(ctx context.Context, list []allocation) error {
	var failed error
	prev := c.previous()
	for _, iface := range c.interfaces(list, false) {
		r := podnet.Remains{Via: iface.HostVeth, ContainerID: c.args.ContainerID, IfName: iface.Name, Netns: c.args.Netns, Held: true}
		for _, p := range addresses(iface.Address, iface.Address6) {
			r.Addresses = append(r.Addresses, p.Addr())
		}
		failed = errors.Join(failed, podnet.Teardown(ctx, r))
		// The prefix of veths' names may have been another one when the pod was set up.
		if was := prev.hostVeth(iface.Address); was != "" && was != r.Via {
			r.Via = was
			failed = errors.Join(failed, podnet.Teardown(ctx, r))
		}
	}
	return failed
}

// hostVeth is the veth by which an address was reached; empty if that is not known.
func (p *previous) hostVeth(addr netip.Prefix) string {
	if p != nil {
		for _, iface := range p.interfaces {
			if iface.address == addr {
				return iface.hostVeth
			}
		}
	}
	return ""
}

// answered tells whether an error is ipamd's own, and not that it was not reached.
func answered(err error) bool {
	code := onecall.CodeOf(err)
	return code != onecall.Unavailable && code != onecall.DeadlineExceeded
}

// leaveNote tells ipamd, for when it is back, since when the pod is gone. Without the note it finds by itself that the
// pod has no interface, so a pod's DEL does not fail for it while ipamd is away.
func leaveNote(ctx context.Context, c *call, since time.Time) error {
	err := deadline.Err(ctx) // after it the runtime may be at the pod's next sandbox
	if err == nil {
		err = delnote.Node.Write(delnote.Note{Key: c.noteKey(), Namespace: c.pod.namespace(), Pod: c.pod.name(), Time: since})
	}
	if err != nil {
		c.log.Warn("no note for ipamd: the address stays allocated for longer", "err", err)
	}
	return err
}

// takeNoteBack makes sure that no note of an earlier DEL says that the sandbox is gone. It fails after the deadline,
// when a note may be of the DEL that followed this very ADD.
func takeNoteBack(ctx context.Context, c *call) error {
	if err := deadline.Err(ctx); err != nil {
		return err
	}
	if err := delnote.Node.Remove(c.noteKey()); err != nil {
		// ipamd does not believe a note that is older than the last ADD.
		c.log.Warn("the note of an earlier DEL is left", "err", err)
	}
	return nil
}

func (c *call) noteKey() delnote.Key {
	return delnote.Key{NetworkName: c.conf.Name, ContainerID: c.args.ContainerID, IfName: c.args.IfName}
}

// teardownPrevious removes the routes that the ADD reported, as far as they still lead to this pod: without ipamd's
// word its addresses may be another pod's by now.
func (p *Plugin) teardownPrevious(ctx context.Context, c *call) {
	prev := c.previous()
	if prev == nil {
		return
	}
	for _, iface := range prev.interfaces {
		remains := podnet.Remains{Addresses: iface.addrs(), Via: iface.hostVeth,
			ContainerID: c.args.ContainerID, IfName: iface.name, Netns: c.args.Netns}
		if err := podnet.Teardown(ctx, remains); err != nil {
			c.log.Warn("routes of the pod are left", "ips", remains.Addresses, "err", err)
		}
	}
}
