package main

import (
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
	n := newNode(t, ipamdtest.Config{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	n.wrapper = []string{strace, "-f", "-qq", "-o", trace, "-s", "4096", "-v", "-e", "trace=execve,fork,vfork,fsync,fdatasync,sync,syncfs,sendto,sendmsg,unshare", self}
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
		// strace does not know the pod's socket for rtnetlink's: it prints 0x300 for NLM_F_DUMP there.
		batches := len(regexp.MustCompile(`sendto\(\d+, \[+\{nlmsg_len`).FindAllString(calls, -1))
		if want := map[string]int{"ADD": 3, "DEL": 2}[command]; batches != want {
			t.Errorf("%s: %d batches of netlink messages, want %d\n%s", command, batches, want, calls)
		}
	}
}
