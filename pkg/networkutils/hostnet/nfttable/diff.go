package nfttable

import "slices"

// Change is a transaction that leads from one state of a table to another. Its parts are written in the order of the
// fields, so that nothing is deleted that is still referred to and nothing referred to that is not there yet.
type Change struct {
	Family Family
	Name   string

	AddTable       bool
	FlushChains    []string
	DeleteElements []Set
	DeleteSets     []string
	DeleteChains   []string
	AddSets        []Set // without elements
	AddChains      []Chain
	AddRules       []Chain // the chains whose rules are (re)written
	AddElements    []Set
}

// Writes counts the objects that the change creates, deletes or rewrites.
func (c *Change) Writes() int {
	n := len(c.DeleteSets) + len(c.DeleteChains) + len(c.AddSets) + len(c.AddChains) + len(c.FlushChains)
	if c.AddTable {
		n++
	}
	for _, s := range c.DeleteElements {
		n += len(s.Elements)
	}
	for _, s := range c.AddElements {
		n += len(s.Elements)
	}
	for _, ch := range c.AddRules {
		n += len(ch.Rules)
	}
	return n
}

// Diff returns the smallest change from have (nil when there is no such table) to want: elements where elements
// differ, and a chain's rules, all of them, where the chain's rules differ. When an object that stays has another
// definition, which no older version of this project leaves behind, everything is refilled.
func Diff(have, want *Table) (*Change, error) {
	if have == nil {
		return create(want), nil
	}
	for _, s := range want.Sets {
		if h := have.set(s.Name); h != nil && !h.sameKind(&s) {
			return Refill(have, want), nil
		}
	}
	for _, c := range want.Chains {
		if h := have.chain(c.Name); h != nil && !sameBase(h.Base, c.Base) {
			return Refill(have, want), nil
		}
	}

	change := &Change{Family: want.Family, Name: want.Name}
	for _, c := range want.Chains {
		h := have.chain(c.Name)
		if h == nil {
			change.addChain(c)
			continue
		}
		same, err := sameRules(want.Family, h.Rules, c.Rules)
		if err != nil {
			return nil, err
		}
		if !same {
			change.FlushChains = append(change.FlushChains, c.Name)
			change.AddRules = append(change.AddRules, c)
		}
	}
	for _, s := range want.Sets {
		h := have.set(s.Name)
		if h == nil {
			change.addSet(s)
			continue
		}
		change.elements(s, h.Elements, s.Elements)
	}
	change.deleteUnwanted(have, want)
	return change, nil
}

// Refill returns the change that empties every chain and set and writes them again, under the same names and in one
// transaction. Only objects whose definition differs are deleted in it.
func Refill(have, want *Table) *Change {
	change := &Change{Family: want.Family, Name: want.Name}
	for _, c := range want.Chains {
		switch h := have.chain(c.Name); {
		case h == nil:
			change.addChain(c)
		case !sameBase(h.Base, c.Base):
			change.FlushChains = append(change.FlushChains, c.Name)
			change.DeleteChains = append(change.DeleteChains, c.Name)
			change.addChain(c)
		default:
			change.FlushChains = append(change.FlushChains, c.Name)
			change.AddRules = append(change.AddRules, c)
		}
	}
	for _, s := range want.Sets {
		switch h := have.set(s.Name); {
		case h == nil:
			change.addSet(s)
		case !h.sameKind(&s):
			change.DeleteSets = append(change.DeleteSets, s.Name)
			change.addSet(s)
		default:
			change.replace(s, h.Elements, s.Elements)
		}
	}
	change.deleteUnwanted(have, want)
	return change
}

func create(want *Table) *Change {
	change := &Change{Family: want.Family, Name: want.Name, AddTable: true}
	for _, c := range want.Chains {
		change.addChain(c)
	}
	for _, s := range want.Sets {
		change.addSet(s)
	}
	return change
}

func (c *Change) addChain(ch Chain) {
	c.AddChains = append(c.AddChains, Chain{Name: ch.Name, Base: ch.Base})
	if len(ch.Rules) > 0 {
		c.AddRules = append(c.AddRules, ch)
	}
}

func (c *Change) addSet(s Set) {
	empty := s
	empty.Elements = nil
	c.AddSets = append(c.AddSets, empty)
	if len(s.Elements) > 0 {
		c.AddElements = append(c.AddElements, s)
	}
}

// elements adds the difference between two lists of elements, both ordered by key.
func (c *Change) elements(kind Set, have, want []Element) {
	old := make(map[Element]bool, len(have))
	for _, e := range have {
		old[e] = true
	}
	var add []Element
	for _, e := range want {
		if old[e] {
			delete(old, e)
			continue
		}
		add = append(add, e)
	}
	var del []Element
	for _, e := range have {
		if old[e] {
			del = append(del, e)
		}
	}
	c.replace(kind, del, add)
}

func (c *Change) replace(kind Set, del, add []Element) {
	if len(del) > 0 {
		s := kind
		s.Elements = del
		c.DeleteElements = append(c.DeleteElements, s)
	}
	if len(add) > 0 {
		s := kind
		s.Elements = add
		c.AddElements = append(c.AddElements, s)
	}
}

func (c *Change) deleteUnwanted(have, want *Table) {
	for _, h := range have.Chains {
		if want.chain(h.Name) == nil {
			// A chain can only be deleted without rules, and its own rules may refer to the next one to go.
			c.FlushChains = append(c.FlushChains, h.Name)
			c.DeleteChains = append(c.DeleteChains, h.Name)
		}
	}
	for _, h := range have.Sets {
		if want.set(h.Name) == nil {
			c.DeleteSets = append(c.DeleteSets, h.Name)
		}
	}
	slices.Sort(c.FlushChains)
}
