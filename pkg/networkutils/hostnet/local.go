package hostnet

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// priorityLocal is where the kernel has the rule for the host's own addresses.
const priorityLocal = 0

// vlanTables is where the route tables of branch ENIs begin (names.VLANTable).
var vlanTables = names.VLANTable(1)

// localHome is the rule for the host's own addresses as the kernel makes it, localBehind the same behind the rules of
// branch ENIs' pods: in strict mode their packets to the node leave by the branch ENI and come back by the node's.
func (f *family) localHome() Rule {
	return Rule{V6: f.v6, Priority: priorityLocal, Table: names.TableLocal}
}
func (f *family) localBehind() Rule {
	return Rule{V6: f.v6, Priority: names.PriorityLocalMoved, Table: names.TableLocal}
}

// routerAnswers keeps the VPC router's neighbour discovery with the host, whose links it is about.
func routerAnswers() Rule {
	return Rule{V6: true, Priority: priorityLocal, Src: netip.PrefixFrom(router6, 128), Protocol: unix.IPPROTO_ICMPV6, Table: names.TableLocal}
}

// strictPod reports whether the rule is one of a pod that was wired in strict mode.
func (r rule) strictPod() bool {
	return r.Priority == names.PriorityVLAN && r.iif != "" && r.Table >= vlanTables
}

// ofLocal reports whether the rule is among those that diffLocal writes.
func (r rule) ofLocal() bool {
	f := r.family()
	return !r.other && (r.Rule == f.localHome() || r.Rule == f.localBehind() || f.v6 && r.Rule == routerAnswers())
}

// localChange is what a family's rules for the host's own addresses need.
type localChange struct {
	add []rule // before any of del goes: a host without such a rule is deaf
	del []rule
	// behind tells that the rule is, or will be, behind those of branch ENIs' pods.
	behind bool
}

// moveAttempts bounds how often the rules are looked at again after they were changed.
const moveAttempts = 3

// moveLocal brings a family's rules for the host's own addresses into order, of which have is a list, and reports
// whether they are behind now. The kernel takes what a request to delete does not say for anything, so one for the rule
// at home may hit the one for the router's answers; therefore it looks again.
func (h *Host) moveLocal(f *family, have []rule, behind bool, written func(what string)) (bool, error) {
	for range moveAttempts {
		move := diffLocal(f, have, behind)
		if len(move.add)+len(move.del) == 0 {
			return move.behind, nil
		}
		for _, r := range move.add {
			if err := r.add(h.rtnl); err != nil {
				return move.behind, fmt.Errorf("add rule %s: %w", r, err)
			}
			written("add rule " + r.String())
		}
		for _, r := range move.del {
			if err := r.delete(h.rtnl); err != nil {
				return move.behind, fmt.Errorf("delete rule %s: %w", r, err)
			}
			written("delete rule " + r.String())
		}
		var err error
		if have, err = listRules(h.handle, f); err != nil {
			return move.behind, err
		}
	}
	return behind, errors.New("the rules for the host's own addresses keep changing")
}

// diffLocal moves the rule for the host's own addresses behind those of branch ENIs' pods, or back. It does not go back
// while there are pods that were wired for it. Where somebody else has put it is left alone, unless it must be behind.
func diffLocal(f *family, have []rule, behind bool) localChange {
	var home, moved, answers []rule
	pods := false
	for _, r := range have {
		switch {
		case r.strictPod():
			pods = true
		case r.other:
		case r.Rule == f.localHome():
			home = append(home, r)
		case r.Rule == f.localBehind():
			moved = append(moved, r)
		case f.v6 && r.Rule == routerAnswers():
			answers = append(answers, r)
		}
	}
	l := localChange{behind: behind || pods && len(moved) > 0}
	if !l.behind {
		if len(moved) == 0 && len(answers) == 0 {
			return l
		}
		if len(home) == 0 && len(moved) > 0 {
			l.add = append(l.add, rule{Rule: f.localHome(), protocol: unix.RTPROT_KERNEL})
		}
		l.del = append(moved, answers...)
		return l
	}
	if len(moved) == 0 {
		l.add = append(l.add, rule{Rule: f.localBehind(), protocol: names.RuleProtocol})
	}
	if f.v6 && len(answers) == 0 {
		l.add = append(l.add, rule{Rule: routerAnswers(), protocol: names.RuleProtocol})
	}
	l.del = home
	return l
}
