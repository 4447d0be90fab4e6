package nstest

import (
	"strings"
	"testing"
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
