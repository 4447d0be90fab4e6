package ec2

import (
	"slices"
	"strconv"
	"strings"
)

// filter is one filter of a Describe call: the thing must have one of the values under the name.
type filter struct {
	name   string
	values []string
}

// fields are what a kind of thing can be filtered by.
type fields[T any] map[string]func(T) []string

// filters reads Filter.1.Name, Filter.1.Value.1 and so on.
func (p *params) filters() []filter {
	var all []filter
	for _, g := range p.groups("Filter") {
		all = append(all, filter{g.required("Name"), g.list("Value")})
	}
	return all
}

// match says whether the thing passes all filters; a filter that its kind does not have is an error.
func match[T any](thing T, tags map[string]string, filters []filter, by fields[T]) (bool, error) {
	for _, f := range filters {
		have, ok := tagValues(f.name, tags)
		if !ok {
			get, ok := by[f.name]
			if !ok {
				return false, invalidValue("The filter '%s' is invalid", f.name)
			}
			have = get(thing)
		}
		hit := slices.ContainsFunc(have, func(v string) bool {
			return slices.ContainsFunc(f.values, func(pattern string) bool { return wildcard(pattern, v) })
		})
		if !hit {
			return false, nil
		}
	}
	return true, nil
}

// tagValues gives what the filters that all taggable things have are about; false if it is none of them.
func tagValues(name string, tags map[string]string) ([]string, bool) {
	if key, ok := strings.CutPrefix(name, "tag:"); ok {
		if v, has := tags[key]; has {
			return []string{v}, true
		}
		return nil, true
	}
	if name == "tag-key" {
		return sortedKeys(tags), true
	}
	return nil, false
}

// wildcard matches as EC2 does: * is any text, ? any character, and a backslash takes their meaning away.
func wildcard(pattern, s string) bool {
	for len(pattern) > 0 {
		switch c := pattern[0]; {
		case c == '*':
			rest := strings.TrimLeft(pattern, "*")
			for i := range len(s) + 1 {
				if wildcard(rest, s[i:]) {
					return true
				}
			}
			return false
		case s == "":
			return false
		case c == '?':
			pattern, s = pattern[1:], s[1:]
			continue
		case c == '\\' && len(pattern) > 1:
			pattern = pattern[1:]
		}
		if pattern[0] != s[0] {
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
	return s == ""
}

// one is a field with a single value.
func one[T any](get func(T) string) func(T) []string {
	return func(t T) []string { return []string{get(t)} }
}

func texts[T interface{ String() string }](list []T) []string {
	all := make([]string, 0, len(list))
	for _, v := range list {
		all = append(all, v.String())
	}
	return all
}

func boolText(b bool) string { return strconv.FormatBool(b) }

func decimal(n int) string { return strconv.Itoa(n) }
