package config

import "fmt"

// variable is one row of the table, whatever the type of its value.
type variable interface {
	load(*Config, func(string) (string, bool)) (Value, error)
	describe() row
}

// row is what the documentation says of a variable.
type row struct {
	section, name, kind, def, valid, invalid, effect, status string
}

// spec is a variable with a value of type T.
type spec[T any] struct {
	section section
	name    string
	kind    kind[T]
	def     T
	defText string // how the documentation shows def; empty: as kind shows it
	field   func(*Config) *T
	// check returns what is wrong with a value that has the right form.
	check func(T) error
	valid string // what check accepts, in words
	// strict makes a wrong value an error. Otherwise it is replaced by the default, with a note.
	strict bool
	// notEmpty makes an empty value a wrong one. Otherwise it counts as unset.
	notEmpty bool
	// missing returns the reason why this version cannot do what the value asks for; empty if it can.
	missing func(T) string
	// remark returns what this version does otherwise than a value asks for, if it accepts it all the same.
	remark func(T) string
	effect string
	status status
}

// kind is a type of value: its name, unit and values in words, how it is read and shown. A note says what read left
// out.
type kind[T any] struct {
	name   string
	values string
	read   func(string) (value T, note string, err error)
	show   func(T) string
}

// status says who knows a variable.
type status string

const (
	documented   status = ""
	undocumented status = "undocumented upstream"
	ours         status = "new in vpc-cni"
)

func (s spec[T]) load(c *Config, getenv func(string) (string, bool)) (Value, error) {
	field := s.field(c)
	*field = s.def
	value := Value{Name: s.name, Value: s.kind.show(s.def), Origin: FromDefault}
	text, set := getenv(s.name)
	switch {
	case !set:
		return value, nil
	case text == "" && !s.notEmpty:
		value.Note = "set but empty"
		return value, nil
	}
	v, note, err := s.kind.read(text)
	if err == nil && s.check != nil {
		err = s.check(v)
	}
	switch {
	case err != nil && s.strict:
		return value, fmt.Errorf("%s=%q: %w", s.name, text, err)
	case err != nil:
		value.Origin = FromInvalid
		value.Note = fmt.Sprintf("%q: %v", text, err)
		return value, nil
	}
	*field = v
	value = Value{Name: s.name, Value: s.kind.show(v), Origin: FromEnv, Note: note}
	if s.remark != nil && note == "" {
		value.Note = s.remark(v)
	}
	if s.missing != nil {
		if reason := s.missing(v); reason != "" {
			return value, fmt.Errorf("%s=%q: %s", s.name, text, reason)
		}
	}
	return value, nil
}

func (s spec[T]) describe() row {
	r := row{
		section: string(s.section),
		name:    s.name,
		kind:    s.kind.name,
		def:     s.defText,
		valid:   s.valid,
		invalid: "the default takes its place",
		effect:  s.effect,
		status:  string(s.status),
	}
	if r.def == "" {
		r.def = s.kind.show(s.def)
	}
	if r.valid == "" {
		r.valid = s.kind.values
	}
	if s.strict {
		r.invalid = "the process does not start"
	}
	return r
}
