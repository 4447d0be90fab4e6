package podnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"vpccni/pkg/deadline"
)

// sysctl is one setting, by its path below /proc/sys.
type sysctl struct{ path, value string }

// hostSysctls keep a pod from configuring the host through router advertisements and redirects on its veth. They must
// be written before the link is up. The link's own forwarding setting is left to the node: where it is on, the kernel
// listens to routers even less, it does not decide what is forwarded, and a write to it waits for the routing lock.
func hostSysctls(veth string, v6 bool) []sysctl {
	dir := "net/ipv6/conf/" + veth + "/"
	settings := []sysctl{{dir + "accept_ra", "0"}, {dir + "accept_redirects", "0"}}
	if v6 {
		// The host asks for the pod's address from its link-local address, and cannot while that is tentative.
		settings = append(settings, sysctl{dir + "accept_dad", "0"})
	}
	return settings
}

// podSysctls let an IPv6 pod use its address at once, also where the runtime switched IPv6 off in new namespaces.
func podSysctls(name string, v6 bool) []sysctl {
	if !v6 {
		return nil
	}
	return []sysctl{
		{"net/ipv6/conf/lo/disable_ipv6", "0"},
		{"net/ipv6/conf/" + name + "/disable_ipv6", "0"},
		{"net/ipv6/conf/" + name + "/accept_dad", "0"},
	}
}

// writeSysctls writes the settings for the calling thread's network namespace. A kernel without IPv6 has no such
// files, and a node may have /proc/sys read-only; neither is a reason to refuse a pod.
func writeSysctls(ctx context.Context, settings []sysctl) error {
	for _, s := range settings {
		if err := deadline.Err(ctx); err != nil {
			return fmt.Errorf("set %s: %w", s.path, err)
		}
		// A write to some of these files waits for the routing lock, on a processor, also if it changes nothing.
		if is, err := os.ReadFile("/proc/sys/" + s.path); err == nil && string(bytes.TrimSpace(is)) == s.value {
			continue
		}
		err := os.WriteFile("/proc/sys/"+s.path, []byte(s.value), 0)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EROFS):
			slog.Debug("setting left alone", "sysctl", s.path, "err", err)
		case err != nil:
			return fmt.Errorf("set %s: %w", s.path, err)
		}
	}
	return nil
}

// openIn opens an rtnetlink socket inside the namespace, after writing the settings there.
func (d dialer) openIn(ctx context.Context, netns int, settings []sysctl) (*conn, error) {
	var c *conn
	err := inNetns(netns, func() error {
		if err := writeSysctls(ctx, settings); err != nil {
			return err
		}
		var err error
		c, err = d.open()
		return err
	})
	return c, err
}

// inNetns runs f on a thread inside the namespace.
func inNetns(netns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer back.Close()
		if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter the pod's network namespace: %w", err)
			return
		}
		err = f()
		if unix.Setns(int(back.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread stays locked and ends with this goroutine
		done <- err
	}()
	return <-done
}
