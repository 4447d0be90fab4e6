package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/ipamdtest"
	"vpccni/rpc"

	"golang.org/x/sys/unix"
)

// TestStoppedPluginWritesNothing stops plugins (SIGSTOP) at moments from ipamd's answer to the pod's last route, and
// lets half of them go on after their deadline. The host is then as it was at the deadline. Those that nobody lets go on
// are ended by the kernel.
func TestStoppedPluginWritesNothing(t *testing.T) {
	const (
		pods    = 24
		timeout = 3 * time.Second // to be with ipamd by then, on a loaded machine
		// Pod i is stopped i steps after ipamd's answer; wiring takes a few milliseconds.
		step = 250 * time.Microsecond
	)
	n := newNode(t, ipamdtest.Config{})
	var mu sync.Mutex
	pids := map[string]int{}
	answered := make(chan string, pods)
	n.ipamd.Configure(func(c *ipamdtest.Config) {
		c.Answer = func(request *rpc.AddNetworkRequest) {
			mu.Lock()
			defer mu.Unlock()
			id := request.GetContainerID()
			var i int
			_, _ = fmt.Sscanf(id, "c%d", &i)
			stop := func() { _ = unix.Kill(pids[id], unix.SIGSTOP) }
			if i == 0 {
				stop() // the answer is there when it goes on
			} else {
				pid := pids[id]
				time.AfterFunc(time.Duration(i)*step, func() { _ = unix.Kill(pid, unix.SIGSTOP) })
			}
			answered <- id
		}
	})

	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for i := range pods {
		s := n.sandbox(fmt.Sprintf("c%d", i), fmt.Sprintf("web-%d", i))
		cmd, out := n.command("ADD", s), &bytes.Buffer{}
		cmd.Env = append(cmd.Env, timeoutVar+"="+timeout.String())
		cmd.Stdout, cmd.Stderr = out, out
		mu.Lock() // until the pid is known
		if err := n.host.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		pids[s.id] = cmd.Process.Pid
		mu.Unlock()
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	started := time.Now() // the last one, at most; the time counts from the start of each
	for range pods {
		select {
		case <-answered:
		case <-time.After(timeout):
			t.Log("not all plugins came to ask within their time: the machine is busy")
		}
	}
	<-time.After(time.Until(started.Add(timeout)))
	if n.ipamd.Held() == 0 {
		t.Fatal("no plugin has got an answer")
	}

	// The pods' addresses are other pods' by now. Whatever a plugin does from here on is wrong.
	state := func() string {
		return n.host.Run("sh", "-c", "ip -o link show type veth | cut -d: -f2; ip rule") + n.routes()
	}
	before := state()
	stopped := 0
	for i, cmd := range cmds {
		if state, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid)); strings.Contains(string(state), ") T ") {
			stopped++
		}
		if i%2 == 0 {
			_ = cmd.Process.Signal(unix.SIGCONT)
		}
	}
	overdue := time.AfterFunc(time.Minute, func() {
		t.Error("stopped plugins are still there long after their deadline")
		for _, cmd := range cmds {
			_ = cmd.Process.Kill()
		}
	})
	defer overdue.Stop()
	killed := 0
	for i, cmd := range cmds {
		err := cmd.Wait()
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() && status.Signal() == unix.SIGKILL {
			killed++
		}
		t.Logf("pod %d: %v %s", i, err, strings.Join(strings.Fields(outs[i].String()), " "))
	}
	if after := state(); after != before {
		t.Errorf("written after the deadline: before\n%s\nafter\n%s", before, after)
	}
	t.Logf("of %d plugins %d were stopped, %d ended by the kernel; veths at the deadline: %d, routes: %d",
		pods, stopped, killed, n.pods(), strings.Count(n.routes(), "dev eni"))
}
