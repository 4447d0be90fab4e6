package slice

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"vpccni/lab/cluster"
	"vpccni/lab/fabric"
	"vpccni/lab/probe"
)

// flowPort is where the far ends of flows listen; checkReachable has a port of its own.
const flowPort = 7778

// flow is one TCP connection on which bytes go back and forth until it is closed.
type flow struct {
	name string
	stop chan struct{}
	done chan error
	// Exchanges, and the longest time that one took: valid once the flow is closed.
	exchanges int
	longest   time.Duration
}

// path is a way that a flow takes.
type path struct {
	name string
	from probe.Do
	to   netip.Addr
}

// flowTimeout is how long one exchange may take. TCP repeats what a restart has lost within a second or two.
const flowTimeout = 20 * time.Second

// openFlow connects and keeps talking.
func openFlow(t *testing.T, name string, from probe.Do, to netip.Addr) *flow {
	t.Helper()
	var conn net.Conn
	err := from(func() (err error) {
		conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, flowPort).String(), flowTimeout)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	f := &flow{name: name, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		defer func() { _ = conn.Close() }()
		f.done <- f.talk(conn)
	}()
	return f
}

func (f *flow) talk(conn net.Conn) error {
	in := bufio.NewReader(conn)
	if _, err := in.ReadString('\n'); err != nil { // the server's greeting
		return err
	}
	if _, err := io.WriteString(conn, "echo\n"); err != nil {
		return err
	}
	question := bytes.Repeat([]byte("vpc-cni "), 512)
	answer := make([]byte, len(question))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		started := time.Now()
		if err := conn.SetDeadline(started.Add(flowTimeout)); err != nil {
			return err
		}
		if _, err := conn.Write(question); err != nil {
			return err
		}
		if _, err := io.ReadFull(in, answer); err != nil {
			return err
		}
		if !bytes.Equal(answer, question) {
			return fmt.Errorf("%q came back", answer)
		}
		f.exchanges++
		f.longest = max(f.longest, time.Since(started))
		select {
		case <-tick.C:
		case <-f.stop:
			return nil
		}
	}
}

// close wants the connection to have lived until now.
func (f *flow) close(t *testing.T) {
	t.Helper()
	close(f.stop)
	err := <-f.done
	if err != nil {
		t.Errorf("%s: the open connection broke after %d exchanges: %v", f.name, f.exchanges, err)
		return
	}
	t.Logf("%s: %d exchanges on one connection, the longest took %s", f.name, f.exchanges, f.longest.Round(time.Millisecond))
}

// podDo is a probe's way into a pod.
func podDo(l *cluster.Cluster, p cluster.Pod) probe.Do {
	return func(f func() error) error { return l.PodDo(p.Node, p.Namespace, p.Name, f) }
}

// hostDo is a probe's way to a host outside of the nodes.
func hostDo(l *cluster.Cluster, host fabric.Host) probe.Do {
	return func(f func() error) error { return l.Fabric().Do(host, f) }
}

// serve answers probes until the test ends.
func serve(t *testing.T, name string, do probe.Do, ports ...uint16) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	server, err := probe.Serve(ctx, name, do, ports...)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Close()
		cancel()
	})
}
