// Package egress is the logic of the egress-cni binary. Behind aws-cni in a chain it gives each pod one more interface,
// with an address that only the node knows, by which it reaches the family that it has no address of the VPC in: IPv6 in an
// IPv4 cluster, or IPv4 in an IPv6 cluster. The source NAT for it is ipamd's: one rule for all pods (hostnet.Egress).
//
// Addresses are kept as host-local keeps them, so that the pods of versions that execute host-local are found, and the other
// way round.
package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"vpccni/pkg/cniproc"
	"vpccni/pkg/hostlocal"
	"vpccni/pkg/networkutils/podnet"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// Timeout bounds one execution, from the start of the process, and Grace is the time after that for error messages; as for
// aws-cni.
const (
	Timeout = 90 * time.Second
	Grace   = 5 * time.Second
)

// minAge is the age from which a reserved address can be garbage: no ADD that may still be at work is older.
const minAge = Timeout + Grace + 10*time.Second

// ruleTimeout is how long an ADD waits for ipamd's rule. aws-cni has just had an address from ipamd, so the rule stands, or
// is about to come back.
const (
	ruleTimeout = 5 * time.Second
	rulePause   = 50 * time.Millisecond
)

// Plugin carries out CNI's verbs. Each method is called at most once per process.
type Plugin struct {
	// Stdout takes the result of ADD.
	Stdout io.Writer
}

type call struct {
	args *skel.CmdArgs
	conf *config
	log  *slog.Logger
}

func begin(verb string, args *skel.CmdArgs) (*call, error) {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return nil, err
	}
	log := cniproc.NewLogger(conf.LogFile, conf.LogLevel).With("cmd", verb, "container", args.ContainerID, "ifname", args.IfName)
	slog.SetDefault(log)
	return &call{args: args, conf: conf, log: log}, nil
}

// Add wires the pod's way out and prints the previous result with its interface added; one that is not enabled prints the
// previous result. If anything fails, all of it is taken back.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) error {
	started := time.Now()
	c, err := begin("ADD", args)
	if err != nil {
		return err
	}
	if err := c.conf.addable(); err != nil {
		return err
	}
	if !c.conf.enabled() {
		return c.printPrevious(p.Stdout)
	}
	w, err := c.conf.way()
	if err != nil {
		return err
	}
	if err := waitForRule(ctx, w.addrs.Subnet.Addr()); err != nil {
		c.log.Error("the pod would send with an address that nobody can answer to", "err", err)
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("add cmd: %v", err), "")
	}
	addr, err := c.reserve(ctx, w.addrs)
	if err != nil {
		c.log.Error("no address for the way out", "err", err)
		if errors.Is(err, hostlocal.ErrFull) {
			return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("add cmd: %v", err), "")
		}
		return fmt.Errorf("add cmd: %w", err)
	}
	if err := c.wire(ctx, p.Stdout, w, addr); err != nil {
		c.log.Error("the way out could not be set up", "err", err)
		err = fmt.Errorf("add cmd: failed to setup egress: %w", err)
		return errors.Join(err, c.release(ctx))
	}
	c.log.Info("added", "ip", addr, "took", time.Since(started))
	return nil
}

// wire makes the interface and prints the result, or leaves nothing behind but the address's reservation.
func (c *call) wire(ctx context.Context, out io.Writer, w way, addr netip.Addr) error {
	if !w.v6 {
		forwardIPv4(c.log)
	}
	e := podnet.Egress{
		Netns: c.args.Netns, ContainerID: c.args.ContainerID, PodInterface: c.args.IfName,
		Address: addr, Range: w.addrs.Subnet, MTU: w.mtu,
	}
	wired, err := podnet.SetupEgress(ctx, e)
	if err != nil {
		return err
	}
	if err := c.printWith(out, e); err != nil {
		return errors.Join(err, wired.Undo(ctx))
	}
	return nil
}

// forwardIPv4 lets the host forward what pods send. That of IPv6 is the init container's: it changes how the host takes
// router advertisements.
func forwardIPv4(log *slog.Logger) {
	const path = "/proc/sys/net/ipv4/ip_forward"
	if now, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(now)) == "1" {
		return
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		log.Warn("IPv4 forwarding is off", "err", err)
	}
}

// waitForRule returns when the host does source NAT for the range.
func waitForRule(ctx context.Context, addr netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	tick := time.NewTicker(rulePause)
	defer tick.Stop()
	for {
		err := podnet.EgressRule(ctx, addr)
		switch {
		case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("ipamd does no source NAT for %s after %s: is egress on in its configuration, too?", addr, ruleTimeout)
		case !errors.Is(err, podnet.ErrNoEgressRule):
			return err
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// reserve takes an address for the sandbox. When there is none, those of sandboxes that the host knows nothing of are
// taken back first.
func (c *call) reserve(ctx context.Context, r hostlocal.Range) (netip.Addr, error) {
	store, err := hostlocal.Open(ctx, c.conf.IPAM.DataDir, c.conf.Name)
	if err != nil {
		return netip.Addr{}, err
	}
	defer store.Close()
	owner := hostlocal.Owner{Container: c.args.ContainerID, IfName: c.args.IfName}
	addr, err := store.Reserve(ctx, owner, r)
	if !errors.Is(err, hostlocal.ErrFull) {
		return addr, err
	}
	held, heldErr := store.Held()
	if heldErr != nil {
		return netip.Addr{}, errors.Join(err, heldErr)
	}
	var old []podnet.EgressSandbox
	for _, h := range held {
		if time.Since(h.Since) > minAge {
			old = append(old, podnet.EgressSandbox{ContainerID: h.Owner.Container, Address: h.Addr})
		}
	}
	gone, goneErr := podnet.EgressGone(ctx, old)
	if goneErr != nil || len(gone) == 0 {
		return netip.Addr{}, errors.Join(err, goneErr)
	}
	for _, s := range gone {
		if err := store.Release(s.Address); err != nil {
			return netip.Addr{}, err
		}
	}
	c.log.Warn("the range was full: addresses without a sandbox taken back", "addresses", len(gone))
	return store.Reserve(ctx, owner, r)
}

// Del frees what the sandbox has, by its id alone: whether its network namespace is there, and also if the plugin is not
// enabled any more.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	c, err := begin("DEL", args)
	if err != nil {
		return err
	}
	if err := c.release(ctx); err != nil {
		c.log.Error("the way out is not taken back", "err", err)
		return fmt.Errorf("del cmd: %w", err)
	}
	return nil
}

func (c *call) release(ctx context.Context) error {
	return c.releaseIf(ctx, func(h hostlocal.Reservation) bool { return h.Owner.Container == c.args.ContainerID })
}

// releaseIf frees the addresses that are chosen. The host's routes to them go first, while nobody else can get them; the
// veth goes with its network namespace.
func (c *call) releaseIf(ctx context.Context, gone func(hostlocal.Reservation) bool) error {
	if !c.conf.stateful() {
		return nil
	}
	store, err := hostlocal.OpenExisting(ctx, c.conf.IPAM.DataDir, c.conf.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil // nobody was ever given an address
	case err != nil:
		return err
	}
	defer store.Close()
	held, err := store.Held()
	if err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, h := range held {
		if gone(h) {
			addrs = append(addrs, h.Addr)
		}
	}
	if err := podnet.TeardownEgress(ctx, addrs); err != nil {
		return err
	}
	var failed error
	for _, addr := range addrs {
		failed = errors.Join(failed, store.Release(addr))
	}
	if len(addrs) > 0 && failed == nil {
		c.log.Info("deleted", "ips", addrs)
	}
	return failed
}
