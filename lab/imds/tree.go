package imds

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// tree is an instance's metadata: the values by path, without the version before it and without slashes around it.
// Directories are there by what they hold. A tree is never changed once it is made.
type tree map[string]string

// read returns a value, or the listing of a directory.
func (t tree) read(name string) (string, bool) {
	if name == rootPath {
		return "latest", true
	}
	if v, ok := t[name]; ok {
		return v, true
	}
	entries := t.list(name)
	return strings.Join(entries, "\n"), len(entries) > 0
}

// list returns the names in a directory, those of directories with a slash. The top alone has none.
func (t tree) list(dir string) []string {
	prefix, slash := dir+"/", "/"
	if dir == "" {
		prefix, slash = "", ""
	}
	entries := map[string]bool{}
	for name := range t {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		entry, _, isDir := strings.Cut(rest, "/")
		if isDir {
			entry += slash
		}
		entries[entry] = true
	}
	return slices.Sorted(maps.Keys(entries))
}

// without returns the tree less what a glob covers.
func (t tree) without(glob string) tree {
	rest := tree{}
	for name, v := range t {
		if !covers(glob, name) {
			rest[name] = v
		}
	}
	return rest
}

// covers tells whether a glob matches a path or a directory above it. An empty glob covers everything.
func covers(glob, name string) bool {
	if glob == "" {
		return true
	}
	for ; name != "." && name != rootPath; name = path.Dir(name) {
		if ok, err := path.Match(glob, name); err == nil && ok {
			return true
		}
	}
	return false
}
