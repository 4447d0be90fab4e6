package probe

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"vpccni/pkg/networkutils/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const port = 7

// serve starts a server in a namespace with a few addresses on its loopback.
func serve(t *testing.T, addrs ...string) *nstest.NS {
	t.Helper()
	ns := nstest.New(t)
	for _, a := range addrs {
		ns.Run("ip", "addr", "add", a, "dev", "lo", "nodad")
	}
	s, err := Serve(t.Context(), "alice", ns.Do, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return ns
}

func at(addr string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(addr), port) }

func TestAnswersNameServerAndSource(t *testing.T) {
	t.Parallel()
	ns := serve(t, "10.0.0.1/32", "10.0.0.2/32", "2001:db8::1/128", "2001:db8::2/128")
	for _, c := range []struct {
		target, from string
		size         int
	}{
		{"127.0.0.1", "127.0.0.1", 0},
		{"127.0.0.1", "127.0.0.1", 1},
		{"10.0.0.2", "10.0.0.1", 40},
		{"10.0.0.1", "10.0.0.2", 4096},
		{"10.0.0.2", "10.0.0.2", 60000},
		{"2001:db8::1", "2001:db8::2", 1200},
	} {
		for name, ask := range map[string]func() (Answer, error){
			"udp": func() (Answer, error) {
				return UDP(t.Context(), ns.Do, at(c.target), c.size, From(netip.MustParseAddr(c.from)))
			},
			"tcp": func() (Answer, error) {
				return TCP(t.Context(), ns.Do, at(c.target), c.size, From(netip.MustParseAddr(c.from)))
			},
		} {
			got, err := ask()
			if err != nil {
				t.Errorf("%s %+v: %v", name, c, err)
				continue
			}
			if got.RTT <= 0 {
				t.Errorf("%s %+v: no round trip time", name, c)
			}
			got.RTT = 0
			if want := (Answer{Server: "alice", Source: netip.MustParseAddr(c.from), Bytes: c.size}); got != want {
				t.Errorf("%s %+v: got %+v, want %+v", name, c, got, want)
			}
		}
	}
}

func TestBulkOverTCP(t *testing.T) {
	t.Parallel()
	ns := serve(t)
	const size = 20 << 20
	if got, err := TCP(t.Context(), ns.Do, at("127.0.0.1"), size); err != nil || got.Bytes != size {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestEchoAndUnknownCommands(t *testing.T) {
	t.Parallel()
	ns := serve(t)
	for command, want := range map[string]string{
		"echo\nhello":   "alice 127.0.0.1\nhello",
		"discard\nabc":  "alice 127.0.0.1\n",
		"bulk 3\nabcde": "alice 127.0.0.1\n3 364b3fb7\n",
		"dance\n":       "alice 127.0.0.1\nunknown command \"dance\"\n",
		"bulk many\n":   "alice 127.0.0.1\n",
	} {
		var conn net.Conn
		err := ns.Do(func() error {
			var err error
			conn, err = net.Dial("tcp", at("127.0.0.1").String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, command); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		// A server that ends before it has read everything resets the connection; what it said still counts.
		if string(got) != want {
			t.Errorf("%q: got %q (%v), want %q", command, got, err, want)
		}
		_ = conn.Close()
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	if _, err := TCP(t.Context(), ns.Do, at("127.0.0.1"), 1, Retries(2)); err == nil || strings.Count(err.Error(), "refused") != 3 {
		t.Errorf("want three refusals, got %v", err)
	}
	if _, err := UDP(t.Context(), ns.Do, at("127.0.0.1"), 1); err == nil || !strings.Contains(err.Error(), "udp to 127.0.0.1:7") {
		t.Errorf("want an error that names the target, got %v", err)
	}
}

// Not in parallel: a program that another test starts holds every socket for the moment between fork and exec.
func TestServeEndsWithItsListeners(t *testing.T) {
	ns := nstest.New(t)
	for range 3 {
		s, err := Serve(t.Context(), "bob", ns.Do, port, port+1)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Serve(t.Context(), "eve", ns.Do, port+1); err == nil {
			t.Error("two servers on one port")
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Serve(t.Context(), "no body", ns.Do, port); err == nil {
		t.Error("a name with white space was accepted")
	}
	if _, err := Serve(t.Context(), "bob", ns.Do, 0); err == nil {
		t.Error("port 0 was accepted")
	}
}
