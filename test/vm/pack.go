package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"time"

	"vpccni/test/vm/protocol"
)

// programs are what tests start; they are copied from this machine, with the libraries they are linked with.
var programs = []string{"sh", "ip", "nft", "grep", "cut", "sort", "cat", "sed", "awk", "head", "seq"}

// pack writes the file system of the virtual machine.
func pack(ctx context.Context, to, tmp, kernel string, suites []suite, timeout time.Duration) error {
	a := newArchive()
	for _, dir := range []string{"proc", "sys", "dev", "tmp", "run", "var", "etc"} {
		a.dir(dir)
	}
	a.link("var/run", "/run")
	a.program("etc/protocols", []byte("ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\n")) // for ip's words
	var plan protocol.Plan
	files, err := modules(filepath.Join(kernel, "lib", "modules"), wanted)
	if err != nil {
		return err
	}
	for _, from := range files {
		name := path.Join("/modules", filepath.Base(from))
		if err := a.copy(name, from); err != nil {
			return err
		}
		plan.Modules = append(plan.Modules, name)
	}
	for _, p := range programs {
		if err := addProgram(ctx, a, p); err != nil {
			return fmt.Errorf("program %s: %w", p, err)
		}
	}
	if err := build(ctx, a, "init", tmp, "build", "./test/vm/init"); err != nil {
		return err
	}
	for _, s := range suites {
		name := path.Join("suites", s.pkg, "test")
		if err := build(ctx, a, name, tmp, "test", "-c", "./"+s.pkg); err != nil {
			return err
		}
		if err := addTestdata(a, s.pkg); err != nil {
			return err
		}
		args := []string{"-test.v", fmt.Sprintf("-test.timeout=%s", timeout), "-test.run", s.run}
		args = append(args, s.args...)
		plan.Suites = append(plan.Suites, protocol.Suite{
			Name: s.pkg, Binary: "/" + name, Dir: path.Join("/suites", s.pkg), Args: args, Seconds: int(timeout.Seconds()),
		})
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	a.program(protocol.PlanFile, text)
	return os.WriteFile(to, a.bytes(), 0o600)
}

// build adds what a go command makes.
func build(ctx context.Context, a *archive, name, tmp, verb string, args ...string) error {
	out := filepath.Join(tmp, "out")
	command := append([]string{verb, "-o", out, "-trimpath", "-tags", "grpcnotrace,vlan", "-ldflags", "-s -w"}, args...)
	cmd := exec.CommandContext(ctx, "go", command...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, text)
	}
	return a.copy(name, out)
}

func addTestdata(a *archive, pkg string) error {
	root := filepath.Join(pkg, "testdata")
	if _, err := os.Stat(root); err != nil {
		return nil //nolint:nilerr // a package without such files
	}
	return filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return a.copy(path.Join("suites", name), name)
	})
}

// library is a line of ldd that has a path.
var library = regexp.MustCompile(`(?m)(/\S+) \(0x[0-9a-f]+\)$`)

func addProgram(ctx context.Context, a *archive, name string) error {
	from, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	if err := a.copy(path.Join("bin", name), from); err != nil {
		return err
	}
	text, err := exec.CommandContext(ctx, "ldd", from).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ldd: %w: %s", err, text)
	}
	for _, m := range library.FindAllStringSubmatch(string(text), -1) {
		if err := a.copy(m[1], m[1]); err != nil {
			return err
		}
	}
	return nil
}
