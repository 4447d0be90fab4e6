package main

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
)

// What an ADD or a DEL asks of the kernel does not depend on what else is on the node, and waits for no disk: no program
// is started, nothing is dumped, synced, moved or, on this ordinary path, deleted.
func TestSyscallsOfAddAndDel(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is not installed (scripts/deps.sh net installs it)")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	for _, first := range []string{"10.0.0.1", "2001:db8::1"} {
		n := newNode(t, ipamdtest.Config{First: netip.MustParseAddr(first)})
		// As on a node that forwards IPv6, which all new links inherit.
		n.host.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
		n.wrapper = []string{strace, "-f", "-qq", "-o", trace, "-s", "4096", "-v",
			"-e", "trace=execve,fork,vfork,fsync,fdatasync,sync,syncfs,sendto,sendmsg,unshare,openat", self}
		s := n.sandbox("c1", "web-0")
		for _, command := range []string{"ADD", "DEL"} {
			n.mustRun(command, s)
			text, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			calls := string(text)
			if got := strings.Count(calls, "execve("); got != 1 {
				t.Errorf("%s: %d programs are started, want 1, the plugin itself", command, got)
			}
			for _, never := range []string{"fsync(", "fdatasync(", "sync(", "syncfs(", "unshare(", "fork(", "NLM_F_DUMP", "NLM_F_ACK|0x300", "RTM_DELLINK", "RTM_SETLINK"} {
				if strings.Contains(calls, never) {
					t.Errorf("%s: %s\n%s", command, never, calls)
				}
			}
			// Writes for which the kernel waits for the routing lock by trying again and again.
			if spins := regexp.MustCompile(`/(forwarding|disable_ipv6)", O_(WRONLY|RDWR).*`).FindAllString(calls, -1); len(spins) > 0 {
				t.Errorf("%s of %s writes %q", command, first, spins)
			}
			// strace does not know the pod's socket for rtnetlink's: it prints 0x300 for NLM_F_DUMP there. Further looks at
			// links and IPv6 addresses that the kernel is not done with come on top.
			batches := len(regexp.MustCompile(`sendto\(\d+, \[+\{nlmsg_len`).FindAllString(calls, -1))
			want := map[string]int{"ADD": 5, "DEL": 2}[command]
			if batches < want || batches > want && command != "ADD" {
				t.Errorf("%s of %s: %d batches of netlink messages, want %d\n%s", command, first, batches, want, calls)
			}
		}
	}
}
