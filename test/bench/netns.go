package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"time"

	"vpccni/pkg/networkutils/podnet"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace; it goes with the sandbox.
type namespace struct{ file *os.File }

func newNamespace() (namespace, error) {
	var ns namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		ns.file = file
		return err
	})
	if err != nil {
		return ns, fmt.Errorf("new network namespace: %w", err)
	}
	return ns, ns.ip("link", "set", "lo", "up")
}

func newNamespaces(n int) ([]namespace, error) {
	var list []namespace
	for range n {
		ns, err := newNamespace()
		if err != nil {
			return nil, err
		}
		list = append(list, ns)
	}
	return list, nil
}

// path names the namespace for this process and its children.
func (n namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// do runs f on a thread inside the namespace; sockets and processes that f makes stay there.
func (n namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

func (n namespace) ip(args ...string) error {
	return n.do(func() error {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %q: %w: %s", args, err, out)
		}
		return nil
	})
}

func (n namespace) ips(commands ...[]string) error {
	for _, c := range commands {
		if err := n.ip(c...); err != nil {
			return err
		}
	}
	return nil
}

func (n namespace) sysctl(settings map[string]string) error {
	return n.do(func() error {
		for path, value := range settings {
			if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

// onThread runs f on a thread of its own that ends with it, for f leaves the thread in another namespace.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// setupTimeout bounds the wiring of one pod that is only there to be there.
const setupTimeout = 10 * time.Second

// fill puts pods with the given addresses on the node: real veths and routes, whose other ends share one namespace.
func fill(ctx context.Context, node, crowd namespace, addresses []netip.Addr) error {
	quiet := func(value string) error {
		for _, ns := range []namespace{crowd, node} {
			if err := ns.sysctl(map[string]string{"ipv6/conf/default/disable_ipv6": value}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(addresses) > 0 && addresses[0].Is4() {
		// Thousands of links that look for IPv6 routers would be measured too.
		if err := quiet("1"); err != nil {
			return err
		}
	}
	err := node.do(func() error {
		for i, addr := range addresses {
			ctx, cancel := context.WithTimeout(ctx, setupTimeout)
			_, err := podnet.Setup(ctx, podnet.Pod{
				Netns:       crowd.path(),
				ContainerID: fmt.Sprintf("crowd-%d", i),
				Interfaces: []podnet.Interface{{
					Name:     fmt.Sprintf("p%d", i),
					HostVeth: fmt.Sprintf("enicrowd%d", i),
					Address:  netip.PrefixFrom(addr, addr.BitLen()),
					MTU:      9001,
				}},
			})
			cancel()
			if err != nil {
				return fmt.Errorf("pod %d: %w", i, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return quiet("0")
}

// addresses counts n addresses up from first.
func addresses(first netip.Addr, n int) []netip.Addr {
	var list []netip.Addr
	for range n {
		list = append(list, first)
		first = first.Next()
	}
	return list
}
