package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vpccni/pkg/hostlocal"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// Check reports whether the pod's way out is what ADD made. A pod whose previous result has none was made when the plugin
// was not enabled.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	c, err := begin("CHECK", args)
	if err != nil {
		return err
	}
	if err := c.conf.addable(); err != nil {
		return err
	}
	if !c.conf.enabled() {
		return nil
	}
	w, err := c.conf.way()
	if err != nil {
		return err
	}
	hostVeth, ok := c.previousVeth(w.v6)
	if !ok {
		return nil
	}
	if err := c.check(ctx, w, hostVeth); err != nil {
		c.log.Warn("the pod's way out is not what it should be", "err", err)
		return fmt.Errorf("check cmd: %w", err)
	}
	return nil
}

func (c *call) check(ctx context.Context, w way, hostVeth string) error {
	store, err := hostlocal.OpenExisting(ctx, c.conf.IPAM.DataDir, c.conf.Name)
	if err != nil {
		return err
	}
	held, err := store.Held()
	store.Close()
	if err != nil {
		return err
	}
	for _, h := range held {
		if h.Owner.Container != c.args.ContainerID || !w.addrs.Subnet.Contains(h.Addr) {
			continue
		}
		err := podnet.CheckEgress(ctx, podnet.Egress{
			Netns: c.args.Netns, ContainerID: c.args.ContainerID, PodInterface: c.args.IfName,
			Address: h.Addr, Range: w.addrs.Subnet, MTU: w.mtu,
		}, hostVeth)
		return errors.Join(err, podnet.EgressRule(ctx, h.Addr))
	}
	return errors.New("the sandbox has no address")
}

// previousVeth is the host end of the way out in the previous result: it stands before the container's end, in every
// version.
func (c *call) previousVeth(v6 bool) (string, bool) {
	name := names.EgressV4
	if v6 {
		name = names.EgressV6
	}
	for i, iface := range c.conf.prev.Interfaces {
		if i > 0 && iface.Name == name && iface.Sandbox != "" {
			return c.conf.prev.Interfaces[i-1].Name, true
		}
	}
	return "", false
}

// Status is whether the configuration can be worked with. That ipamd is there to do its part is what aws-cni's STATUS says,
// which also knows for how long it may be away.
func (p *Plugin) Status(_ context.Context, args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil || !conf.enabled() {
		return err
	}
	_, err = conf.way()
	return err
}

// GC takes back the addresses of sandboxes that the runtime does not list as living. The runtime must not collect while it
// adds; if it does, a pod that is just being set up loses nothing.
func (p *Plugin) GC(ctx context.Context, args *skel.CmdArgs) error {
	c, err := begin("GC", args)
	if err != nil {
		return err
	}
	// Without a list everything would be garbage.
	const key = "cni.dev/valid-attachments"
	var members map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &members); err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	if _, given := members[key]; !given {
		return types.NewError(types.ErrInvalidNetworkConfig, "gc cmd: "+key+" is missing", "")
	}
	living := map[string]bool{}
	for _, a := range c.conf.ValidAttachments {
		living[a.ContainerID] = true
	}
	var gone []string
	err = c.releaseIf(ctx, func(h hostlocal.Reservation) bool {
		if living[h.Owner.Container] || time.Since(h.Since) <= minAge {
			return false
		}
		gone = append(gone, h.Owner.Container)
		return true
	})
	// Nobody will delete these sandboxes any more, and their namespaces may be there for ever.
	for _, container := range gone {
		err = errors.Join(err, podnet.DeleteEgressVeth(ctx, container))
	}
	if err != nil {
		return fmt.Errorf("gc cmd: %w", err)
	}
	return nil
}
