package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// errAway is what a CNI plugin gets from an ipamd that is not there.
var errAway = errors.New("ipamd does not answer")

// A kubelet that could not make a pod's sandbox tries again after its back-off, 10 s and up to a half more.
const (
	sandboxBackoff = 10 * time.Second
	sandboxJitter  = 0.5
)

// Pod is a pod of a trace.
type Pod struct {
	At   time.Duration // when it is scheduled, after the start of the run
	Life time.Duration // how long after that it is deleted
	// Job pods do their work: Life begins when they have their address.
	Job bool
}

// pod is a pod of the run.
type pod struct {
	name      string
	container string // of the present try
	try       int
	since     time.Time
	life      time.Duration // of a job
	running   bool
	gone      bool
	answer    func(error)
}

// kubelet has a node's pods come and go.
type kubelet struct {
	f    *fleet
	node node
	name string
	next int
	// Kubernetes gives a node no pods before it is ready; those that the trace has for it by then come at that moment.
	ready   bool
	pending []Pod
}

// nodeReady says that the node serves for the first time.
func (k *kubelet) nodeReady() {
	k.ready = true
	for _, x := range k.pending {
		k.begin(x)
	}
	k.pending = nil
}

// follow takes the pods of a trace, ordered by time.
func (k *kubelet) follow(pods []Pod) {
	if len(pods) == 0 {
		return
	}
	first := pods[0]
	k.f.world.At(start.Add(first.At), func() {
		k.begin(first)
		k.follow(pods[1:])
	})
}

func (k *kubelet) begin(x Pod) {
	if !k.ready {
		k.pending = append(k.pending, x)
		return
	}
	k.next++
	p := &pod{name: fmt.Sprintf("%s-%d", k.name, k.next), since: k.f.world.Now()}
	k.f.tally.pods++
	if x.Job {
		p.life = x.Life
	} else {
		k.f.world.After(x.Life, func() { k.end(p) })
	}
	k.try(p)
}

// try makes a sandbox.
func (k *kubelet) try(p *pod) {
	p.try++
	p.container = fmt.Sprintf("%s-%d", p.name, p.try)
	k.f.tally.adds++
	k.node.add(p, func(err error) {
		switch {
		case p.gone:
		case err != nil:
			k.f.tally.failedAdds++
			wait := time.Duration(float64(sandboxBackoff) * (1 + sandboxJitter*k.f.world.Float64()))
			k.f.world.After(wait, func() {
				if !p.gone {
					k.try(p)
				}
			})
		default:
			p.running = true
			if p.life > 0 {
				k.f.world.After(p.life, func() { k.end(p) })
			}
			k.f.tally.assign(k.f.world.Now(), 1)
			k.f.tally.waits = append(k.f.tally.waits, k.f.world.Now().Sub(p.since))
		}
	})
}

// end deletes a pod.
func (k *kubelet) end(p *pod) {
	p.gone = true
	if p.running {
		k.f.tally.assign(k.f.world.Now(), -1)
	} else {
		k.f.tally.neverStarted++
	}
	k.node.del(p)
}

func sortedPods[V any](m map[*pod]V) []*pod {
	var out []*pod
	for p := range m {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *pod) int { return strings.Compare(a.container, b.container) })
	return out
}
