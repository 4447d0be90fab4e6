// Command init is the first process of the virtual machine that test/vm boots: it loads the kernel's modules, runs the
// test binaries one after the other, says on the console what came of each, and ends the machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/test/vm/protocol"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init is for the virtual machine of test/vm")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Printf("%s%v\n", protocol.Broken, err)
	}
	unix.Sync()
	// Without ACPI there is no power to switch off: qemu ends at a reboot.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	for _, m := range []struct{ fstype, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
	} {
		if err := errors.Join(os.MkdirAll(m.dir, 0o755), unix.Mount(m.fstype, m.dir, m.fstype, 0, "")); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	defer func() { _ = os.WriteFile("/proc/sys/kernel/printk", []byte("7"), 0) }()
	text, err := os.ReadFile(protocol.PlanFile)
	if err != nil {
		return err
	}
	var plan protocol.Plan
	if err := json.Unmarshal(text, &plan); err != nil {
		return err
	}
	for _, m := range plan.Modules {
		if err := load(m); err != nil {
			return fmt.Errorf("load %s: %w", m, err)
		}
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	fmt.Printf("%s%s\n", protocol.Booted, unix.ByteSliceToString(uts.Release[:]))
	// From here on the console is the tests', but for what a kernel says at its end.
	if err := os.WriteFile("/proc/sys/kernel/printk", []byte("3"), 0); err != nil {
		return err
	}
	for _, s := range plan.Suites {
		fmt.Printf("%s%s\n", protocol.Begin, s.Name)
		err := test(s)
		fmt.Printf("\n%s%s %v\n", protocol.End, s.Name, err)
	}
	fmt.Println(protocol.Done)
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func test(s protocol.Suite) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.Seconds)*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Binary, s.Args...)
	cmd.Dir = s.Dir
	cmd.Env = []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
	return cmd.Run()
}
