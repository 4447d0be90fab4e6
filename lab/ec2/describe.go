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
	if len(wanted) == 0 {
		wanted = sortedKeys(d.from)
	}
	found := make([]*T, 0, len(wanted))
	for _, id := range wanted {
		ok, err := match(d.from[id], d.tags(d.from[id]), filters, d.fields)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, d.from[id])
		}
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
