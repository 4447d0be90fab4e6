package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vpccni/pkg/deadline"
	"vpccni/pkg/delnote"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
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
		leaveNote(ctx, c, since)
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
	}
	switch err := podnet.Teardown(ctx, remains); {
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

// leaveNote tells ipamd, for when it is back, since when the pod is gone. Without the note it finds at its next start
// that the pod has no interface, so a pod's DEL does not fail for it either.
func leaveNote(ctx context.Context, c *call, since time.Time) {
	err := deadline.Err(ctx) // after it the runtime may be at the pod's next sandbox
	if err == nil {
		err = delnote.Node.Write(delnote.Note{Key: c.noteKey(), Namespace: c.pod.namespace(), Pod: c.pod.name(), Time: since})
	}
	if err != nil {
		c.log.Warn("no note for ipamd: the address stays allocated for longer", "err", err)
	}
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
		remains := podnet.Remains{Addresses: iface.addrs(), Via: iface.hostVeth}
		if err := podnet.Teardown(ctx, remains); err != nil {
			c.log.Warn("routes of the pod are left", "ips", remains.Addresses, "err", err)
		}
	}
}
