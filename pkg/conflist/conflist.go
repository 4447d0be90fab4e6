// Package conflist keeps the node's CNI network list beside what others put into it: Istio, Cilium and the like chain
// their plugins behind ours by adding entries to our file. What they added stays when ours is written anew.
package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// own are the types of entries that a list of ours may have. One that is not in the list today, because its setting is
// off, goes; all other types are somebody else's.
var own = []string{"aws-cni", "egress-cni", "portmap", "bandwidth", "tuning"}

// list is a network list as far as it has to be understood: everything else is kept as it is written.
type list struct {
	name    string
	members []member
	plugins []json.RawMessage
}

// member is one key of an object, in the order of the file.
type member struct {
	key   string
	value json.RawMessage
}

// Merge returns our list with the entries of others that the present one has behind it, in their order and as they are.
// What is no list of the same network, or none at all, has nothing to keep. The result of equal inputs is equal, and a list
// that was merged already is not changed by merging it again.
func Merge(ours, present []byte) ([]byte, error) {
	merged, err := parse(ours)
	if err != nil {
		return nil, fmt.Errorf("our network list: %w", err)
	}
	if there, err := parse(present); err == nil && there.name == merged.name {
		for _, p := range there.plugins {
			if !slices.Contains(own, typeOf(p)) {
				merged.plugins = append(merged.plugins, p)
			}
		}
	}
	return merged.encode()
}

// Install writes our list to a file, merged with what is there. A file that has everything already is not touched, for
// runtimes load what was written again; another one is replaced by its successor as a whole.
func Install(path string, ours []byte) error {
	for range installTries {
		present, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		merged, err := Merge(ours, present)
		if err != nil {
			return err
		}
		if bytes.Equal(merged, present) {
			return nil
		}
		done, err := replace(path, present, merged)
		if done || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: somebody else keeps changing it", path)
}

// installTries is how often a file is read again that others write meanwhile.
const installTries = 5

// replace puts text in the place of a file, unless its content is no longer the one given. The new file's name does not end
// as those do that runtimes load.
func replace(path string, present, text []byte) (done bool, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	file, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.tmp")
	if err != nil {
		return false, err
	}
	defer func() {
		if !done {
			_ = os.Remove(file.Name())
		}
	}()
	_, err = file.Write(text)
	if err = errors.Join(err, file.Chmod(0o644), file.Sync(), file.Close()); err != nil {
		return false, err
	}
	now, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if !bytes.Equal(now, present) {
		return false, nil
	}
	return true, os.Rename(file.Name(), path)
}

func parse(text []byte) (list, error) {
	var l list
	var err error
	if l.members, err = membersOf(text); err != nil {
		return l, err
	}
	for _, m := range l.members {
		switch m.key {
		case "name":
			err = json.Unmarshal(m.value, &l.name)
		case "plugins":
			err = json.Unmarshal(m.value, &l.plugins)
		}
		if err != nil {
			return l, fmt.Errorf("%s: %w", m.key, err)
		}
	}
	if l.name == "" || len(l.plugins) == 0 {
		return l, errors.New("no name or no plugins")
	}
	return l, nil
}

// membersOf reads an object in the order in which it is written.
func membersOf(text []byte) ([]member, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(errors.New("no JSON object"), err)
	}
	var list []member
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		list = append(list, member{key.(string), value})
	}
	_, err := d.Token()
	return list, err
}

// typeOf is the type of an entry; empty if it has none, which no plugin of ours has.
func typeOf(plugin json.RawMessage) string {
	var p struct{ Type string }
	_ = json.Unmarshal(plugin, &p)
	return p.Type
}

func (l list) encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range l.members {
		if i > 0 {
			b.WriteByte(',')
		}
		if m.key == "plugins" {
			m.value = append(append([]byte("["), bytes.Join(raw(l.plugins), []byte(","))...), ']')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	var out bytes.Buffer
	if err := json.Indent(&out, b.Bytes(), "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

func raw(list []json.RawMessage) [][]byte {
	var out [][]byte
	for _, r := range list {
		out = append(out, r)
	}
	return out
}
