// Package podnet wires one pod: a veth pair made in its final namespaces by a single message, the pod's routes and
// its gateway's neighbour entry, and the route of the pod's address on the host. What is wanted is a value (Pod);
// the rtnetlink messages that make it so are computed without I/O (state.go) and sent in one batch per namespace.
//
// The package lives in a process that starts, wires one pod and ends, so it dumps nothing, moves no device between
// namespaces (that waits for RCU grace periods under the lock that every other ADD needs) and starts no program.
// Everything that Setup makes hangs on its links, but for rules of the pod's own: taking these away is a complete roll-back.
package podnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vpccni/pkg/networkutils/names"
)

// Pod is the wiring wanted for one sandbox.
type Pod struct {
	// Netns is the path of the sandbox's network namespace.
	Netns string
	// ContainerID identifies the sandbox; the MAC addresses are derived from it, so a repeated Setup gives the
	// same ones.
	ContainerID string
	// Interfaces are the sandbox's interfaces; the first one gets the default route of table main.
	Interfaces []Interface
}

// Interface is one interface of a pod.
type Interface struct {
	// Name is the container end's name, HostVeth the host end's.
	Name     string
	HostVeth string
	// Address is the pod's address, with a prefix length of 32 or 128.
	Address netip.Prefix
	// Address6 is the IPv6 address that a pod has beside an IPv4 Address; zero for pods of one family.
	Address6 netip.Prefix
	// MTU of both ends, in bytes.
	MTU int
	// SourceCheck has the host drop what the pod sends from an address that is not routed back to it.
	SourceCheck bool
	// RuleTable, unless 0, gives the address rules of its own on the host: one that leads to it, and one that sends what
	// comes from it to this table, if that is not main.
	RuleTable int
	// Branch, if set, is the branch ENI that the pod's packets take. Only a pod's single interface can have one.
	Branch *Branch
}

// setupReserve is the part of the caller's time that Setup keeps for taking back what it made. Removing a veth waits
// for RCU grace periods, 20 ms on an idle machine and several times that behind other writers.
const setupReserve = 2 * time.Second

// Wired is a pod that was set up. Its zero value is one that was not.
type Wired struct {
	dial  dialer
	made  []int32   // indexes of the host veths, and of a branch ENI's VLAN link
	rules []message // that take back rules which were made
}

// Undo takes the pod's wiring back, for a caller that could not finish what else the pod needs. The links are deleted
// by index: their names may belong to somebody else by now.
func (w Wired) Undo(ctx context.Context) error {
	if len(w.made) == 0 {
		return nil
	}
	host, err := w.dial.open()
	if err != nil {
		return err
	}
	defer host.close()
	return w.undo(ctx, host)
}

func (w Wired) undo(ctx context.Context, host *conn) error {
	messages := slices.Clone(w.rules)
	for _, index := range w.made {
		messages = append(messages, deleteLinkByIndex(index))
	}
	if len(messages) == 0 {
		return nil
	}
	if err := host.all(ctx, messages); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// Setup wires the pod, or leaves nothing behind. A veth of the same name, which only an older sandbox of the same pod
// can have left, is replaced. Nothing is written to the host after ctx's deadline, apart from what the kernel has
// been handed before: by then the runtime may be starting the pod's next sandbox under the same names.
func Setup(ctx context.Context, pod Pod) (Wired, error) {
	forward, cancel := WithReserve(ctx, time.Now())
	defer cancel()
	return setup(forward, ctx, pod, dialer{})
}

// WithReserve is ctx with an earlier deadline: what is begun under it can be taken back under ctx.
func WithReserve(ctx context.Context, now time.Time) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(setupReserve, deadline.Sub(now)/4)))
}

// setup makes changes as long as forward lasts, and takes them back as long as back does.
func setup(forward, back context.Context, pod Pod, dial dialer) (Wired, error) {
	if err := errors.Join(pod.validate(), pod.validateBranch()); err != nil {
		return Wired{}, err
	}
	return wire(back, pod.Netns, dial, func(w *wiring) error {
		for i := range pod.Interfaces {
			if err := w.add(forward, pod, i); err != nil {
				return fmt.Errorf("interface %s of the pod (host end %s): %w", pod.Interfaces[i].Name, pod.Interfaces[i].HostVeth, err)
			}
		}
		return nil
	})
}

// wire opens the way to a pod's network namespace for add, and takes back what it made if it fails.
func wire(back context.Context, path string, dial dialer, add func(*wiring) error) (Wired, error) {
	netns, err := os.Open(path)
	if err != nil {
		return Wired{}, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer netns.Close()
	if err := notOurs(netns); err != nil {
		return Wired{}, err
	}
	host, err := dial.open()
	if err != nil {
		return Wired{}, err
	}
	defer host.close()

	w := wiring{Wired: Wired{dial: dial}, host: host, netns: int(netns.Fd())}
	if err := add(&w); err != nil {
		return Wired{}, errors.Join(err, w.undo(back, host))
	}
	return w.Wired, nil
}

// wiring is a Setup in progress.
type wiring struct {
	Wired
	host  *conn
	netns int
}

func (w *wiring) add(ctx context.Context, pod Pod, i int) error {
	iface := pod.Interfaces[i]
	macs := pod.macs(i)
	veth, err := w.makeVeth(ctx, iface, macs)
	if err != nil {
		return err
	}
	v6 := iface.v6().IsValid()
	if err := writeSysctls(ctx, hostSysctls(iface.HostVeth, v6)); err != nil {
		return err
	}
	inPod, err := w.dial.openIn(ctx, w.netns, podSysctls(iface.Name, v6))
	if err != nil {
		return err
	}
	defer inPod.close()
	if err := inPod.all(ctx, podState(iface, i, veth.pod, macs.host)); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if iface.RuleTable != 0 {
		for _, addr := range iface.addrs() {
			w.rules = append(w.rules, takeBack(deleteRuleTo(addr)), takeBack(deleteRuleFrom(addr)))
		}
	}
	if iface.Branch != nil {
		err = w.branch(ctx, pod, iface, veth.host)
	} else {
		err = w.host.all(ctx, hostState(iface, veth.host))
	}
	if err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	return w.ready(ctx, inPod, iface.HostVeth, iface.Name, iface.v6())
}

// ready waits until packets pass the pair both ways, and reach the pod's IPv6 address if it has one.
func (w *wiring) ready(ctx context.Context, inPod *conn, hostVeth, name string, v6 netip.Addr) error {
	if err := waitRunning(ctx, w.host, hostVeth); err != nil {
		return fmt.Errorf("on the host: %w", err)
	}
	err := waitRunning(ctx, inPod, name)
	if err == nil && v6.IsValid() {
		err = waitOwned(ctx, inPod, v6)
	}
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	return nil
}

// makeVeth creates the pair and learns its indexes: one write to the kernel unless the name is taken or the indexes
// are unlucky.
func (w *wiring) makeVeth(ctx context.Context, iface Interface, macs macPair) (vethIndexes, error) {
	var want vethIndexes // zero: the kernel's choice
	for cleared := false; ; {
		replies, err := w.host.send(ctx, []message{newVeth(iface, macs, w.netns, want), getLink(iface.HostVeth)})
		if err != nil {
			return vethIndexes{}, err
		}
		switch err := replies[0].err; {
		case errors.Is(err, unix.EEXIST) && !cleared:
			cleared = true
			if err := w.clear(ctx, iface.HostVeth); err != nil {
				return vethIndexes{}, err
			}
			continue
		case err != nil:
			return vethIndexes{}, err
		}
		veth, err := w.indexes(ctx, iface, replies[1])
		if err != nil {
			return vethIndexes{}, err
		}
		w.made = append(w.made, veth.host)
		if veth.host != veth.pod || want != (vethIndexes{}) {
			return veth, nil
		}
		// Two ends with the same number look like one device to the kernel's link watch: it lets them wait for its
		// next tick, up to a second, in which all of the pod's packets are lost.
		if err := w.host.all(ctx, []message{deleteLinkByIndex(veth.host)}); err != nil {
			return vethIndexes{}, err
		}
		w.made = w.made[:len(w.made)-1]
		// The kernel hands out indexes upwards: the host's is not taken again, the pod's next one is free.
		want = vethIndexes{host: veth.host, pod: veth.pod + 1}
	}
}

// clear deletes the link that has a host veth's name. If there is none, the older sandbox's has gone with its namespace
// this very moment, or it is the name inside the pod that is taken, which is not ours to delete: the next try will tell.
func (w *wiring) clear(ctx context.Context, hostVeth string) error {
	replies, err := w.host.send(ctx, []message{deleteLinkByName(hostVeth)})
	if err == nil && !errors.Is(replies[0].err, unix.ENODEV) {
		err = replies[0].err
	}
	return err
}

func (w *wiring) indexes(ctx context.Context, iface Interface, link reply) (vethIndexes, error) {
	err := link.err
	if err == nil {
		var veth vethIndexes
		if veth, err = parseVeth(link.payload); err == nil {
			return veth, nil
		}
	}
	_, undoErr := w.host.send(ctx, []message{deleteLinkByName(iface.HostVeth)})
	return vethIndexes{}, errors.Join(err, undoErr)
}

// notOurs refuses the namespace that the caller is in: it would give the host a pod's default route.
func notOurs(netns *os.File) error {
	pod, err := netns.Stat()
	if err != nil {
		return err
	}
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	if os.SameFile(pod, own) {
		return fmt.Errorf("%s is the host's own network namespace", netns.Name())
	}
	return nil
}

func (p Pod) validate() error {
	if len(p.Interfaces) == 0 {
		return errors.New("a pod needs an interface")
	}
	for _, iface := range p.Interfaces {
		for _, name := range []string{iface.Name, iface.HostVeth} {
			if name == "" || len(name) >= unix.IFNAMSIZ {
				return fmt.Errorf("%q is no name for an interface", name)
			}
		}
		if !podAddress(iface.Address) {
			return fmt.Errorf("%s is no address for a pod", iface.Address)
		}
		if second := iface.Address6; second.IsValid() && (!podAddress(second) || !second.Addr().Is6() || !iface.Address.Addr().Is4()) {
			return fmt.Errorf("%s is no second address for a pod with %s", second, iface.Address)
		}
	}
	return nil
}

func (p Pod) validateBranch() error {
	for _, iface := range p.Interfaces {
		switch {
		case iface.Branch == nil:
		case len(p.Interfaces) > 1 || iface.Address6.IsValid():
			return errors.New("a pod on a branch ENI has one interface with one address")
		default:
			return iface.Branch.validate(iface.Address.Addr())
		}
	}
	return nil
}

func podAddress(p netip.Prefix) bool {
	addr := p.Addr()
	return p.IsSingleIP() && !addr.Is4In6() && addr.Zone() == "" && addr.IsGlobalUnicast()
}

// addrs are the interface's addresses, of which there is one for each family at most.
func (i Interface) addrs() []netip.Addr {
	list := []netip.Addr{i.Address.Addr()}
	if i.Address6.IsValid() {
		list = append(list, i.Address6.Addr())
	}
	return list
}

// v6 is the interface's IPv6 address; invalid if it has none.
func (i Interface) v6() netip.Addr {
	for _, addr := range i.addrs() {
		if addr.Is6() {
			return addr
		}
	}
	return netip.Addr{}
}

// mac is an Ethernet address.
type mac [6]byte

// macPair holds the addresses of the two ends of a veth pair. They are given explicitly because udev's
// MACAddressPolicy=persistent changes those that the kernel made up, after the pod has learned its gateway's.
type macPair struct{ host, pod mac }

func (p Pod) macs(i int) macPair {
	name := p.Interfaces[i].Name
	return macPair{host: names.VethMAC(p.ContainerID, name, names.HostEnd), pod: names.VethMAC(p.ContainerID, name, names.PodEnd)}
}
