package podnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"vpccni/pkg/networkutils/names"

	"golang.org/x/sys/unix"
)

// Remains is what a pod leaves on the host when it goes. Its veth is not part of it: that goes with the pod's network
// namespace, asynchronously, while deleting it costs the caller RCU grace periods.
type Remains struct {
	Addresses []netip.Addr
	// Via, if set, is the host veth that the routes must point to. It is for callers that are not sure that the
	// addresses still belong to this pod: a route to another pod's veth then stays, and so do the rules.
	Via string
	// VLAN is the number of a branch ENI's VLAN, 0 for other pods. Its link on the trunk ENI is deleted, and with it
	// the routes that lead there; rules go by its table.
	VLAN int
	// ContainerID and IfName say which sandbox it was. A VLAN link that serves another one stays, with all that belongs to
	// it: Teardown then returns ErrNewerSandbox. A veth that is another one's, of the same pod, is not Via.
	ContainerID, IfName string
	// Netns is the path of the sandbox's network namespace, if there is still one.
	Netns string
	// Held says that the addresses were this sandbox's until now: rules of theirs go whether or not there are routes.
	Held bool
	// Late says that the sandbox may have gone long ago: a VLAN link that does not say whom it serves stays then as well,
	// and so do routes of the addresses.
	Late bool
}

// maxRules bounds how many rules of one kind a pod can have: versions long ago made one for each range of the VPC.
const maxRules = 64

// Teardown removes the host's routes to the pod, and the rules of its own that it has with per-pod layout, or from a
// version before this one. What is gone already is fine, and so is a missing namespace.
func Teardown(ctx context.Context, remains Remains) error {
	if remains.VLAN != 0 {
		_, err := TeardownBranch(ctx, remains)
		return err
	}
	host, err := dialer{}.open()
	if err != nil {
		return err
	}
	defer host.close()
	if remains.Via != "" {
		return teardownVia(ctx, host, remains)
	}
	var messages, rules []message
	for _, addr := range remains.Addresses {
		messages = append(messages, deleteHostRoutes(addr, 0)...)
		rules = append(rules, deleteRuleTo(addr), deleteRuleFrom(addr))
	}
	if len(messages) == 0 {
		return nil
	}
	replies, err := host.send(ctx, append(messages, rules...))
	if err != nil {
		return err
	}
	var failed error
	for _, r := range replies[:len(messages)] {
		failed = errors.Join(failed, r.err)
	}
	return errors.Join(failed, deleteRules(ctx, host, rules, replies[len(messages):]))
}

// DeleteVeth deletes a host veth and with it its other end and its routes. It is for sandboxes that nobody will delete any
// more: elsewhere the veth is left to go with its network namespace. A link that is no veth, or has another index by now,
// is an error; one that is gone is not.
func DeleteVeth(ctx context.Context, name string, index int) error {
	host, err := dialer{}.open()
	if err != nil {
		return err
	}
	defer host.close()
	answer, err := host.ask(ctx, getLink(name))
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	if veth, err := parseVeth(answer); err != nil || int(veth.host) != index || kindOf(answer) != "veth" {
		return fmt.Errorf("link %s is not the veth with number %d", name, index)
	}
	return host.all(ctx, []message{deleteLinkByIndex(int32(index))})
}

// kindOf reads the kind of a link from the answer to getLink.
func kindOf(payload []byte) string {
	for typ, value := range attributes(payload[unix.SizeofIfInfomsg:]) {
		if typ != unix.IFLA_LINKINFO {
			continue
		}
		for typ, value := range attributes(value) {
			if typ == unix.IFLA_INFO_KIND {
				return strings.TrimRight(string(value), "\x00")
			}
		}
	}
	return ""
}

// deleteRules repeats each deletion that found a rule until it finds none.
func deleteRules(ctx context.Context, host *conn, rules []message, replies []reply) error {
	for range maxRules {
		var again []message
		for i, r := range replies {
			switch {
			case r.err == nil:
				again = append(again, rules[i])
			case errors.Is(r.err, unix.ENOENT), errors.Is(r.err, unix.ESRCH), errors.Is(r.err, unix.EAFNOSUPPORT):
			default:
				return r.err
			}
		}
		if len(again) == 0 {
			return nil
		}
		var err error
		if replies, err = host.send(ctx, again); err != nil {
			return err
		}
		rules = again
	}
	return fmt.Errorf("more than %d rules: %s", maxRules, rules[0].what)
}

// teardownVia removes the routes that lead into a veth, and the rules of the addresses whose routes did, or which were the
// sandbox's until now.
func teardownVia(ctx context.Context, host *conn, remains Remains) error {
	first := []message{getLink(remains.Via)}
	if remains.Held {
		first = append(first, deleteRulesOf(remains.Addresses...)...)
	}
	replies, err := host.send(ctx, first)
	if err != nil {
		return err
	}
	if err := deleteRules(ctx, host, first[1:], replies[1:]); err != nil {
		return err
	}
	switch err := replies[0].err; {
	case errors.Is(err, unix.ENODEV):
		return nil // the kernel took the routes with the link
	case err != nil:
		return err
	}
	veth, err := parseVeth(replies[0].payload)
	if err != nil {
		return err
	}
	if !remains.own(ctx, veth, replies[0].payload) {
		return nil // and here with the link that had this name
	}
	var rules []message
	for _, addr := range remains.Addresses {
		found, err := deleteRoutesOf(ctx, host, addr, veth.host) // it tells whose the address is
		if err != nil {
			return err
		}
		if found && !remains.Held {
			rules = append(rules, deleteRulesOf(addr)...)
		}
	}
	if len(rules) == 0 {
		return nil
	}
	if replies, err = host.send(ctx, rules); err != nil {
		return err
	}
	return deleteRules(ctx, host, rules, replies)
}

func deleteRulesOf(addrs ...netip.Addr) []message {
	var rules []message
	for _, addr := range addrs {
		rules = append(rules, deleteRuleTo(addr), deleteRuleFrom(addr))
	}
	return rules
}

// own tells whether a veth is the sandbox's, and not that of the next one of the same pod: by the address that Setup gave
// it or, since versions before this one left that to the kernel, by its other end.
func (r Remains) own(ctx context.Context, veth vethIndexes, link []byte) bool {
	if r.ContainerID == "" {
		return true
	}
	mine := names.VethMAC(r.ContainerID, r.IfName, names.HostEnd)
	for typ, value := range attributes(link[unix.SizeofIfInfomsg:]) {
		if typ == unix.IFLA_ADDRESS && bytes.Equal(value, mine[:]) {
			return true
		}
	}
	netns, err := os.Open(r.Netns)
	if err != nil {
		return false // its veth went with it
	}
	defer netns.Close()
	inPod, err := dialer{}.openIn(ctx, int(netns.Fd()), nil)
	if err != nil {
		return false
	}
	defer inPod.close()
	answer, err := inPod.ask(ctx, getLink(r.IfName))
	if err != nil {
		return false
	}
	end, err := parseVeth(answer)
	return err == nil && end.host == veth.pod && end.pod == veth.host
}

// families are those of the addresses, or both if there is none to tell.
func families(addrs []netip.Addr) []uint8 {
	var v4, v6 bool
	for _, a := range addrs {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	switch {
	case v4 == v6:
		return []uint8{unix.AF_INET, unix.AF_INET6}
	case v4:
		return []uint8{unix.AF_INET}
	default:
		return []uint8{unix.AF_INET6}
	}
}

// deleteRuleLookup deletes a rule of a priority that looks into a table, whatever it matches.
func deleteRuleLookup(family uint8, table int, priority uint32) message {
	m := newMessage(fmt.Sprintf("delete rule %d lookup %d", priority, table), unix.RTM_DELRULE, 0)
	m.data = append(m.data, family, 0, 0, 0, tableByte(table), 0, 0, unix.FR_ACT_TO_TBL)
	m.data = order.AppendUint32(m.data, 0)
	m.u32(unix.FRA_PRIORITY, priority)
	m.u32(unix.FRA_TABLE, uint32(table))
	return m
}

// deleteRuleTo deletes the rule by which versions before this one, and this one with rules per pod, look for a pod's
// route in main.
func deleteRuleTo(addr netip.Addr) message {
	m := newMessage(fmt.Sprintf("delete rule to %s", addr), unix.RTM_DELRULE, 0)
	m.data = append(m.data, family(addr), uint8(addr.BitLen()), 0, 0, unix.RT_TABLE_MAIN, 0, 0, unix.FR_ACT_TO_TBL)
	m.data = order.AppendUint32(m.data, 0)
	m.bytes(unix.FRA_DST, addr.AsSlice())
	m.u32(unix.FRA_PRIORITY, names.PriorityToPod)
	m.u32(unix.FRA_TABLE, names.TableMain)
	return m
}

// deleteRuleFrom deletes a rule by which the same versions send a pod's packets to its ENI's table.
func deleteRuleFrom(addr netip.Addr) message {
	m := newMessage(fmt.Sprintf("delete rule from %s", addr), unix.RTM_DELRULE, 0)
	m.data = append(m.data, family(addr), 0, uint8(addr.BitLen()), 0, unix.RT_TABLE_UNSPEC, 0, 0, unix.FR_ACT_TO_TBL)
	m.data = order.AppendUint32(m.data, 0)
	m.bytes(unix.FRA_SRC, addr.AsSlice())
	m.u32(unix.FRA_PRIORITY, names.PriorityFromPod)
	return m
}
