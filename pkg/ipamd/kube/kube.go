// Package kube is what ipamd and Kubernetes have to say to each other about the node: max-pods and cordon on the way
// in, events on the way out, and the turns of the orphan cleaner. None of it is needed to serve addresses: where the API is away, or was never there, that is
// noted as a degraded feature and tried again.
package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/jonboulle/clockwork"
	"golang.org/x/sync/errgroup"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/k8sapi"
)

// controllerName is who reports events. Upstream's, for people filter by it.
const controllerName = "aws-node"

// Reasons of events.
const (
	reasonPermissions = "MissingIAMPermissions" // upstream's
	reasonMaxPods     = "MaxPodsTooHigh"
)

// Daemon is what the agent needs of ipamd.
type Daemon interface {
	SetNode(ipamd.NodeState)
	SetDegraded(feature, reason string, chosen bool)
	View() ipamd.View
}

// Options are what an Agent needs.
type Options struct {
	// Client is nil where there is no API, of which Missing is then the reason.
	Client  *k8sapi.Client
	Missing error
	// NodeName is MY_NODE_NAME, PodName MY_POD_NAME. Both may be empty.
	NodeName string
	PodName  string
	// Instance stands for the node in events while NodeName is not known.
	Instance string
	Clock    clockwork.Clock
	Log      *slog.Logger
}

// Agent follows the Node and posts events. Notify and AWS may be called from anywhere, before Run as well; they do not
// block.
type Agent struct {
	o        Options
	recorder *k8sapi.Recorder // nil without an API
	daemon   Daemon           // set by Run

	mu      sync.Mutex // guards what follows
	nodeUID string
	podUID  string
	tooMany int // the max-pods that was found too high; 0 if the last one was not
}

// New returns an Agent. It makes no call.
func New(o Options) *Agent {
	a := &Agent{o: o}
	if o.Client != nil {
		a.recorder = k8sapi.NewRecorder(k8sapi.RecorderOptions{
			Client: o.Client, Controller: controllerName, Instance: cmp.Or(o.PodName, o.NodeName, o.Instance),
			Health: a.eventsHealth, Clock: o.Clock, Log: o.Log,
		})
	}
	return a
}

// Run works until ctx ends. It returns at once where there is nothing to do.
func (a *Agent) Run(ctx context.Context, daemon Daemon) {
	a.daemon = daemon
	switch {
	case a.o.Client == nil:
		daemon.SetDegraded(ipamd.FeatureNode, a.o.Missing.Error(), a.chosen())
		daemon.SetDegraded(ipamd.FeatureEvents, a.o.Missing.Error(), a.chosen())
		return
	case a.o.NodeName == "":
		daemon.SetDegraded(ipamd.FeatureNode, "MY_NODE_NAME is not set", true)
	}
	var group errgroup.Group
	group.Go(func() error { a.recorder.Run(ctx); return nil })
	if a.o.NodeName != "" {
		group.Go(func() error {
			a.o.Client.WatchNode(ctx, a.o.NodeName, a.nodeSeen, func(err error) { a.nodeHealth(ctx, err) })
			return nil
		})
	}
	_ = group.Wait() // neither fails
}

// chosen tells whether there is no API because nobody said where one is.
func (a *Agent) chosen() bool { return errors.Is(a.o.Missing, k8sapi.ErrNoCluster) }

// nodeSeen passes on what the Node says.
func (a *Agent) nodeSeen(n k8sapi.Node) {
	a.mu.Lock()
	a.nodeUID = n.UID
	a.mu.Unlock()
	a.daemon.SetNode(ipamd.NodeState{MaxPods: n.Pods, Cordoned: n.Unschedulable})
	a.checkMaxPods(n.Pods)
}

// checkMaxPods warns of a kubelet that takes more pods than the node will ever have addresses for: the scheduler sends
// pods here that cannot start.
func (a *Agent) checkMaxPods(pods int) {
	v := a.daemon.View()
	a.mu.Lock()
	was := a.tooMany
	a.tooMany = 0
	if pods > v.Capacity {
		a.tooMany = pods
	}
	now := a.tooMany
	a.mu.Unlock()
	switch {
	case now == was:
	case now == 0:
		a.o.Log.Info("max-pods is no longer above what the node has addresses for", "max_pods", pods, "capacity", v.Capacity)
	default:
		a.o.Log.Warn("max-pods is above what the node has addresses for", "max_pods", pods, "capacity", v.Capacity)
		advice := fmt.Sprintf("Set max-pods to %d.", v.Capacity)
		if !v.Targets.Prefixes {
			advice = fmt.Sprintf("Set max-pods to %d, or ENABLE_PREFIX_DELEGATION.", v.Capacity)
		}
		a.Notify(ipamd.Notice{Warning: true, Reason: reasonMaxPods, Message: fmt.Sprintf(
			"The kubelet takes %d pods, but this node (%s) has addresses for %d, those on the host's network included: pods above that cannot start here. %s",
			pods, v.Limits.InstanceType, v.Capacity, advice)})
	}
}

func (a *Agent) nodeHealth(ctx context.Context, err error) {
	if err != nil {
		a.daemon.SetDegraded(ipamd.FeatureNode, err.Error(), false)
		return
	}
	a.daemon.SetDegraded(ipamd.FeatureNode, "", false)
	a.mu.Lock()
	known := a.podUID != "" || a.o.PodName == ""
	a.mu.Unlock()
	if known {
		return
	}
	uid, err := a.o.Client.PodUID(ctx, a.o.Client.Namespace(), a.o.PodName)
	if err != nil {
		a.o.Log.Debug("own pod", "error", err) // its events lack its uid; the next answer brings another try
		return
	}
	a.mu.Lock()
	a.podUID = uid
	a.mu.Unlock()
}

func (a *Agent) eventsHealth(err error) {
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	a.daemon.SetDegraded(ipamd.FeatureEvents, reason, false)
}

// Notify makes an event of the node out of a notice.
func (a *Agent) Notify(n ipamd.Notice) {
	if a.recorder == nil {
		return
	}
	a.mu.Lock()
	about := k8sapi.Reference{APIVersion: "v1", Kind: "Node", Name: cmp.Or(a.o.NodeName, a.o.Instance), UID: a.nodeUID}
	a.mu.Unlock()
	a.recorder.Record(k8sapi.Event{Regarding: about, Warning: n.Warning, Reason: n.Reason, Note: n.Message})
}

// AWS makes an event of a call that IAM refused, as upstream does: about this pod, with the operation as its action.
func (a *Agent) AWS(c awsutils.Call) {
	if a.recorder == nil || c.Err == nil || c.Service != "EC2" || awsutils.Classify(c.Err) != awsutils.Denied {
		return
	}
	action := "ec2:" + c.Operation
	e := k8sapi.Event{Warning: true, Reason: reasonPermissions, Action: action,
		Note: fmt.Sprintf("EC2 denies %s (%s). What it is for, and what is lost without it: docs/iam.md of vpc-cni.", action, cmp.Or(c.Code, "no code"))}
	a.mu.Lock()
	if a.o.PodName != "" {
		e.Regarding = k8sapi.Reference{APIVersion: "v1", Kind: "Pod", Namespace: a.o.Client.Namespace(), Name: a.o.PodName, UID: a.podUID}
	} else {
		e.Regarding = k8sapi.Reference{APIVersion: "v1", Kind: "Node", Name: cmp.Or(a.o.NodeName, a.o.Instance), UID: a.nodeUID}
	}
	a.mu.Unlock()
	a.recorder.Record(e)
}
