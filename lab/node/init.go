package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/lab/sandbox"
)

const (
	setupVar = "VPCLAB_NODE"
	// ready is the first process's answer when the node is up; any other answer is the reason why it is not.
	ready = "ready"
)

// persistent are the paths that survive a reboot; they live on the node's disk, a directory of the sandbox.
var persistent = []string{"/etc/cni", "/opt/cni", "/var/lib/cni", "/var/log"}

// fresh are made anew at each boot.
var fresh = []struct{ path, mode string }{
	{"/run", "mode=0755"},
	{"/tmp", "mode=1777"},
	{"/dev/shm", "mode=1777"},
}

// initMain is the node's first process: it sets the node up, says so, and reaps what loses its parent until it is
// killed.
func initMain() int {
	answer := os.NewFile(3, "answer")
	unix.CloseOnExec(3)
	// Before any child can be lost.
	lost := make(chan os.Signal, 1)
	signal.Notify(lost, unix.SIGCHLD)
	// A terminal's or an operator's signals are not for this process.
	signal.Ignore(unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGTERM)
	if err := setUp(); err != nil {
		_, _ = answer.WriteString(err.Error())
		return 1
	}
	_, _ = answer.WriteString(ready)
	_ = answer.Close()
	for range lost {
		reap()
	}
	return 0
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}

func setUp() error {
	var opts Options
	if err := json.Unmarshal([]byte(os.Getenv(setupVar)), &opts); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	if err := mountTree(opts); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(opts.Name)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return setSysctls(opts)
}

func setSysctls(opts Options) error {
	values := map[string]string{
		"net/ipv4/ip_forward":              "1",
		"net/ipv4/conf/all/rp_filter":      "0",
		"net/ipv4/conf/default/rp_filter":  strconv.Itoa(opts.RPFilter),
		"net/ipv4/conf/all/src_valid_mark": "0",
	}
	maps.Copy(values, opts.Sysctls)
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(values[key]), 0); err != nil {
			return fmt.Errorf("sysctl: %w", err)
		}
	}
	return nil
}

func mountTree(opts Options) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// The node's disk lies below /run, which gets covered: what is needed from there is picked up first.
	type tree struct {
		fd   int
		path string
	}
	var trees []tree
	pick := func(from, path string) error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("bind %s: %w", from, err)
		}
		trees = append(trees, tree{fd, path})
		return nil
	}
	for _, path := range persistent {
		if err := pick(filepath.Join(opts.Disk, path), path); err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(opts.Binds)) {
		if err := pick(opts.Binds[path], path); err != nil {
			return err
		}
	}
	for _, file := range []struct{ name, text string }{
		{"/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n" + opts.Hosts},
		{"/etc/hostname", opts.Name + "\n"},
		{"/etc/resolv.conf", opts.Resolv},
	} {
		path := filepath.Join(opts.Disk, filepath.Base(file.name))
		if err := os.WriteFile(path, []byte(file.text), 0o644); err != nil {
			return err
		}
		if err := pick(path, file.name); err != nil {
			return err
		}
	}
	if err := mountKernel(); err != nil {
		return err
	}
	for _, dir := range fresh {
		if err := unix.Mount("tmpfs", dir.path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, dir.mode); err != nil {
			return fmt.Errorf("mount %s: %w", dir.path, err)
		}
	}
	for _, t := range trees {
		if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount %s: %w", t.path, err)
		}
		_ = unix.Close(t.fd)
	}
	for _, dir := range []string{"/run/netns", "/run/lock", "/run/aws-node"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// As on a host that systemd has started: a container's mounts can come from here.
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// mountKernel mounts what shows the node's own processes and interfaces.
func mountKernel() error {
	cgroups, err := unix.OpenTree(unix.AT_FDCWD, "/sys/fs/cgroup",
		unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		// The sandbox's sysfs shows none, and no program here needs them.
		cgroups = -1
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	if cgroups >= 0 {
		defer func() { _ = unix.Close(cgroups) }()
		// They are the machine's: what is made there would stay behind.
		if err := sandbox.ReadOnly(cgroups, ""); err != nil {
			return err
		}
		if err := unix.MoveMount(cgroups, "", unix.AT_FDCWD, "/sys/fs/cgroup", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return protectSysctls()
}

// protectSysctls leaves only the network's settings writable: those are the node's own, the others the machine's.
func protectSysctls() error {
	const net = "/proc/sys/net"
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /proc/sys: %w", err)
	}
	if err := unix.Mount(net, net, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", net, err)
	}
	const readOnly = unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("", "/proc/sys", "", readOnly, ""); err != nil {
		return fmt.Errorf("protect /proc/sys: %w", err)
	}
	return nil
}
