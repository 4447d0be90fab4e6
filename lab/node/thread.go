package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// everything are the namespaces of a node.
const everything = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID

// onThread runs f on a thread of its own that ends with it, for f leaves the thread in other namespaces.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine.
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Do runs f on a thread that is on the node: paths, interfaces and the host name that f sees are the node's,
// and so is everything about the programs it starts. Goroutines that f starts are elsewhere.
//
// The thread itself is not one of the node's processes, so /proc/self does not exist for it.
func (n *Node) Do(f func() error) error { return n.do(nil, f) }

// DialContext connects from the node: from its addresses, and to its unix sockets.
func (n *Node) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// DoIn is Do in another network namespace, such as a pod's.
func (n *Node) DoIn(netns *os.File, f func() error) error { return n.do(netns, f) }

func (n *Node) do(netns *os.File, f func() error) error {
	b, release, err := n.use()
	if err != nil {
		return err
	}
	return onThread(func() error {
		err := b.enter(netns)
		release()
		if err != nil {
			return fmt.Errorf("enter node %s: %w", n.opts.Name, err)
		}
		return f()
	})
}

// enter moves the calling thread to the node.
func (b *boot) enter(netns *os.File) error {
	// A thread can change its mount namespace only if it shares its root and working directory with no other.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(b.pidfd, everything); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return ErrDown
		}
		return err
	}
	if netns == nil {
		return nil
	}
	return unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)
}

// NewNetNS makes a network namespace with its loopback up, and a file for it at a path of the node, as container
// runtimes do. The caller closes the returned file.
func (n *Node) NewNetNS(path string) (*os.File, error) {
	var ns *os.File
	// From a thread in the sandbox: its /proc knows the thread, the node's does not.
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	if err := n.Do(func() error { return bindNS(ns, path) }); err != nil {
		_ = ns.Close()
		return nil, err
	}
	return ns, nil
}

// bindNS mounts an open namespace on a new file, without the help of a /proc that shows the descriptor.
func bindNS(ns *os.File, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = file.Close()
	tree, err := unix.OpenTree(int(ns.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return errors.Join(fmt.Errorf("bind %s: %w", path, err), os.Remove(path))
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(fmt.Errorf("bind %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// RemoveNetNS takes away what NewNetNS made; the namespace ends with its last user. Removing what is gone is no
// error.
func (n *Node) RemoveNetNS(path string) error {
	return n.Do(func() error {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
}
