package audit

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jonboulle/clockwork"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/names"
	"vpccni/pkg/networkutils/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// node is a host with links and an allocator of what pods hold.
type node struct {
	mu       sync.Mutex
	links    []string
	fails    bool
	looks    int
	released []string
}

func (n *node) list(context.Context) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.looks++
	if n.fails {
		return nil, errors.New("no netlink")
	}
	return slices.Clone(n.links), nil
}

func (n *node) set(links ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = links
}

func (n *node) Add(context.Context, ipamd.AddRequest) (ipamd.AddReply, error) {
	return ipamd.AddReply{}, nil
}

func (n *node) Del(_ context.Context, req ipamd.DelRequest) (ipamd.DelReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Contains(n.released, req.ContainerID) {
		return ipamd.DelReply{}, datastore.ErrUnknownPod
	}
	n.released = append(n.released, req.ContainerID)
	return ipamd.DelReply{}, nil
}

func allocation(container, pod string) checkpoint.Allocation {
	return checkpoint.Allocation{NetworkName: "aws-cni", ContainerID: container, IfName: "eth0", Namespace: "default", Pod: pod,
		Address: netip.MustParseAddr("10.0.1.1")}
}

func veth(pod string) string { return names.HostVeth("eni", "default", pod, 0) }

// audited runs an Audit of what was restored on virtual time, calls steps one after another, one per Delay, and returns
// which containers were released by the end, and whether the audit has nobody left to look for.
func audited(t *testing.T, n *node, restored []checkpoint.Allocation, steps ...func(*Audit)) (released []string, finished bool) {
	synctest.Test(t, func(t *testing.T) {
		a := New(Options{Restored: restored, Links: n.list, Allocator: n, Clock: clockwork.NewRealClock(), Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { a.Run(ctx); close(done) }()
		for _, step := range steps {
			synctest.Wait()
			step(a)
			time.Sleep(Delay)
		}
		synctest.Wait()
		select {
		case <-done:
			finished = true
		default:
		}
		cancel()
		<-done
	})
	slices.Sort(n.released)
	return n.released, finished
}

func nothing(*Audit) {}

func TestAudit(t *testing.T) {
	t.Parallel()
	live, dead := allocation("live", "web-0"), allocation("dead", "web-1")
	for _, tt := range []struct {
		name     string
		restored []checkpoint.Allocation
		links    []string
		steps    func(n *node) []func(*Audit)
		released []string
		looks    int
	}{
		{name: "nothing restored"},
		{name: "everybody is there", restored: []checkpoint.Allocation{live}, links: []string{"lo", veth("web-0")}, looks: 1},
		{name: "another prefix is the same pod", restored: []checkpoint.Allocation{live}, links: []string{"veth"[:3] + names.VethSuffix("default", "web-0", 0)}, looks: 1},
		{name: "a VLAN device is the same pod", restored: []checkpoint.Allocation{live}, links: []string{"vlan" + names.VethSuffix("default", "web-0", 0)}, looks: 1},
		{name: "no names recorded", restored: []checkpoint.Allocation{allocation("old", "")}, looks: 1},
		{name: "missing once", restored: []checkpoint.Allocation{live, dead}, links: []string{veth("web-0")}, looks: 1},
		{name: "missing twice", restored: []checkpoint.Allocation{live, dead}, links: []string{veth("web-0")},
			steps: func(*node) []func(*Audit) { return []func(*Audit){nothing} }, released: []string{"dead"}, looks: 2},
		{name: "wired meanwhile", restored: []checkpoint.Allocation{dead},
			steps: func(n *node) []func(*Audit) { return []func(*Audit){func(*Audit) { n.set(veth("web-1")) }, nothing} }, looks: 2},
		{name: "deleted meanwhile", restored: []checkpoint.Allocation{dead},
			steps: func(n *node) []func(*Audit) {
				return []func(*Audit){func(a *Audit) { _, _ = a.Del(t.Context(), ipamd.DelRequest{Sandbox: sandboxOf(dead)}) }, nothing}
			}, released: []string{"dead"}, looks: 3},
		{name: "asked for meanwhile", restored: []checkpoint.Allocation{dead},
			steps: func(n *node) []func(*Audit) {
				return []func(*Audit){
					func(a *Audit) { _, _ = a.Add(t.Context(), ipamd.AddRequest{Sandbox: sandboxOf(dead)}) },
					func(*Audit) { n.set(veth("web-1")) },
				}
			}, looks: 3},
		{name: "the kernel cannot be asked in between", restored: []checkpoint.Allocation{dead},
			steps: func(n *node) []func(*Audit) {
				return []func(*Audit){
					func(*Audit) { n.mu.Lock(); n.fails = true; n.mu.Unlock() },
					func(*Audit) { n.mu.Lock(); n.fails = false; n.mu.Unlock() },
				}
			}, looks: 3}, // suspect again, not released
		{name: "of a sandbox that is not known", restored: []checkpoint.Allocation{{ContainerID: "link:eni1"}, {ContainerID: "link:eni2"}},
			links: []string{"eni1", "eni2"},
			steps: func(n *node) []func(*Audit) {
				return []func(*Audit){nothing, nothing, func(*Audit) { n.set("eni1") }, nothing}
			}, released: []string{"link:eni2"}, looks: 5},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := &node{links: tt.links}
			var steps []func(*Audit)
			if tt.steps != nil {
				steps = tt.steps(n)
			}
			released, _ := audited(t, n, tt.restored, steps...)
			if !slices.Equal(released, tt.released) {
				t.Errorf("released %q, want %q", released, tt.released)
			}
			if n.looks != tt.looks {
				t.Errorf("looked %d times, want %d", n.looks, tt.looks)
			}
		})
	}
}

func TestAuditEnds(t *testing.T) {
	t.Parallel()
	n := &node{}
	if _, finished := audited(t, n, []checkpoint.Allocation{allocation("dead", "web-1")}, nothing); !finished {
		t.Error("still looking for nobody")
	}
}

func TestKernel(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	err := ns.Do(func() error {
		for i, name := range []string{"eni1", "eni2"} {
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer" + name}); err != nil {
				return err
			}
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return err
			}
			dst, err := netlink.ParseIPNet([]string{"10.0.1.9/32", "10.0.1.8/32"}[i])
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{Table: names.TablePods, LinkIndex: link.Attrs().Index, Dst: dst, Scope: unix.RT_SCOPE_LINK}); err != nil {
				return err
			}
		}
		for _, r := range []struct {
			table, kind int
			dst         string
		}{
			{names.TablePods, unix.RTN_UNREACHABLE, "10.0.1.8/32"}, // an own address that no pod holds
			{names.TablePods, unix.RTN_UNREACHABLE, "10.0.1.16/28"},
			{2, unix.RTN_UNREACHABLE, "10.0.1.7/32"},
		} {
			dst, err := netlink.ParseIPNet(r.dst)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{Table: r.table, Type: r.kind, Dst: dst, Priority: 1 << 20}); err != nil {
				return err
			}
		}
		links, err := Links(t.Context())
		if err != nil || !slices.Contains(links, "eni1") || !slices.Contains(links, "lo") {
			t.Errorf("links %v, %v", links, err)
		}
		got, err := Rebuild(t.Context(), time.Unix(1, 0))
		if err != nil {
			return err
		}
		var lines []string
		for _, a := range got {
			lines = append(lines, a.Address.String()+" "+a.ContainerID)
		}
		if want := []string{"10.0.1.8 link:eni2", "10.0.1.9 link:eni1"}; !slices.Equal(lines, want) {
			t.Errorf("rebuilt %q, want %q", lines, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
