package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

// wanted are the kernel modules that the tests need. The virtual machine has no modprobe: the kernel finds nothing by
// itself, so all of them are loaded before the tests.
var wanted = []string{
	"8021q", "veth", "dummy", "bridge", "macvlan",
	"nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nf_tables", "nfnetlink",
	"nft_ct", "nft_fib", "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nft_nat", "nft_masq", "nft_chain_nat", "nft_counter", "nft_limit",
	"nft_reject", "nft_reject_ipv4", "nft_reject_ipv6", "nft_reject_inet", "nft_hash", "nft_numgen", "nft_objref", "nft_redir",
}

// builtIn are those of them that are part of the kernel itself in some versions.
var builtIn = map[string]bool{"nft_counter": true, "nft_objref": true}

// modules finds the files of the wanted modules below dir, each behind those that it depends on.
func modules(dir string, wanted []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var (
		list []string
		seen = map[string]bool{}
		add  func(string) error
	)
	add = func(name string) error {
		name = moduleName(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, ok := files[name]
		if !ok {
			if builtIn[name] {
				return nil
			}
			return fmt.Errorf("%s has no module %s", dir, name)
		}
		needs, err := dependencies(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		list = append(list, path)
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// moduleName is the name by which modules depend on each other; files may have a dash in it.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// dependencies reads which modules a module says it needs.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range bytes.Split(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
