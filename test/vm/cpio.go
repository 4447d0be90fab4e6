package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// archive is an initramfs in the making: files by their path, without a leading slash.
type archive struct {
	files map[string]file
}

type file struct {
	mode uint32 // as in stat, with the type
	data []byte // a symbolic link's target, for one
}

// Types of files, as stat has them.
const (
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeLink    = 0o120000
)

func newArchive() *archive { return &archive{files: map[string]file{}} }

func (a *archive) add(name string, f file) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	a.files[name] = f
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if _, ok := a.files[dir]; !ok {
			a.files[dir] = file{mode: typeDir | 0o755}
		}
	}
}

func (a *archive) dir(name string) { a.add(name, file{mode: typeDir | 0o755}) }
func (a *archive) link(name, target string) {
	a.add(name, file{mode: typeLink | 0o777, data: []byte(target)})
}
func (a *archive) program(name string, b []byte) {
	a.add(name, file{mode: typeRegular | 0o755, data: b})
}

// copy adds a file of this machine under a name of the archive's.
func (a *archive) copy(name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.program(name, data)
	return nil
}

// bytes is the archive in cpio's "newc" format, which the kernel unpacks. It is not compressed: it never leaves memory, and
// the emulated machine would take seconds to unpack it.
func (a *archive) bytes() []byte {
	var names []string
	for name := range a.files {
		names = append(names, name)
	}
	slices.Sort(names) // directories before what is in them
	var b bytes.Buffer
	for i, name := range names {
		entry(&b, i+1, name, a.files[name])
	}
	entry(&b, 0, "TRAILER!!!", file{})
	return b.Bytes()
}

func entry(b *bytes.Buffer, inode int, name string, f file) {
	links := 1
	if f.mode&typeDir != 0 && f.mode&typeRegular == 0 {
		links = 2
	}
	fmt.Fprintf(b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		inode, f.mode, 0, 0, links, 0, len(f.data), 0, 0, 0, 0, len(name)+1, 0)
	b.WriteString(name)
	b.WriteByte(0)
	align(b)
	b.Write(f.data)
	align(b)
}

func align(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
