package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"vpccni/pkg/networkutils/names"

	"golang.org/x/sys/unix"
)

// ErrNewerSandbox says that a branch ENI's VLAN serves another sandbox than the one that is to be torn down.
var ErrNewerSandbox = errors.New("the branch ENI serves a newer sandbox")

// TeardownBranch is Teardown for a pod on a branch ENI, in whichever mode it was wired: the configured one may have changed
// since. It tells whether the VLAN link was there, and the sandbox's. The VLAN's table is the branch ENI's alone, so all
// rules that lead there go.
func TeardownBranch(ctx context.Context, remains Remains) (found bool, err error) {
	if remains.VLAN < 1 || remains.VLAN > names.MaxVLAN {
		return false, fmt.Errorf("%d is no number of a VLAN", remains.VLAN)
	}
	host, err := dialer{}.open()
	if err != nil {
		return false, err
	}
	defer host.close()
	var messages []message
	replies, err := host.send(ctx, []message{getLink(names.VLANLink(remains.VLAN))})
	switch {
	case err != nil:
		return false, err
	case errors.Is(replies[0].err, unix.ENODEV): // rules stay when a link goes
	case replies[0].err != nil:
		return false, replies[0].err
	default:
		link := parseEther(replies[0].payload)
		if found = remains.owns(link); !found {
			return false, ErrNewerSandbox
		}
		messages = append(messages, deleteLinkByIndex(link.index))
	}
	table := names.VLANTable(remains.VLAN)
	for _, addr := range remains.Addresses {
		messages = append(messages, deleteRoute(route{dst: single(addr), table: table}))
	}
	if err := host.all(ctx, messages); err != nil {
		return found, err
	}
	var rules []message
	for _, f := range families(remains.Addresses) {
		rules = append(rules, deleteRuleLookup(f, table, names.PriorityVLAN), deleteRuleLookup(f, table, names.PriorityFromPod))
	}
	if replies, err = host.send(ctx, rules); err != nil {
		return found, err
	}
	wasOurs := remains.Via == "" && !remains.Late
	for i, r := range replies {
		wasOurs = wasOurs || i%2 == 1 && r.err == nil // a rule from the pod's address to this very table
	}
	if err := deleteRules(ctx, host, rules, replies); err != nil {
		return found, err
	}
	return found, teardownBranchHost(ctx, host, remains, wasOurs)
}

// owns tells whether a VLAN link may go with the sandbox.
func (r Remains) owns(link ether) bool {
	owner, ok := parseOwner(link.alias)
	if !ok {
		return !r.Late
	}
	return r.ContainerID == "" || owner.Is(r.ContainerID, r.IfName)
}

// teardownBranchHost removes what a pod in standard mode has beyond its VLAN. By now the address can be another pod's:
// routes of it go if they lead to this one's veth, and the rule that leads to it if something else has shown whose it is.
func teardownBranchHost(ctx context.Context, host *conn, remains Remains, wasOurs bool) error {
	var veth int32
	if remains.Via != "" {
		replies, err := host.send(ctx, []message{getLink(remains.Via)})
		if err != nil {
			return err
		}
		if veth, err = linkIndex(replies[0]); err != nil && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	for _, addr := range remains.Addresses {
		own := wasOurs
		if !remains.Late && (remains.Via == "" || veth != 0) {
			gone, err := deleteRoutesOf(ctx, host, addr, veth)
			if err != nil {
				return err
			}
			own = own || gone
		}
		if !own {
			continue
		}
		to := []message{deleteRuleTo(addr)}
		replies, err := host.send(ctx, to)
		if err != nil {
			return err
		}
		if err := deleteRules(ctx, host, to, replies); err != nil {
			return err
		}
	}
	return nil
}

// deleteRoutesOf deletes the host's routes of an address that lead to a link, 0 for any, and tells whether there were any.
func deleteRoutesOf(ctx context.Context, host *conn, addr netip.Addr, link int32) (found bool, err error) {
	routes := deleteHostRoutes(addr, link)
	for i := range routes {
		routes[i].ignore = nil
	}
	replies, err := host.send(ctx, routes)
	if err != nil {
		return false, err
	}
	for _, r := range replies {
		switch {
		case r.err == nil:
			found = true
		case errors.Is(r.err, unix.ESRCH), errors.Is(r.err, unix.ENOENT):
		default:
			return found, r.err
		}
	}
	return found, nil
}
