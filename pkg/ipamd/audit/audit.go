// Package audit compares who holds an address with who lives on the node. The kernel says who lives: a pod has a host
// veth whose name follows from its namespace and name.
//
// A pod that was deleted without ipamd has left a note (Notes). One whose veth is gone although no DEL came, and one
// whose ADD was cut short and that was never wired, are found by looking (Audit). And when the state file could not be
// read, the pod routes say which addresses are in use (Rebuild).
package audit

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/names"
)

// Times of an Audit. What was wired and is gone is released within 60 s: at the second look that misses it.
const (
	// lookEvery is the time between two looks.
	lookEvery = 20 * time.Second
	// Grace is how long a sandbox that asked for an address may take to be wired: a plugin wires its pod until 90 s
	// after its own start, and never later.
	Grace = 90*time.Second + 15*time.Second
)

// releaseTimeout bounds one release, which ends in a commit of the state.
const releaseTimeout = 15 * time.Second

// Allocator is who holds the allocations.
type Allocator interface {
	Add(context.Context, ipamd.AddRequest) (ipamd.AddReply, error)
	Del(context.Context, ipamd.DelRequest) (ipamd.DelReply, error)
}

// Options are what an Audit needs.
type Options struct {
	// Restored are the allocations that the last run left.
	Restored []checkpoint.Allocation
	// Links lists all links of the host.
	Links     func(context.Context) ([]Link, error)
	Allocator Allocator
	Clock     clockwork.Clock
	Log       *slog.Logger
}

// Audit reclaims addresses whose pod is not there. It passes requests through to the allocator, so that it hears who
// holds one.
type Audit struct {
	Options

	mu      sync.Mutex
	watched map[ipamd.Sandbox]*watch // guarded by mu, with all watches
}

// watch is a sandbox that holds an address, or is about to.
type watch struct {
	ipamd.Sandbox
	namespace, pod string
	asked          time.Time // when its last ADD came or was answered; of a restored one, the start
	asking         int       // ADDs without an answer
	holds          bool
	wired          bool      // its link was there since then
	missing        time.Time // the first of the looks in a row that missed it; zero: it was not missed
}

// Link is a link of the host.
type Link struct{ Name, MAC string }

// New returns an Audit of the allocations that were restored, and of those to come.
func New(o Options) *Audit {
	a := &Audit{Options: o, watched: map[ipamd.Sandbox]*watch{}}
	for _, r := range o.Restored {
		w := &watch{Sandbox: sandboxOf(r), namespace: r.Namespace, pod: r.Pod, holds: true, asked: o.Clock.Now()}
		// A link that the allocation was rebuilt from was there.
		_, w.wired = w.link()
		a.watched[w.Sandbox] = w
	}
	return a
}

// Add passes on.
func (a *Audit) Add(ctx context.Context, req ipamd.AddRequest) (ipamd.AddReply, error) {
	w := a.begin(req)
	reply, err := a.Allocator.Add(ctx, req)
	a.mu.Lock()
	defer a.mu.Unlock()
	w.asking--
	w.asked = a.Clock.Now()
	w.holds = w.holds || err == nil
	if !w.holds && w.asking == 0 && a.watched[req.Sandbox] == w {
		delete(a.watched, req.Sandbox)
	}
	return reply, err
}

// begin watches a sandbox from its ADD on. One that is being wired now is none that is gone.
func (a *Audit) begin(req ipamd.AddRequest) *watch {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.watched[req.Sandbox]
	if w == nil {
		w = &watch{Sandbox: req.Sandbox, namespace: req.Namespace, pod: req.Pod}
		a.watched[req.Sandbox] = w
	}
	w.asking++
	w.asked, w.wired, w.missing = a.Clock.Now(), false, time.Time{}
	return w
}

// Del passes on.
func (a *Audit) Del(ctx context.Context, req ipamd.DelRequest) (ipamd.DelReply, error) {
	reply, err := a.Allocator.Del(ctx, req)
	if err == nil || errors.Is(err, datastore.ErrUnknownPod) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if w := a.watched[req.Sandbox]; w != nil && w.asking == 0 {
			delete(a.watched, req.Sandbox)
		}
	}
	return reply, err
}

// Run looks now and then, until ctx ends.
func (a *Audit) Run(ctx context.Context) {
	for {
		a.look(ctx)
		timer := a.Clock.NewTimer(lookEvery)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.Chan():
		}
	}
}

// look releases what was missed before and is missed again. A look that fails has seen everybody.
func (a *Audit) look(ctx context.Context) {
	now := a.Clock.Now()
	a.mu.Lock()
	idle := len(a.watched) == 0
	a.mu.Unlock()
	if idle {
		return
	}
	links, err := a.Links(ctx)
	if err != nil {
		a.Log.Warn("allocations not compared with the kernel", "error", err)
	}
	once, again := a.missed(links, err != nil, now)
	if once > 0 {
		a.Log.Info("pods have no interface, looking again", "pods", once, "after", lookEvery)
	}
	for _, w := range again {
		a.reclaim(ctx, w)
	}
}

// missed brings the watches up to date with what was seen at a time. It counts those that were missed for the first
// time and copies those that are to be released.
func (a *Audit) missed(links []Link, everybody bool, now time.Time) (once int, again []watch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	seen := newLinkSet(links, a.watched)
	for _, w := range a.watched {
		switch {
		case everybody:
			w.missing = time.Time{}
		case seen.has(w):
			w.wired, w.missing = true, time.Time{}
		case w.asking > 0 || !w.asked.Before(now):
			// Asked for while the kernel was.
		case !w.wired && now.Sub(w.asked) < Grace:
			// Its plugin may be at work.
		case w.missing.IsZero():
			w.missing = now
			once++
		default:
			again = append(again, *w)
		}
	}
	slices.SortFunc(again, func(x, y watch) int { return cmp.Compare(x.ContainerID+x.IfName, y.ContainerID+y.IfName) })
	return once, again
}

// reclaim releases what a sandbox holds, unless it has asked for it again since it was missed.
func (a *Audit) reclaim(ctx context.Context, w watch) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	log := a.Log.With("container", w.ContainerID, "namespace", w.namespace, "pod", w.pod)
	reply, err := a.Allocator.Del(ctx, ipamd.DelRequest{Sandbox: w.Sandbox, Namespace: w.namespace, Pod: w.pod, Gone: w.missing})
	switch {
	case err == nil:
		log.Warn("address reclaimed: its pod was never wired, or is gone", "address", reply.Address, "wired", w.wired)
	case errors.Is(err, datastore.ErrUnknownPod): // a DEL, or a note of one, came first
	default:
		log.Error("address of a pod that is gone not reclaimed", "error", err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.watched[w.Sandbox]; now != nil && now.asking == 0 && now.asked.Equal(w.asked) {
		delete(a.watched, w.Sandbox)
	}
}

// linkSet are the host's links.
type linkSet struct {
	exact    map[string]bool
	suffixes map[string][]Link
	// owners has the sandbox of each veth's address.
	owners map[string]ipamd.Sandbox
}

func newLinkSet(links []Link, watched map[ipamd.Sandbox]*watch) linkSet {
	s := linkSet{make(map[string]bool, len(links)), make(map[string][]Link, len(links)), make(map[string]ipamd.Sandbox, len(watched))}
	for _, l := range links {
		s.exact[l.Name] = true
		suffix := l.Name[max(0, len(l.Name)-suffixLen):]
		s.suffixes[suffix] = append(s.suffixes[suffix], l)
	}
	for id := range watched {
		mac := names.VethMAC(id.ContainerID, id.IfName, names.HostEnd)
		s.owners[net.HardwareAddr(mac[:]).String()] = id
	}
	return s
}

// has tells whether a sandbox has a link. Only the end of the name is compared: the prefix is the operator's, and may
// have changed. The next sandbox of the same pod has a link of that name, too: the link's address tells them apart, but
// for links that a predecessor made. A sandbox of the time before names were recorded cannot be looked for, and is taken
// to have one.
func (s linkSet) has(w *watch) bool {
	if link, ok := w.link(); ok {
		return s.exact[link]
	}
	if w.namespace == "" || w.pod == "" {
		return true
	}
	return slices.ContainsFunc(s.suffixes[names.VethSuffix(w.namespace, w.pod, 0)], func(l Link) bool {
		owner, known := s.owners[l.MAC]
		return !known || owner == w.Sandbox
	})
}

const suffixLen = 11 // of names.VethSuffix

func sandboxOf(m checkpoint.Allocation) ipamd.Sandbox {
	return ipamd.Sandbox{NetworkName: m.NetworkName, ContainerID: m.ContainerID, IfName: m.IfName}
}

// rebuiltPrefix starts the container id of an allocation that was read from the kernel. No runtime's id has a colon.
const rebuiltPrefix = "link:"

// link is the link that an allocation was rebuilt from.
func (w *watch) link() (string, bool) { return strings.CutPrefix(w.ContainerID, rebuiltPrefix) }
