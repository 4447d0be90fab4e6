package audit

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
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
	refuse   bool
	released []string
	start    time.Time
	gone     time.Time // as the last DEL had it
}

func (n *node) list(context.Context) ([]Link, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fails {
		return nil, errors.New("no netlink")
	}
	var links []Link
	for _, l := range n.links {
		name, mac, _ := strings.Cut(l, " ")
		links = append(links, Link{name, mac})
	}
	return links, nil
}

func (n *node) set(links ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = links
}

func (n *node) Add(context.Context, ipamd.AddRequest) (ipamd.AddReply, error) {
	if n.refuse {
		return ipamd.AddReply{}, &ipamd.Refusal{Code: ipamd.CodeAtLimit}
	}
	return ipamd.AddReply{}, nil
}

func (n *node) Del(_ context.Context, req ipamd.DelRequest) (ipamd.DelReply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Contains(n.released, req.ContainerID) {
		return ipamd.DelReply{}, datastore.ErrUnknownPod
	}
	n.released, n.gone = append(n.released, req.ContainerID), req.Gone
	return ipamd.DelReply{}, nil
}

func allocation(container, pod string) checkpoint.Allocation {
	return checkpoint.Allocation{NetworkName: "aws-cni", ContainerID: container, IfName: "eth0", Namespace: "default", Pod: pod,
		Address: netip.MustParseAddr("10.0.1.1")}
}

// owned is a veth with the address that the sandbox's ADD gave it.
func owned(container, pod string) string {
	mac := names.VethMAC(container, "eth0", names.HostEnd)
	return veth(pod) + " " + net.HardwareAddr(mac[:]).String()
}

func veth(pod string) string { return names.HostVeth("eni", "default", pod, 0) }

// scene is an Audit of a node on virtual time.
type scene struct {
	*node
	*Audit
	t *testing.T
}

// step is something that happens so much time after the one before it.
type step struct {
	after time.Duration
	do    func(scene)
}

// audited runs an Audit of what was restored through the steps and tells which containers it had released by the end.
func audited(t *testing.T, n *node, restored []checkpoint.Allocation, steps []step) []string {
	synctest.Test(t, func(t *testing.T) {
		a := New(Options{Restored: restored, Links: n.list, Allocator: n, Clock: clockwork.NewRealClock(), Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { a.Run(ctx); close(done) }()
		for _, s := range steps {
			time.Sleep(s.after)
			synctest.Wait()
			if s.do != nil {
				s.do(scene{n, a, t})
			}
			synctest.Wait()
		}
		cancel()
		<-done
	})
	slices.Sort(n.released)
	return n.released
}

func (s scene) ask(m checkpoint.Allocation) {
	if _, err := s.Audit.Add(s.t.Context(), ipamd.AddRequest{Sandbox: sandboxOf(m), Namespace: m.Namespace, Pod: m.Pod}); err != nil {
		s.t.Error(err)
	}
}

func (s scene) want(released ...string) {
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	if !slices.Equal(s.released, released) {
		s.t.Errorf("released %q, want %q", s.released, released)
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	live, dead := allocation("live", "web-0"), allocation("dead", "web-1")
	const twoLooks = 2*lookEvery + time.Second
	ask := func(m checkpoint.Allocation) func(scene) { return func(s scene) { s.ask(m) } }
	links := func(links ...string) func(scene) { return func(s scene) { s.set(links...) } }
	none := func(s scene) { s.want() }
	for _, tt := range []struct {
		name     string
		restored []checkpoint.Allocation
		links    []string
		steps    []step
		released []string
	}{
		{name: "nothing restored", steps: []step{{time.Hour, nil}}},
		{name: "everybody is there", restored: []checkpoint.Allocation{live}, links: []string{"lo", veth("web-0")}, steps: []step{{time.Hour, nil}}},
		{name: "another prefix is the same pod", restored: []checkpoint.Allocation{live}, links: []string{"veth"[:3] + names.VethSuffix("default", "web-0", 0)}, steps: []step{{time.Hour, nil}}},
		{name: "a VLAN device is the same pod", restored: []checkpoint.Allocation{live}, links: []string{"vlan" + names.VethSuffix("default", "web-0", 0)}, steps: []step{{time.Hour, nil}}},
		{name: "the next sandbox of the same pod is there", restored: []checkpoint.Allocation{allocation("older", "web-0"), live},
			links: []string{owned("live", "web-0")}, steps: []step{{time.Hour, nil}}, released: []string{"older"}},
		{name: "the predecessor's link is anybody's", restored: []checkpoint.Allocation{allocation("older", "web-0"), live},
			links: []string{veth("web-0") + " 02:00:00:00:00:01"}, steps: []step{{time.Hour, nil}}},
		{name: "no names recorded", restored: []checkpoint.Allocation{allocation("old", "")}, steps: []step{{time.Hour, nil}}},
		{name: "restored, never seen", restored: []checkpoint.Allocation{live, dead}, links: []string{veth("web-0")},
			steps: []step{{Grace, none}, {twoLooks, nil}}, released: []string{"dead"}},
		{name: "restored, wired late", restored: []checkpoint.Allocation{dead},
			steps: []step{{Grace + lookEvery, links(veth("web-1"))}, {time.Hour, nil}}},
		{name: "restored, seen, and gone", restored: []checkpoint.Allocation{dead}, links: []string{veth("web-1")},
			steps: []step{{5 * time.Second, links()}, {lookEvery, none}, {60*time.Second - lookEvery, nil}}, released: []string{"dead"}},
		{name: "wired, and gone", steps: []step{{time.Second, ask(live)}, {time.Second, links(veth("web-0"))}, {time.Hour, links()},
			{lookEvery, none}, {60*time.Second - lookEvery, nil}}, released: []string{"live"}},
		{name: "gone for one look", steps: []step{{time.Second, ask(live)}, {time.Second, links(veth("web-0"))}, {time.Hour, links()},
			{lookEvery, links(veth("web-0"))}, {time.Hour, nil}}},
		{name: "asked for, never wired", steps: []step{{time.Second, ask(live)}, {Grace, none}, {twoLooks, nil}}, released: []string{"live"}},
		{name: "asked for again before it is reclaimed", restored: []checkpoint.Allocation{dead},
			steps: []step{{Grace + lookEvery, ask(dead)}, {Grace, none}, {twoLooks, nil}}, released: []string{"dead"}},
		{name: "deleted", restored: []checkpoint.Allocation{dead},
			steps: []step{{time.Second, func(s scene) { _, _ = s.Audit.Del(t.Context(), ipamd.DelRequest{Sandbox: sandboxOf(dead)}) }},
				{time.Hour, func(s scene) {
					if len(s.watched) > 0 {
						t.Errorf("still looking for %v", s.watched)
					}
				}}}, released: []string{"dead"}},
		{name: "refused", steps: []step{{time.Second, func(s scene) {
			s.refuse = true
			if _, err := s.Audit.Add(t.Context(), ipamd.AddRequest{Sandbox: sandboxOf(live)}); err == nil || len(s.watched) > 0 {
				t.Errorf("%v, %v", err, s.watched)
			}
		}}, {time.Hour, nil}}},
		{name: "the kernel cannot be asked in between", restored: []checkpoint.Allocation{dead}, links: []string{veth("web-1")},
			steps: []step{{5 * time.Second, links()},
				{lookEvery, func(s scene) { s.node.mu.Lock(); s.fails = true; s.node.mu.Unlock() }},
				{lookEvery, func(s scene) { s.node.mu.Lock(); s.fails = false; s.node.mu.Unlock() }},
				{lookEvery, none}, {lookEvery, nil}}, released: []string{"dead"}},
		{name: "of a sandbox that is not known", restored: []checkpoint.Allocation{{ContainerID: "link:eni1"}, {ContainerID: "link:eni2"}},
			links: []string{"eni1", "eni2"}, steps: []step{{time.Hour, links("eni1")}, {time.Minute, nil}}, released: []string{"link:eni2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := &node{links: tt.links}
			if released := audited(t, n, tt.restored, tt.steps); !slices.Equal(released, tt.released) {
				t.Errorf("released %q, want %q", released, tt.released)
			}
		})
	}
}

// A release names when its sandbox was first missed: an ADD that overtakes it stands.
func TestAuditSaysSinceWhen(t *testing.T) {
	t.Parallel()
	n := &node{}
	audited(t, n, []checkpoint.Allocation{allocation("dead", "web-1")}, []step{{0, func(s scene) { n.start = time.Now() }}, {Grace + 3*lookEvery, nil}})
	if since := n.gone.Sub(n.start); since < Grace || since > Grace+lookEvery {
		t.Errorf("gone since %s after the start", since)
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
		if err != nil || !slices.ContainsFunc(links, func(l Link) bool { return l.Name == "eni1" }) || !slices.ContainsFunc(links, func(l Link) bool { return l.Name == "lo" }) {
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
