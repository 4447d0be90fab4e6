package nstest

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestNewIsEmpty(t *testing.T) {
	t.Parallel()
	a, b := New(t), New(t)
	a.Run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	if links := a.Run("ip", "-o", "link"); !strings.Contains(links, "eth0") {
		t.Errorf("eth0 is missing where it was made:\n%s", links)
	}
	if links := b.Run("ip", "-o", "link"); strings.Contains(links, "eth") || !strings.Contains(links, "LOOPBACK,UP") {
		t.Errorf("want nothing but a loopback that is up:\n%s", links)
	}
}

// Tests enter namespaces on threads of their own and never leave them; none of these is the thread-group leader, by which
// the process is judged.
func TestLeaderStaysOut(t *testing.T) {
	t.Parallel()
	ns := New(t)
	var entering sync.WaitGroup
	for range 500 {
		entering.Go(func() {
			err := ns.Do(func() error {
				if unix.Gettid() == os.Getpid() {
					return errors.New("entered by the thread-group leader")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	entering.Wait()
}
