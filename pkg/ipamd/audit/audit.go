// Package audit compares what the state file says with who lives on the node. The kernel says who lives: a pod has a
// host veth whose name follows from its namespace and name.
//
// It covers the gaps of a restart. A pod that was deleted meanwhile has left a note (Notes). An allocation whose ADD was
// cut short has no veth and may never be deleted (Audit). And when the state file could not be read, the pod routes say
// which addresses are in use (Rebuild).
package audit

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/ipamd/datastore"
	"vpccni/pkg/networkutils/names"
)

// Delay is the time between the two observations that it takes to reclaim an address. A plugin that asked just before
// the restart may wire its pod until 90 s after its own start, and never later.
const Delay = 90*time.Second + 15*time.Second

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
	// Links lists the names of all links of the host.
	Links     func(context.Context) ([]string, error)
	Allocator Allocator
	Clock     clockwork.Clock
	Log       *slog.Logger
}

// Audit reclaims restored allocations whose pod is not there. It passes requests through to the allocator, so that it
// hears of sandboxes that are alive after all.
type Audit struct {
	Options

	mu sync.Mutex
	// suspects had no link at the last look, and nobody has asked for them since. Guarded by mu.
	suspects map[ipamd.Sandbox]bool
}

// New returns an Audit of the allocations that were restored.
func New(o Options) *Audit { return &Audit{Options: o} }

// Add passes on. A sandbox that is being wired now is none that was forgotten.
func (a *Audit) Add(ctx context.Context, req ipamd.AddRequest) (ipamd.AddReply, error) {
	a.clear(req.Sandbox)
	return a.Allocator.Add(ctx, req)
}

// Del passes on.
func (a *Audit) Del(ctx context.Context, req ipamd.DelRequest) (ipamd.DelReply, error) {
	a.clear(req.Sandbox)
	return a.Allocator.Del(ctx, req)
}

func (a *Audit) clear(s ipamd.Sandbox) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.suspects, s)
}

// Run looks now and after each Delay, and releases what had no link two times in a row. It returns when ctx ends, or when
// there is nobody left to look for: pods that are there will be deleted by their sandbox, except for those whose
// sandbox is not known. A look that fails has seen everybody.
func (a *Audit) Run(ctx context.Context) {
	watched := a.Restored
	for len(watched) > 0 {
		missing, err := a.missing(ctx, watched)
		if err != nil {
			a.Log.Warn("restored allocations not compared with the kernel", "error", err)
			a.suspect(nil)
		} else {
			a.reclaimSuspects(ctx, missing)
			watched = a.rest(watched, missing)
		}
		if len(watched) == 0 {
			return
		}
		timer := a.Clock.NewTimer(Delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.Chan():
		}
	}
}

// reclaimSuspects releases what is missing again, and remembers what is missing for the first time.
func (a *Audit) reclaimSuspects(ctx context.Context, missing []checkpoint.Allocation) {
	var first []checkpoint.Allocation
	for _, m := range missing {
		if a.isSuspect(m) {
			a.reclaim(ctx, m)
		} else {
			first = append(first, m)
		}
	}
	if len(first) > 0 {
		a.Log.Info("restored allocations have no interface, looking again", "allocations", len(first), "after", Delay)
	}
	a.suspect(first)
}

// rest is who has to be looked at again: new suspects, and pods that nobody else will report gone.
func (a *Audit) rest(watched, missing []checkpoint.Allocation) []checkpoint.Allocation {
	gone := make(map[ipamd.Sandbox]bool, len(missing))
	for _, m := range missing {
		gone[sandboxOf(m)] = true
	}
	var out []checkpoint.Allocation
	for _, m := range watched {
		_, rebuilt := linkOf(m)
		if rebuilt && !gone[sandboxOf(m)] || a.isSuspect(m) {
			out = append(out, m)
		}
	}
	return out
}

func (a *Audit) suspect(missing []checkpoint.Allocation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.suspects = make(map[ipamd.Sandbox]bool, len(missing))
	for _, m := range missing {
		a.suspects[sandboxOf(m)] = true
	}
}

func (a *Audit) isSuspect(m checkpoint.Allocation) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.suspects[sandboxOf(m)]
}

func (a *Audit) reclaim(ctx context.Context, m checkpoint.Allocation) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	log := a.Log.With("address", m.Address, "container", m.ContainerID, "namespace", m.Namespace, "pod", m.Pod)
	_, err := a.Allocator.Del(ctx, ipamd.DelRequest{Sandbox: sandboxOf(m), Namespace: m.Namespace, Pod: m.Pod})
	switch {
	case err == nil:
		log.Warn("address reclaimed: its pod was never wired, or is gone")
	case errors.Is(err, datastore.ErrUnknownPod):
	default:
		log.Error("address of a pod that is gone not reclaimed", "error", err)
	}
}

// missing returns those of the allocations whose pod has no link on the host.
func (a *Audit) missing(ctx context.Context, of []checkpoint.Allocation) ([]checkpoint.Allocation, error) {
	if len(of) == 0 {
		return nil, nil
	}
	links, err := a.Links(ctx)
	if err != nil {
		return nil, err
	}
	exact, suffixes := make(map[string]bool, len(links)), make(map[string]bool, len(links))
	for _, name := range links {
		exact[name] = true
		suffixes[name[max(0, len(name)-suffixLen):]] = true
	}
	var out []checkpoint.Allocation
	for _, m := range of {
		if link, ok := linkOf(m); ok {
			if !exact[link] {
				out = append(out, m)
			}
			continue
		}
		// An entry of the time before names were recorded cannot be looked for.
		if m.Namespace == "" || m.Pod == "" {
			continue
		}
		// Only the end of the name is compared: the prefix is the operator's, and may have changed.
		if !suffixes[names.VethSuffix(m.Namespace, m.Pod, 0)] {
			out = append(out, m)
		}
	}
	return out, nil
}

const suffixLen = 11 // of names.VethSuffix

func sandboxOf(m checkpoint.Allocation) ipamd.Sandbox {
	return ipamd.Sandbox{NetworkName: m.NetworkName, ContainerID: m.ContainerID, IfName: m.IfName}
}

// rebuiltPrefix starts the container id of an allocation that was read from the kernel. No runtime's id has a colon.
const rebuiltPrefix = "link:"

func linkOf(m checkpoint.Allocation) (string, bool) {
	return strings.CutPrefix(m.ContainerID, rebuiltPrefix)
}
