package bootstrap

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jonboulle/clockwork"
	"github.com/vishvananda/netlink"

	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

const good = `{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"c1","ifName":"eth0","ipv4":"10.0.1.7",` +
	`"allocationTimestamp":1,"metadata":{"k8sPodNamespace":"default","k8sPodName":"web-0","interfacesCount":1}}]}`

// A file that cannot be read does not make living pods' addresses free.
func TestRestore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file string
		journal    string
		containers string
		log        string
	}{
		{name: "first start"},
		{name: "restart", file: good, containers: "c1"},
		{name: "torn file", file: good[:100], containers: "link:eni1", log: "rebuilt from the kernel"},
		{name: "file of a version to come", file: `{"version":"vpc-cni-ipam/2"}`, containers: "link:eni1", log: "rebuilt from the kernel"},
		{name: "file with a bad entry", file: strings.Replace(good, "}]}", `},{"ipv4":"x"}]}`, 1), containers: "c1 link:eni1", log: "left out"},
		{name: "file torn behind an entry of that address", file: strings.Replace(good[:len(good)-2], "10.0.1.7", "10.0.1.9", 1), containers: "c1", log: "allocations=0 read=1"},
		{name: "no file beside a journal", journal: `{"version":"vpc-cni-journal/1"}`, containers: "link:eni1", log: "rebuilt from the kernel"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var logged bytes.Buffer
			log := slog.New(slog.NewTextHandler(&logged, nil))
			path := filepath.Join(dir, "ipam.json")
			if tt.file != "" {
				if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.journal != "" {
				if err := os.WriteFile(filepath.Join(dir, "j.json"), []byte(tt.journal), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			store := checkpoint.New(checkpoint.Options{Path: path, JournalPath: filepath.Join(dir, "j.json"), Log: log})
			err := nstest.New(t).Do(func() error {
				if err := addPod("eni1", "10.0.1.9/32"); err != nil {
					return err
				}
				state, err := Restore(t.Context(), store, clockwork.NewRealClock(), log)
				if err != nil {
					return err
				}
				var containers []string
				for _, a := range state.Allocations {
					containers = append(containers, a.ContainerID)
				}
				if got := strings.Join(containers, " "); got != tt.containers {
					t.Errorf("restored %q, want %q", got, tt.containers)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := logged.String(); !strings.Contains(got, tt.log) || (tt.log == "") != (got == "") {
				t.Errorf("log: %s", got)
			}
		})
	}
}

// addPod makes a host veth with the route of a pod.
func addPod(link, address string) error {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: "peer"}); err != nil {
		return err
	}
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return err
	}
	dst, err := netlink.ParseIPNet(address)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Table: names.TablePods, LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
}
