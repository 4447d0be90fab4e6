package slice

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"vpccni/lab/cluster"
	"vpccni/pkg/delnote"
	"vpccni/pkg/networkutils/names"
)

// TestPodsDeletedWithoutIPAMD: of ten pods that hold every address of the node, five are deleted while ipamd is away.
// From its first answer on it holds the other five only. The addresses cool from when their pods went, and are then
// given to those who wait for them.
func TestPodsDeletedWithoutIPAMD(t *testing.T) {
	t.Parallel()
	const pods = 10
	l := lab(t, one(100*time.Millisecond, map[string]string{"MAX_ENI": "2", "IP_COOLDOWN_PERIOD": "12"}))
	n := l.Nodes()[0]
	for i, err := range burst(t.Context(), l, pods) {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	running := l.Pods("n1")
	n.KillIPAMD()
	began := time.Now()
	freed := map[netip.Addr]bool{}
	var kubelet errgroup.Group
	for _, p := range running[:pods/2] {
		freed[p.Address] = true
		kubelet.Go(func() error { return l.PodDel(t.Context(), p.Node, p.Namespace, p.Name) })
	}
	if err := kubelet.Wait(); err != nil {
		t.Fatal(err)
	}
	deleted := time.Now()
	if left := notes(t, n); left != pods/2 {
		t.Errorf("%d notes, want %d", left, pods/2)
	}
	if held := len(allocations(t, n)); held != pods {
		t.Fatalf("%d addresses are held while ipamd is away", held)
	}

	if err := n.StartIPAMD(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkHolders(t, l, n)
	if held := len(allocations(t, n)); held != pods/2 {
		t.Errorf("%d addresses are held, want %d", held, pods/2)
	}
	if left := notes(t, n); left != 0 {
		t.Errorf("%d notes are left", left)
	}
	const cooldown = 12 * time.Second
	until := cooling(t, n)
	for ip := range freed {
		if at, ok := until[ip]; !ok || at.Before(began.Add(cooldown)) || at.After(deleted.Add(cooldown)) {
			t.Errorf("%s: cooling %t, until %s; its pod went between %s and %s", ip, ok, at, began, deleted)
		}
	}
	for i := range pods / 2 {
		kubelet.Go(func() error {
			p, err := l.PodAdd(t.Context(), "n1", namespace, podName(pods+i))
			if err != nil {
				return err
			}
			if !freed[p.Address] || time.Now().Before(until[p.Address]) {
				t.Errorf("%s has %s, which cools until %s", p.Name, p.Address, until[p.Address])
			}
			return nil
		})
	}
	if err := kubelet.Wait(); err != nil {
		t.Fatal(err)
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
}

// notes counts what lies where DELs without ipamd leave their notes.
func notes(t *testing.T, n *cluster.Node) (count int) {
	t.Helper()
	err := n.OS().Do(func() error {
		entries, err := os.ReadDir(string(delnote.Node))
		count = len(entries)
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return count
}

// cooling reads from the journal until when each address may not be handed out.
func cooling(t *testing.T, n *cluster.Node) map[netip.Addr]time.Time {
	t.Helper()
	var journal struct {
		Cooling []struct {
			Address netip.Addr
			Until   int64
		}
	}
	err := n.OS().Do(func() error {
		text, err := os.ReadFile(names.JournalFile)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &journal)
	})
	if err != nil {
		t.Fatal(err)
	}
	until := map[netip.Addr]time.Time{}
	for _, c := range journal.Cooling {
		until[c.Address] = time.Unix(0, c.Until)
	}
	return until
}
