package hostnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
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

func (r Rule) toNetlink(protocol uint8) *netlink.Rule {
	out := netlink.NewRule()
	out.Family = r.family().number
	out.Priority = r.Priority
	out.Src, out.Dst = ipNet(r.Src), ipNet(r.Dst)
	out.Table = r.Table
	out.IPProto = r.Protocol
	out.Protocol = protocol
	if r.Mask != 0 {
		mask := r.Mask
		out.Mark, out.Mask = r.Mark, &mask
	}
	return out
}

// addRule adds the rule; that it exists since it was looked for is no error.
func addRule(h *netlink.Handle, r rule) error {
	if err := h.RuleAdd(r.toNetlink(r.protocol)); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func deleteRule(h *netlink.Handle, r rule) error {
	if err := h.RuleDel(r.toNetlink(r.protocol)); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
