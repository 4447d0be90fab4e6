package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stage is where the new root is put together; any directory that every machine has would do.
const stage = "/tmp"

// rebuilt are directories that the lab adds entries to. A mount point cannot be made in the machine's own (it would
// stay behind, and an ordinary user may not), so the sandbox has directories of its own there, whose entries are
// links to the machine's.
var rebuilt = []string{"/etc", "/opt", "/var", "/var/lib"}

// private are empty directories with the given mode.
var private = []struct {
	path string
	mode os.FileMode
}{
	{"/run", 0o755},
	{"/run/lock", 0o777 | os.ModeSticky},
	{"/run/netns", 0o755},
	{StateDir, 0o755},
	{"/etc/cni/net.d", 0o755},
	{"/opt/cni/bin", 0o755},
	{"/opt/vpclab/bin", 0o755},
	{"/opt/vpclab/share", 0o755},
	{"/var/lib/cni", 0o755},
	{"/var/log", 0o755},
	{"/var/tmp", 0o777 | os.ModeSticky},
}

// newRoot makes a private tree the root of this mount namespace: the machine's top-level directories are there, and
// /proc, /sys, /run, /var/log and the like belong to the sandbox.
func newRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	plan, err := readTop("/")
	if err != nil {
		return err
	}
	if err := unix.Mount("vpclab", stage, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a private tree: %w", err)
	}
	for _, entry := range plan {
		if err := entry.put(filepath.Join(stage, entry.name)); err != nil {
			return err
		}
	}
	if err := ReadOnly(unix.AT_FDCWD, filepath.Join(stage, HostDir)); err != nil {
		return err
	}
	if err := makeDirs(stage); err != nil {
		return err
	}
	if err := mountOwn(stage); err != nil {
		return err
	}
	return pivot(stage)
}

// top is an entry of the machine's root directory.
type top struct {
	name string
	link string // target of a symbolic link
	tree int    // detached copy of a directory's mounts, -1 for none
}

func readTop(root string) ([]top, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	plan := []top{}
	for _, e := range entries {
		path := filepath.Join(root, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return nil, err
			}
			plan = append(plan, top{name: e.Name(), link: target, tree: -1})
		case e.IsDir() && !ours(path):
			tree, err := cloneTree(path)
			if err != nil {
				return nil, fmt.Errorf("copy the mounts of %s: %w", path, err)
			}
			plan = append(plan, top{name: e.Name(), tree: tree})
		}
	}
	host, err := cloneTree(root)
	if err != nil {
		return nil, fmt.Errorf("copy the machine's mounts: %w", err)
	}
	return append(plan, top{name: HostDir, tree: host}), nil
}

func ours(path string) bool {
	return path == "/proc" || path == "/run" || path == HostDir || slices.Contains(rebuilt, path)
}

func cloneTree(path string) (int, error) {
	return unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
}

func (e top) put(path string) error {
	if e.tree < 0 {
		return os.Symlink(e.link, path)
	}
	defer func() { _ = unix.Close(e.tree) }()
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(e.tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", e.name, err)
	}
	return nil
}

// ReadOnly protects a tree of mounts, at a path or with "" of a descriptor, from programs that are root in the sandbox
// because they are root outside. The kernel's call is younger (5.12) than the rest, and what it protects from is
// carelessness: older kernels do without.
func ReadOnly(dir int, path string) error {
	err := unix.MountSetattr(dir, path, unix.AT_RECURSIVE|unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

func makeDirs(root string) error {
	for _, dir := range rebuilt {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range private {
		path := filepath.Join(root, dir.path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		// The umask does not apply to chmod.
		if err := os.Chmod(path, dir.mode); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "/var/run")); err != nil {
		return err
	}
	for path, text := range map[string]string{
		"/etc/hosts":       "127.0.0.1 localhost\n::1 localhost\n",
		"/etc/hostname":    "vpclab\n",
		"/etc/resolv.conf": "",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, dir := range rebuilt {
		if err := linkEntries(root, dir); err != nil {
			return err
		}
	}
	return nil
}

// linkEntries fills a rebuilt directory with links to the machine's entries, where the sandbox has none of its own.
func linkEntries(root, dir string) error {
	entries, err := os.ReadDir(filepath.Join(root, HostDir, dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(HostDir, dir, e.Name())
		if e.Type()&os.ModeSymlink != 0 {
			// Relative to the directory, as it was.
			if target, err = os.Readlink(filepath.Join(root, target)); err != nil {
				return err
			}
		}
		if err := os.Symlink(target, filepath.Join(root, dir, e.Name())); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// mountOwn mounts what describes the sandbox instead of the machine. It comes before the old root goes: the kernel
// lets a user namespace mount proc and sysfs only while it can see whole ones.
func mountOwn(root string) error {
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o555); err != nil {
		return err
	}
	for _, m := range []struct{ kind, dir, options string }{
		{"proc", "proc", ""},
		{"sysfs", "sys", ""},
		{"tmpfs", "dev/shm", "mode=1777"},
	} {
		err := unix.Mount(m.kind, filepath.Join(root, m.dir), m.kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, m.options)
		if err != nil {
			return fmt.Errorf("mount %s: %w", strings.TrimPrefix(m.dir, "/"), err)
		}
	}
	return nil
}

func pivot(root string) error {
	if err := os.Chdir(root); err != nil {
		return err
	}
	// With one directory for both, the old root ends up below the new one and can be detached from there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return os.Chdir("/")
}
