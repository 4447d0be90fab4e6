package kube_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	"github.com/jonboulle/clockwork"

	"vpccni/lab/kubeapi"
	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/kube"
	"vpccni/pkg/ipamd/orphans"
	"vpccni/pkg/k8sapi"
)

// daemon remembers what it was told.
type daemon struct {
	mu       sync.Mutex
	node     ipamd.NodeState
	degraded map[string]string
	capacity int
}

func (d *daemon) SetNode(n ipamd.NodeState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.node = n
}

func (d *daemon) SetDegraded(feature, reason string, chosen bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.degraded, feature)
	if reason != "" {
		d.degraded[feature] = fmt.Sprintf("%s (chosen %t)", reason, chosen)
	}
}

func (d *daemon) reason(feature string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.degraded[feature]
}

func (d *daemon) View() ipamd.View {
	d.mu.Lock()
	defer d.mu.Unlock()
	return ipamd.View{Capacity: d.capacity}
}

// is tells whether the daemon knows this of the node, and nothing but these features is degraded.
func (d *daemon) is(pods int, cordoned bool, degraded ...string) func() bool {
	return func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.node == (ipamd.NodeState{MaxPods: pods, Cordoned: cordoned}) && slices.Equal(slices.Sorted(maps.Keys(d.degraded)), degraded)
	}
}

type rig struct {
	t     *testing.T
	clock *clockwork.FakeClock
	api   *kubeapi.Server
	daemon
	agent *kube.Agent
}

// start runs an agent beside an API server that has node n1 and the agent's pod.
func start(t *testing.T, change ...func(*kube.Options, *kubeapi.Server)) *rig {
	t.Helper()
	r := &rig{t: t, clock: clockwork.NewFakeClock(), daemon: daemon{degraded: map[string]string{}, capacity: 17}}
	r.api = kubeapi.New(kubeapi.Options{Clock: r.clock})
	r.putNode("17", false)
	r.api.Put("pods", kubeapi.Object{"metadata": kubeapi.Object{"namespace": "kube-system", "name": "aws-node-x"}})
	server := httptest.NewServer(r.api.Handler())
	client, err := k8sapi.New(k8sapi.Options{Endpoint: server.URL, Clock: r.clock})
	if err != nil {
		t.Fatal(err)
	}
	o := kube.Options{Client: client, NodeName: "n1", PodName: "aws-node-x", Instance: "i-1", Clock: r.clock,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, f := range change {
		f(&o, r.api)
	}
	r.agent = kube.New(o)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.agent.Run(ctx, &r.daemon)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		server.CloseClientConnections()
		server.Close()
	})
	return r
}

func (r *rig) putNode(pods string, cordoned bool) {
	r.api.Put("nodes", kubeapi.Object{"metadata": kubeapi.Object{"name": "n1"}, "spec": kubeapi.Object{"unschedulable": cordoned},
		"status": kubeapi.Object{"capacity": kubeapi.Object{"pods": pods}}})
}

func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(deadline) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("not within a minute: %s (node %+v, degraded %v)", what, r.node, r.degraded)
		}
		<-tick.C
		r.clock.Advance(time.Second)
	}
}

// events are the events there are, as lines.
func (r *rig) events() string {
	var lines []string
	for _, e := range r.api.List("events") {
		about, _ := e["regarding"].(kubeapi.Object)
		lines = append(lines, fmt.Sprintf("%v %v %v/%v uid=%t: %v", e["type"], e["reason"], about["kind"], about["name"], about["uid"] != nil, e["action"]))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestNode(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.eventually("the node", r.is(17, false))
	r.putNode("17", true)
	r.eventually("the cordon", r.is(17, true))
	// The API goes away: what was known stays, and that it may be old is told.
	end := r.api.AddFault(kubeapi.Fault{Abort: true})
	r.api.CutWatches()
	r.eventually("the API's absence", r.is(17, true, ipamd.FeatureNode))
	r.putNode("17", false)
	end()
	r.eventually("its return", r.is(17, false))
	if e := r.events(); e != "" {
		t.Errorf("events without a cause:\n%s", e)
	}
}

// Whatever is missing is named, and is nobody's fault but the setting's where it is one.
func TestWithout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change   func(*kube.Options, *kubeapi.Server)
		degraded map[string]string // feature → part of the reason
	}{
		"an API": {func(o *kube.Options, _ *kubeapi.Server) { o.Client, o.Missing = nil, k8sapi.ErrNoCluster }, map[string]string{
			ipamd.FeatureNode: "(chosen true)", ipamd.FeatureEvents: "CLUSTER_ENDPOINT",
		}},
		"a good URL": {func(o *kube.Options, _ *kubeapi.Server) { o.Client, o.Missing = nil, errors.New("no URL") }, map[string]string{
			ipamd.FeatureNode: "(chosen false)", ipamd.FeatureEvents: "(chosen false)",
		}},
		"MY_NODE_NAME": {func(o *kube.Options, _ *kubeapi.Server) { o.NodeName = "" }, map[string]string{
			ipamd.FeatureNode: "MY_NODE_NAME is not set (chosen true)",
		}},
		"the right to nodes": {func(_ *kube.Options, s *kubeapi.Server) { s.AddFault(kubeapi.Fault{Resource: "nodes", Status: 403}) }, map[string]string{
			ipamd.FeatureNode: "Forbidden",
		}},
		"its Node": {func(_ *kube.Options, s *kubeapi.Server) { s.Remove("nodes", "", "n1") }, map[string]string{
			ipamd.FeatureNode: `no Node "n1"`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, c.change)
			r.eventually("degraded", r.is(0, false, slices.Sorted(maps.Keys(c.degraded))...))
			for feature, part := range c.degraded {
				if got := r.reason(feature); !strings.Contains(got, part) {
					t.Errorf("%s: %q, want something with %q", feature, got, part)
				}
			}
			// Both are of no consequence, and neither blocks.
			for range 1000 {
				r.agent.Notify(ipamd.Notice{Reason: "Some", Message: "thing"})
				r.agent.AWS(denied("CreateNetworkInterface"))
			}
		})
	}
}

func TestMaxPods(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.eventually("the node", r.is(17, false))
	r.putNode("110", false)
	r.eventually("a warning", func() bool { return strings.Contains(r.events(), "Warning MaxPodsTooHigh Node/n1 uid=true") })
	note, _ := r.api.List("events")[0]["note"].(string)
	if !strings.Contains(note, "takes 110 pods") || !strings.Contains(note, "addresses for 17") {
		t.Errorf("the warning says %q", note)
	}
	r.putNode("110", true)
	r.putNode("17", false)
	r.eventually("a smaller number", r.is(17, false))
	if n := len(r.api.List("events")); n != 1 {
		t.Errorf("%d events for one max-pods:\n%s", n, r.events())
	}
}

func denied(operation string) awsutils.Call {
	return awsutils.Call{Service: "EC2", Operation: operation, Code: "UnauthorizedOperation",
		Err: &smithy.GenericAPIError{Code: "UnauthorizedOperation", Message: "You are not authorized"}}
}

func TestMissingPermissions(t *testing.T) {
	t.Parallel()
	r := start(t)
	r.eventually("the node", r.is(17, false))
	r.eventually("the pod's uid", func() bool { return r.api.Count("get", "pods") == 1 })
	for range 20 {
		r.agent.AWS(denied("CreateNetworkInterface"))
	}
	r.agent.AWS(denied("AssignPrivateIpAddresses"))
	r.agent.AWS(awsutils.Call{Service: "EC2", Operation: "DescribeNetworkInterfaces"})
	throttled := denied("AttachNetworkInterface")
	throttled.Err = &smithy.GenericAPIError{Code: "RequestLimitExceeded"}
	r.agent.AWS(throttled)
	want := "Warning MissingIAMPermissions Pod/aws-node-x uid=true: ec2:AssignPrivateIpAddresses\n" +
		"Warning MissingIAMPermissions Pod/aws-node-x uid=true: ec2:CreateNetworkInterface"
	r.eventually("the events", func() bool { return len(r.api.List("events")) == 2 })
	if got := r.events(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Without MY_POD_NAME the events are the node's.
func TestEventsOfTheNode(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *kube.Options, _ *kubeapi.Server) { o.PodName = "" })
	r.eventually("the node", r.is(17, false))
	r.agent.AWS(denied("CreateNetworkInterface"))
	r.agent.Notify(ipamd.Notice{Reason: "InstanceLeaving", Message: "spot"})
	r.eventually("the events", func() bool { return len(r.api.List("events")) == 2 })
	want := "Normal InstanceLeaving Node/n1 uid=true: InstanceLeaving\n" +
		"Warning MissingIAMPermissions Node/n1 uid=true: ec2:CreateNetworkInterface"
	if got := r.events(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	end := r.api.AddFault(kubeapi.Fault{Resource: "events", Status: http.StatusForbidden})
	r.agent.Notify(ipamd.Notice{Reason: "Other", Message: "thing"})
	r.eventually("no right to events", r.is(17, false, ipamd.FeatureEvents))
	end()
	r.agent.Notify(ipamd.Notice{Reason: "Other", Message: "thing again"})
	r.eventually("events again", r.is(17, false))
}

// Why no orphan is cleaned is told in any case; with everything there the node takes part in the election.
func TestClean(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		off    string
		change func(*kube.Options, *kubeapi.Server)
		want   string
	}{
		"a setting":        {off: "CLUSTER_NAME is not set", want: "CLUSTER_NAME is not set (chosen true)"},
		"no API":           {change: func(o *kube.Options, _ *kubeapi.Server) { o.Client, o.Missing = nil, k8sapi.ErrNoCluster }, want: "(chosen true)"},
		"no right":         {change: func(_ *kube.Options, s *kubeapi.Server) { s.AddFault(kubeapi.Fault{Resource: "leases", Status: 403}) }, want: "Forbidden"},
		"an EC2 that asks": {want: "no EC2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, func(o *kube.Options, s *kubeapi.Server) {
				if c.change != nil {
					c.change(o, s)
				}
			})
			cleaner := orphans.New(orphans.Options{EC2: noEC2{}, Cluster: "blue", Clock: r.clock})
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				r.agent.Clean(ctx, &r.daemon, cleaner, c.off)
			}()
			defer func() { stop(); <-ended }()
			r.eventually("a reason", func() bool {
				r.clock.Advance(time.Minute)
				return strings.Contains(r.reason(ipamd.FeatureOrphans), c.want)
			})
			if name == "an EC2 that asks" && r.api.Get("leases", "kube-system", orphans.LeaseName) == nil {
				t.Error("there is no lease")
			}
		})
	}
}

type noEC2 struct{ orphans.EC2 }

func (noEC2) DetachedENIs(context.Context, string, map[string]string) ([]awsutils.ENI, error) {
	return nil, errors.New("no EC2")
}
