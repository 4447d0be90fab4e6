package ec2

import (
	"cmp"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// params reads the parameters of one call. It remembers what was read, so that in the end finish can refuse what
// nobody asked about, and it keeps the first error, so that an action can read all it needs and ask once.
type params struct {
	*form
	path string // "", or "TagSpecification.1."
}

type form struct {
	values map[string]string
	read   map[string]bool
	err    error
}

func newParams(values url.Values) *params {
	f := &form{values: make(map[string]string, len(values)), read: map[string]bool{}}
	for name := range values {
		f.values[name] = values.Get(name)
	}
	return &params{form: f}
}

func (f *form) fail(err *Error) {
	if f.err == nil {
		f.err = err
	}
}

// finish refuses what was not read, for that is what the action does not have, and then gives the first error of
// reading.
func (f *form) finish() error {
	for _, name := range sortedKeys(f.values) {
		if !f.read[name] {
			return errorf("UnknownParameter", "The parameter %s is not recognized", name)
		}
	}
	return f.err
}

// get gives a parameter's value; false if it is not there.
func (p *params) get(name string) (string, bool) {
	v, ok := p.values[p.path+name]
	if ok {
		p.read[p.path+name] = true
	}
	return v, ok
}

// has says whether the parameter, or one within it, is there.
func (p *params) has(name string) bool {
	for k := range p.values {
		if k == p.path+name || strings.HasPrefix(k, p.path+name+".") {
			return true
		}
	}
	return false
}

// text gives a parameter's value, empty if it is not there.
func (p *params) text(name string) string {
	v, _ := p.get(name)
	return v
}

// required gives the value of a parameter that must be there.
func (p *params) required(name string) string {
	v := p.text(name)
	if v == "" {
		p.fail(missing(p.path + name))
	}
	return v
}

// id gives a parameter that must be there and must be an id of the kind.
func (p *params) id(name string, k kind) string {
	v := p.required(name)
	if err := k.check(v); err != nil {
		p.fail(err)
	}
	return v
}

// integer gives a number in [low, high], or 0 if it is not there.
func (p *params) integer(name string, low, high int) int {
	v, ok := p.get(name)
	if !ok {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		p.fail(invalidValue("Value (%s) for parameter %s is invalid. Expecting an integer from %d to %d.", v, lowerFirst(name), low, high))
		return 0
	}
	return n
}

// boolean gives a flag; false if it is not there.
func (p *params) boolean(name string) bool {
	v, ok := p.get(name)
	if !ok {
		return false
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		p.fail(invalidValue("Invalid value '%s' for boolean parameter %s", v, lowerFirst(name)))
	}
	return b
}

// list gives the values of Name.1, Name.2 and so on, in the order of their numbers.
func (p *params) list(name string) []string {
	var values []string
	for _, sub := range p.groups(name) {
		if v, ok := p.get(strings.TrimSuffix(strings.TrimPrefix(sub.path, p.path), ".")); ok {
			values = append(values, v)
		}
	}
	return values
}

// group gives what is within a parameter: Name.X, Name.Y.
func (p *params) group(name string) *params {
	return &params{p.form, p.path + name + "."}
}

// groups gives what is within Name.1, Name.2 and so on, in the order of their numbers.
func (p *params) groups(name string) []*params {
	prefix := p.path + name + "."
	numbers := map[int]string{}
	for k := range p.values {
		rest, ok := strings.CutPrefix(k, prefix)
		if !ok {
			continue
		}
		first, _, _ := strings.Cut(rest, ".")
		if n, err := strconv.Atoi(first); err == nil && n >= 0 {
			numbers[n] = first
		}
	}
	var subs []*params
	for _, n := range sortedKeys(numbers) {
		subs = append(subs, &params{p.form, prefix + numbers[n] + "."})
	}
	return subs
}

// addr parses an address of the family; the zero Addr if the text is empty.
func (p *params) addr(name, v string, is family) netip.Addr {
	if v == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(v)
	if err != nil || !is(a) {
		p.fail(invalidValue("invalid value for parameter address: %s", v))
	}
	return a
}

// addrs gives the addresses of Name.1, Name.2 and so on.
func (p *params) addrs(name string, is family) []netip.Addr {
	var addrs []netip.Addr
	for _, v := range p.list(name) {
		addrs = append(addrs, p.addr(name, v, is))
	}
	return addrs
}

// prefix parses a prefix of the family.
func (p *params) prefix(v string, is family) netip.Prefix {
	at, err := netip.ParsePrefix(v)
	if err != nil || !is(at.Addr()) {
		p.fail(invalidValue("invalid value for parameter prefix: %s", v))
	}
	return at
}

// prefixes gives the prefixes of Name.1, Name.2 and so on.
func (p *params) prefixes(name string, is family) []netip.Prefix {
	var all []netip.Prefix
	for _, v := range p.list(name) {
		all = append(all, p.prefix(v, is))
	}
	return all
}

// small gives the parameters for the request log: none of them long, and not too many.
func (f *form) small() map[string]string {
	const most, longest = 64, 256
	names := slices.DeleteFunc(sortedKeys(f.values), func(n string) bool { return n == "Action" || n == "Version" })
	m := make(map[string]string, min(len(names), most))
	for _, name := range names[:min(len(names), most)] {
		v := f.values[name]
		m[name] = v[:min(len(v), longest)]
	}
	return m
}

// named gives the value under the first of the names that is there.
func (f *form) named(names ...string) string {
	vs := make([]string, 0, len(names))
	for _, n := range names {
		vs = append(vs, f.values[n])
	}
	return cmp.Or(vs...)
}
