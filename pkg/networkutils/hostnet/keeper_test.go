package hostnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vpccni/pkg/networkutils/names"
)

// ledger is a Pods that the test adds to and takes from.
type ledger struct {
	mu    sync.Mutex
	pods  map[netip.Addr]Pod
	after func() // called, if set, when Lives has made up its mind
}

func (l *ledger) Pods() []Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Pod
	for _, p := range l.pods {
		list = append(list, p)
	}
	return list
}

func (l *ledger) Lives(p Pod) bool {
	l.mu.Lock()
	lives, after := l.pods[p.Address] == p, l.after
	l.mu.Unlock()
	if after != nil {
		after()
	}
	return lives
}

func (l *ledger) assign(address, container string) Pod {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := Pod{Address: netip.MustParseAddr(address), Sandbox: Sandbox{"aws-cni", container, "eth0"}}
	if l.pods == nil {
		l.pods = map[netip.Addr]Pod{}
	}
	l.pods[p.Address] = p
	return p
}

func (l *ledger) release(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pods, netip.MustParseAddr(address))
}

// eventually waits for a state of the kernel.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// wire does what the plugin's ADD does on the host.
func (n *node) wire(veth, address string) {
	n.t.Helper()
	family, metric := "-4", ""
	if netip.MustParseAddr(address).Is6() {
		family, metric = "-6", "metric 1024"
	}
	n.Run("sh", "-e", "-c", fmt.Sprintf(`
		ip link add %[1]s mtu 9001 type veth peer name p%[1]s; ip link set p%[1]s up; ip link set %[1]s up
		ip %[3]s route replace %[2]s dev %[1]s scope link table 5120 proto 89 %[4]s
		ip %[3]s route replace %[2]s dev %[1]s scope link %[4]s`, veth, address, family, metric))
}

// podState is what a pod has on the host, without what the kernel says of a link's carrier.
func (n *node) podState() string {
	n.t.Helper()
	out := n.Run("sh", "-c", `for f in -4 -6; do
			ip -details $f route show table 5120 2>/dev/null | sort
			ip -details $f route show table main | grep eni | grep -v fe80 | sort
		done
		for l in /sys/class/net/eni*; do l=${l##*/}
			echo $l $(cat /sys/class/net/$l/mtu /sys/class/net/$l/address /proc/sys/net/ipv4/conf/$l/rp_filter) $(ip link show $l | grep -o ',UP')
		done`)
	return strings.NewReplacer(" linkdown", "", " dead", "").Replace(out)
}

// keep starts a Keeper that has learned what is there.
func (n *node) keep(pods Pods) (repairs func() map[Kind]int) {
	n.t.Helper()
	var mu sync.Mutex
	total := map[Kind]int{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- n.host.KeepPods(ctx, pods, func(r Repair) {
			mu.Lock()
			defer mu.Unlock()
			for k, c := range r.Changes {
				total[k] += c
			}
		})
	}()
	n.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
	// It listens once it brings a route of a canary back.
	return func() map[Kind]int {
		mu.Lock()
		defer mu.Unlock()
		out := map[Kind]int{}
		for k, c := range total {
			out[k] = c
		}
		return out
	}
}

func TestPodsAreKept(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2)
	l := &ledger{}
	l.assign("10.0.1.31", "a")
	l.assign("10.0.1.32", "b")
	l.assign("2001:db8::31", "c")
	n.wire("eni0000000000a", "10.0.1.31")
	n.wire("eni0000000000c", "2001:db8::31")
	repairs := n.keep(l)
	awaitKeeper(n, l)
	n.wire("eni0000000000b", "10.0.1.32") // while it listens
	want := n.podState()
	for name, damage := range map[string]string{
		"table flushed":        "ip route flush table 5120",
		"table flushed, IPv6":  "ip -6 route flush table 5120",
		"route in main":        "ip route delete 10.0.1.32",
		"route elsewhere":      "ip route replace 10.0.1.31 dev eth0 scope link table 5120",
		"route through a hop":  "ip route replace 10.0.1.32 via 10.0.1.1 dev eth0 table 5120 proto static",
		"route of another pod": "ip route replace 10.0.1.31 dev eni0000000000b scope link",
		"blackhole":            "ip route replace blackhole 10.0.1.31 table 5120",
		"link down":            "ip link set eni0000000000b down",
		"link down and up":     "ip link set eni0000000000a down; ip link set eni0000000000a up",
		"MTU":                  "ip link set eni0000000000a mtu 1280",
		"MAC":                  "ip link set eni0000000000b address 02:00:00:00:77:77",
		"rp_filter":            "echo 1 > /proc/sys/net/ipv4/conf/eni0000000000b/rp_filter",
	} {
		n.Run("sh", "-e", "-c", damage)
		eventually(t, name, func() bool { return n.podState() == want })
	}
	if r := repairs(); r[KindPodRoute] == 0 || r[KindPodLink] == 0 {
		t.Errorf("counted %v", r)
	}
}

// awaitKeeper returns when the Keeper hears the kernel: it brings back what a pod of its own loses.
func awaitKeeper(n *node, l *ledger) {
	n.t.Helper()
	l.assign("10.0.1.99", "canary")
	n.wire("eni0000000000z", "10.0.1.99")
	eventually(n.t, "the Keeper listens", func() bool {
		// A route that nobody has seen is not repaired.
		n.Run("sh", "-c", "ip route replace 10.0.1.99 dev eni0000000000z scope link table 5120 proto 89; ip route delete 10.0.1.99 dev eni0000000000z")
		for range 40 {
			if strings.Contains(n.Run("ip", "route"), "10.0.1.99") {
				return true
			}
			<-time.After(25 * time.Millisecond)
		}
		return false
	})
	l.release("10.0.1.99")
	n.Run("ip", "link", "delete", "eni0000000000z")
}

// Between the word that a pod lives and the write, the pod is released, the plugin removes its routes, and another pod
// may get the address: what the repair has written goes, and only that.
func TestKeeperLeavesAddAndDelAlone(t *testing.T) {
	t.Parallel()
	for _, reused := range []bool{false, true} {
		t.Run(fmt.Sprintf("reused=%v", reused), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1)
			l := &ledger{}
			n.keep(l)
			awaitKeeper(n, l)
			l.assign("10.0.1.31", "a")
			n.wire("eni0000000000a", "10.0.1.31")
			var once sync.Once
			released := make(chan struct{})
			l.mu.Lock()
			l.after = func() {
				once.Do(func() {
					l.release("10.0.1.31")
					n.Run("sh", "-c", "ip route delete 10.0.1.31 table 5120; ip route delete 10.0.1.31; true")
					if reused {
						l.assign("10.0.1.31", "b")
						n.wire("eni0000000000b", "10.0.1.31")
					}
					close(released)
				})
			}
			l.mu.Unlock()
			n.Run("ip", "route", "delete", "10.0.1.31", "table", "5120")
			<-released
			// The next repair proves that this one is over.
			l.assign("10.0.1.32", "c")
			n.wire("eni0000000000c", "10.0.1.32")
			n.Run("ip", "route", "delete", "10.0.1.32", "table", "5120")
			eventually(t, "another pod is repaired", func() bool {
				return strings.Contains(n.Run("ip", "route", "show", "table", "5120"), "10.0.1.32")
			})
			for _, table := range []string{"main", "5120"} {
				routes := n.Run("ip", "route", "show", "table", table)
				if strings.Contains(routes, "10.0.1.31 dev eni0000000000a") || strings.Contains(routes, "10.0.1.31 dev eni0000000000b") != reused {
					t.Errorf("table %s:\n%s", table, routes)
				}
			}
		})
	}
}

// TestRepairsRacePods: whatever pods come and go while routes are damaged and repaired, in the end there is a route for
// each pod that lives, to its own link, and none for any other.
func TestRepairsRacePods(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t, 1)
	l := &ledger{}
	n.keep(l)
	awaitKeeper(n, l)
	const addresses = 6
	vethOf := map[string]string{}
	made := 0
	for range 80 {
		address := fmt.Sprintf("10.0.1.%d", 31+r.IntN(addresses))
		veth, lives := vethOf[address]
		switch r.IntN(4) {
		case 0:
			n.Run("sh", "-c", fmt.Sprintf("ip route delete %s table 5120; ip route delete %s; true", address, address))
		case 1:
			n.Run("ip", "route", "flush", "table", "5120")
		default:
			if !lives {
				made++
				vethOf[address] = fmt.Sprintf("eni%011d", made)
				l.assign(address, vethOf[address])
				n.wire(vethOf[address], address)
				continue
			}
			// DEL: ipamd first, then the routes; the veth goes later, with its namespace.
			l.release(address)
			n.Run("sh", "-c", fmt.Sprintf("ip route delete %s table 5120; ip route delete %s; true", address, address))
			delete(vethOf, address)
			if r.IntN(2) == 0 {
				n.Run("ip", "link", "delete", veth)
			}
		}
	}
	eventually(t, "each pod has its routes, and nobody else has any", func() bool {
		for _, table := range []string{"main", "5120"} {
			var got, want []string
			for _, line := range strings.Split(n.Run("sh", "-c", "ip route show table "+table+" 2>/dev/null; true"), "\n") {
				if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[2], "eni") {
					got = append(got, f[0]+" "+f[2])
				}
			}
			for a, v := range vethOf {
				want = append(want, a+" "+v)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				return false
			}
		}
		return true
	})
}

func TestPace(t *testing.T) {
	t.Parallel()
	var p Pace
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if !p.Next().IsZero() {
		t.Error("the first repair has to wait")
	}
	// Somebody undoes every repair at once, for ten minutes.
	n := 0
	for end := now.Add(10 * time.Minute); now.Before(end); n++ {
		if at := p.Next(); at.After(now) {
			now = at
		}
		p.Did(now, true)
		now = now.Add(foldTime)
	}
	if n > streakFree+100 {
		t.Errorf("%d repairs in ten minutes", n)
	}
	if wait := p.Next().Sub(now); wait > paceLast {
		t.Errorf("the next one waits for %s", wait)
	}
	// After a time in peace it is as at first, also for a repair a second.
	now = now.Add(time.Minute)
	for range 100 {
		if wait := p.Next().Sub(now); wait > 0 {
			t.Fatalf("a repair after a time in peace waits for %s", wait)
		}
		p.Did(now, true)
		now = now.Add(streakGap + paceFirst + time.Millisecond)
	}
}

func TestPlanPodsKeepsWhatIsRight(t *testing.T) {
	t.Parallel()
	pod := Pod{Address: netip.MustParseAddr("10.0.1.31")}
	right := podRoutes(pod.Address, 7)
	foreign := right[1]
	foreign.metric = 50
	linkOf := func(Pod) int { return 7 }
	if got := planPods([]Pod{pod}, linkOf, append(right, foreign)); len(got) != 0 {
		t.Errorf("repairs %+v", got)
	}
	wrong := right[0]
	wrong.link = 8
	got := planPods([]Pod{pod}, linkOf, []route{wrong, right[1]})
	if len(got) != 1 || len(got[0].del) != 1 || len(got[0].add) != 1 || got[0].add[0].table != names.TablePods {
		t.Errorf("repairs %+v", got)
	}
}
