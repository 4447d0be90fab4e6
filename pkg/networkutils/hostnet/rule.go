package hostnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// rule is an ip rule of the kernel.
type rule struct {
	Rule
	protocol uint8 // who wrote it: unix.RTPROT_*
	iif      string
	// other is set if the rule matches on anything that Rule has no field for, or does not look up a table.
	other bool
}

// ours reports whether a rule that is not wanted may be deleted. What carries our protocol at one of our priorities is
// ours. The predecessor wrote its rules without a protocol; those that would contradict ours, by saying otherwise about
// a table that we keep, about the mark or about the external services, are ours to remove as well.
func (r rule) ours(tables map[int]bool) bool {
	if r.other || r.Protocol != 0 {
		return false
	}
	if r.protocol == names.RuleProtocol {
		switch r.Priority {
		case names.PriorityPods, names.PriorityUnassigned, names.PriorityPrimaryMark, names.PriorityExternalService,
			names.PriorityENI, names.PriorityENIAddress:
			return true
		}
		return false
	}
	if r.protocol != unix.RTPROT_UNSPEC && r.protocol != unix.RTPROT_BOOT {
		return false
	}
	switch r.Priority {
	case names.PriorityPrimaryMark:
		return !r.Src.IsValid() && !r.Dst.IsValid() && r.Mark != 0 && r.Mark == r.Mask && r.Table == names.TableMain
	case names.PriorityExternalService:
		return !r.Src.IsValid() && r.Dst.IsValid() && r.Mask == 0 && r.Table == names.TableMain
	case names.PriorityENIAddress:
		return r.Src.IsValid() && r.Src.IsSingleIP() && !r.Dst.IsValid() && r.Mask == 0 && tables[r.Table]
	}
	return false
}

// diffRules returns the rules to add and to delete. A rule that says what a wanted one says is adopted whoever wrote
// it: the kernel takes no second one like it.
func diffRules(have []rule, want []Rule) (add, del []rule) {
	wanted := make(map[Rule]bool, len(want))
	tables := make(map[int]bool)
	for _, w := range want {
		wanted[w] = true
		if isENITable(w.Table) {
			tables[w.Table] = true
		}
	}
	for _, h := range have {
		switch {
		case h.Table == names.TableLocal: // see diffLocal
		case !h.other && wanted[h.Rule]:
			wanted[h.Rule] = false
		case h.ours(tables):
			del = append(del, h)
		}
	}
	for _, w := range want {
		if wanted[w] {
			add = append(add, rule{Rule: w, protocol: names.RuleProtocol})
		}
	}
	return add, del
}

// listRules dumps the family's rules.
func listRules(h *netlink.Handle, f *family) ([]rule, error) {
	list, err := dump(func() ([]netlink.Rule, error) { return h.RuleList(f.number) })
	if err != nil && !absent(err) {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	rules := make([]rule, 0, len(list))
	for _, r := range list {
		rules = append(rules, ruleOf(r))
	}
	return rules, nil
}

func ruleOf(r netlink.Rule) rule {
	out := rule{
		Rule: Rule{
			V6: r.Family == netlink.FAMILY_V6, Priority: r.Priority, Src: prefixOf(r.Src), Dst: prefixOf(r.Dst), Mark: r.Mark,
			Protocol: r.IPProto, Table: r.Table,
		},
		protocol: r.Protocol,
		iif:      r.IifName,
		other: r.Invert || r.IifName != "" || r.OifName != "" || r.Sport != nil || r.Dport != nil ||
			r.Tos != 0 || r.TunID != 0 || r.UIDRange != nil || r.Goto >= 0 || r.Flow > 0 ||
			r.SuppressPrefixlen >= 0 || r.SuppressIfgroup >= 0 || r.Table == 0,
	}
	if r.Mask != nil {
		out.Mask = *r.Mask
	}
	return out
}

// add adds the rule; that it exists since it was looked for is no error.
func (r rule) add(c *rtnl) error {
	if err := r.send(c, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func (r rule) delete(c *rtnl) error {
	if err := r.send(c, unix.RTM_DELRULE, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// send makes a request about the rule. The library's own call writes the packet's protocol in four bytes where the
// kernel expects one, and complains in its log.
func (r rule) send(c *rtnl, typ, flags int) error {
	req := c.request(typ, flags|unix.NLM_F_ACK)
	msg := nl.NewRtMsg()
	msg.Family = uint8(r.family().number)
	msg.Table, msg.Protocol, msg.Scope, msg.Type = unix.RT_TABLE_UNSPEC, unix.RTPROT_UNSPEC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	req.AddData(msg)
	attr := func(typ int, value []byte) { req.AddData(nl.NewRtAttr(typ, value)) }
	attr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(r.Priority)))
	attr(nl.FRA_TABLE, nl.Uint32Attr(uint32(r.Table)))
	if r.Src.IsValid() {
		msg.Src_len = uint8(r.Src.Bits())
		attr(nl.FRA_SRC, r.Src.Addr().AsSlice())
	}
	if r.Dst.IsValid() {
		msg.Dst_len = uint8(r.Dst.Bits())
		attr(nl.FRA_DST, r.Dst.Addr().AsSlice())
	}
	if r.Mask != 0 {
		attr(nl.FRA_FWMARK, nl.Uint32Attr(r.Mark))
		attr(nl.FRA_FWMASK, nl.Uint32Attr(r.Mask))
	}
	if r.Protocol != 0 {
		attr(nl.FRA_IP_PROTO, nl.Uint8Attr(uint8(r.Protocol)))
	}
	if r.protocol != unix.RTPROT_UNSPEC {
		attr(nl.FRA_PROTOCOL, nl.Uint8Attr(r.protocol))
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
