package ec2

import "slices"

// described is a kind of thing that a Describe call shows.
type described[T any] struct {
	kind   kind
	from   map[string]*T
	tags   func(*T) map[string]string
	fields fields[*T]
}

// find gives the things with the ids, or all, that pass the filters, sorted by id; state must be held.
func (d described[T]) find(ids []string, filters []filter) ([]*T, error) {
	wanted := slices.Compact(slices.Sorted(slices.Values(ids)))
	var unknown []string
	for _, id := range wanted {
		if err := d.kind.check(id); err != nil {
			return nil, err
		}
		if _, ok := d.from[id]; !ok {
			unknown = append(unknown, id)
		}
	}
	if len(unknown) > 0 {
		return nil, d.kind.notFound(unknown...)
	}
	candidates := d.from
	if len(wanted) > 0 {
		candidates = make(map[string]*T, len(wanted))
		for _, id := range wanted {
			candidates[id] = d.from[id]
		}
	}
	// Sorted is only what passes: with thousands of nodes that is little.
	passed := []string{}
	for id, thing := range candidates {
		ok, err := match(thing, d.tags(thing), filters, d.fields)
		if err != nil {
			return nil, err
		}
		if ok {
			passed = append(passed, id)
		}
	}
	slices.Sort(passed)
	found := make([]*T, 0, len(passed))
	for _, id := range passed {
		found = append(found, d.from[id])
	}
	return found, checkFilters(filters, d.fields)
}

// checkFilters refuses unknown filters also where there is nothing to filter.
func checkFilters[T any](filters []filter, by fields[T]) error {
	for _, f := range filters {
		if _, ok := by[f.name]; !ok {
			if _, ok := tagValues(f.name, nil); !ok {
				return invalidValue("The filter '%s' is invalid", f.name)
			}
		}
	}
	return nil
}
