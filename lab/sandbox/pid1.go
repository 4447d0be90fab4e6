package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pid1 is the first process of the sandbox: it lays out the tree, starts the part, and reaps until the part ends.
// Its own end is the end of everything inside.
func pid1(part string) int {
	exe, err := layOut()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 125
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	child, err := os.StartProcess(exe, os.Args, &os.ProcAttr{
		Env:   append(os.Environ(), stageVar+"="+part, filesVar+"="+strconv.Itoa(len(files))),
		Files: append([]*os.File{os.Stdin, os.Stdout, os.Stderr}, files...),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 125
	}
	go func() {
		for sig := range signals {
			_ = child.Signal(sig)
		}
	}()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "sandbox: wait:", err)
			return 125
		case pid == child.Pid && status.Signaled():
			return 128 + int(status.Signal())
		case pid == child.Pid && status.Exited():
			return status.ExitStatus()
		}
	}
}

// layOut makes the private tree and returns the path of this program in it.
func layOut() (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", err
	}
	// The mount that this program was started from is not in the new tree; the same file is.
	path, pathErr := os.Executable()
	dir, dirErr := os.Getwd()
	if err := newRoot(); err != nil {
		return "", err
	}
	if dirErr == nil {
		// Some directories of the machine have no counterpart; "/" does then.
		_ = os.Chdir(dir)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return "", fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return "", fmt.Errorf("loopback up: %w", err)
	}
	if pathErr == nil {
		if there, err := os.Stat(path); err == nil && os.SameFile(self, there) {
			return path, nil
		}
	}
	return "/proc/self/exe", nil
}
