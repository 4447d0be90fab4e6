package k8sapi_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/lab/kubeapi"
	"vpccni/pkg/k8sapi"
)

// api is an API server with a client of it. Pauses are on a fake clock; connections are real.
type api struct {
	*kubeapi.Server
	t      *testing.T
	clock  *clockwork.FakeClock
	client *k8sapi.Client
}

func newAPI(t *testing.T) *api {
	t.Helper()
	a := &api{t: t, clock: clockwork.NewFakeClockAt(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))}
	a.Server = kubeapi.New(kubeapi.Options{Clock: a.clock})
	server := httptest.NewServer(a.Handler())
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	client, err := k8sapi.New(k8sapi.Options{Endpoint: server.URL, UserAgent: "test", Clock: a.clock})
	if err != nil {
		t.Fatal(err)
	}
	a.client = client
	return a
}

// eventually lets simulated time pass until something is so.
func (a *api) eventually(what string, is func() bool) {
	a.t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(deadline) {
			a.t.Fatalf("not within a minute: %s", what)
		}
		<-tick.C
		a.clock.Advance(time.Second)
	}
}

func node(name string, cordoned bool, pods string) kubeapi.Object {
	return kubeapi.Object{
		"metadata": kubeapi.Object{"name": name},
		"spec":     kubeapi.Object{"unschedulable": cordoned},
		"status":   kubeapi.Object{"capacity": kubeapi.Object{"pods": pods}, "images": []any{kubeapi.Object{"names": []any{"x"}}}},
	}
}

// follower is what a watch has told.
type follower struct {
	mu     sync.Mutex
	nodes  []k8sapi.Node
	health error
	ills   int
}

func (f *follower) seen(n k8sapi.Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nodes = append(f.nodes, n)
}

func (f *follower) healthIs(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.health = err
	if err != nil {
		f.ills++
	}
}

func (f *follower) last() (k8sapi.Node, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.nodes) == 0 {
		return k8sapi.Node{}, f.ills, f.health
	}
	return f.nodes[len(f.nodes)-1], f.ills, f.health
}

// follow watches node n1 until the test ends.
func (a *api) follow() *follower {
	f := &follower{}
	ended := make(chan struct{})
	ctx := a.t.Context()
	go func() {
		defer close(ended)
		a.client.WatchNode(ctx, "n1", f.seen, f.healthIs)
	}()
	a.t.Cleanup(func() { <-ended })
	return f
}

func (f *follower) is(cordoned bool, pods int) func() bool {
	return func() bool {
		n, _, health := f.last()
		return health == nil && n.Name == "n1" && n.UID != "" && n.Unschedulable == cordoned && n.Pods == pods
	}
}

func TestWatchNode(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.Put("nodes", node("n1", false, "29"))
	f := a.follow()
	a.eventually("the first state", f.is(false, 29))
	a.Put("nodes", node("n2", true, "7"))
	a.Put("nodes", node("n1", true, "29"))
	a.eventually("the cordon", f.is(true, 29))
	a.Remove("nodes", "", "n1")
	a.Put("nodes", node("n1", false, "2k"))
	a.eventually("the node that came back", f.is(false, 2000))
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if n.Name != "n1" {
			t.Errorf("told of %s", n.Name)
		}
	}
	if lists := a.Count("list", "nodes"); lists != 1 {
		t.Errorf("%d lists, want 1", lists)
	}
}

// Whatever the API does, the watch comes back by itself with the present state.
func TestWatchRecovers(t *testing.T) {
	t.Parallel()
	for name, trouble := range map[string]func(*api) (end func()){
		"cut":     func(a *api) func() { a.CutWatches(); return func() {} },
		"expired": func(a *api) func() { a.Compact(); return func() {} },
		"gone twice": func(a *api) func() {
			a.AddFault(kubeapi.Fault{Verb: "watch", Status: 410, Times: 2})
			a.CutWatches()
			return func() {}
		},
		"forbidden":  func(a *api) func() { defer a.CutWatches(); return a.AddFault(kubeapi.Fault{Status: 403}) },
		"refused":    func(a *api) func() { defer a.CutWatches(); return a.AddFault(kubeapi.Fault{Abort: true}) },
		"overloaded": func(a *api) func() { defer a.CutWatches(); return a.AddFault(kubeapi.Fault{Status: 429}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t)
			a.Put("nodes", node("n1", false, "29"))
			f := a.follow()
			a.eventually("the first state", f.is(false, 29))
			before := len(a.Requests())
			end := trouble(a)
			if name == "forbidden" || name == "refused" || name == "overloaded" {
				a.eventually("trouble is told of", func() bool { _, ills, _ := f.last(); return ills >= 3 })
			}
			a.Put("nodes", node("n1", true, "29"))
			end()
			a.eventually("the change meanwhile", f.is(true, 29))
			if n := len(a.Requests()) - before; n > 30 {
				t.Errorf("%d requests for one trouble", n)
			}
		})
	}
}

func TestWatchOfNoNode(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	f := a.follow()
	a.eventually("an error", func() bool { _, ills, _ := f.last(); return ills > 0 })
	if _, _, err := f.last(); !strings.Contains(fmt.Sprint(err), `no Node "n1"`) {
		t.Errorf("got %v", err)
	}
	a.Put("nodes", node("n1", false, "11"))
	a.eventually("the node", f.is(false, 11))
}

// A server that hangs costs a call's time, not more.
func TestHang(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	a.AddFault(kubeapi.Fault{Hang: true})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.client.WatchNode(t.Context(), "n1", func(k8sapi.Node) {}, func(error) {})
	}()
	a.eventually("a request", func() bool { return a.Count("list", "nodes") > 0 })
	t.Cleanup(func() { <-ended }) // the test's context ends before
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	if _, err := k8sapi.New(k8sapi.Options{}); !errors.Is(err, k8sapi.ErrNoCluster) {
		t.Errorf("nowhere: %v", err)
	}
	for _, bad := range []string{"ftp://x", "https://", "http://a b", "://"} {
		if _, err := k8sapi.New(k8sapi.Options{Endpoint: bad}); err == nil {
			t.Errorf("%q passes for an endpoint", bad)
		}
	}
	for _, o := range []k8sapi.Options{{Endpoint: "ABC.gr7.us-west-2.eks.amazonaws.com"}, {Host: "10.100.0.1"}, {Host: "fd00::1", Port: "6443"}} {
		if _, err := k8sapi.New(o); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// The token and the authority may change, and may be missing at first.
func TestServiceAccount(t *testing.T) {
	t.Parallel()
	clock := clockwork.NewFakeClock()
	server := kubeapi.New(kubeapi.Options{Token: "one"})
	server.Put("pods", kubeapi.Object{"metadata": kubeapi.Object{"namespace": "kube-system", "name": "aws-node-x"}})
	secure := httptest.NewTLSServer(server.Handler())
	t.Cleanup(secure.Close)
	dir := t.TempDir()
	c, err := k8sapi.New(k8sapi.Options{Endpoint: secure.URL, Account: dir, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	get := func() error {
		_, err := c.PodUID(t.Context(), c.Namespace(), "aws-node-x")
		return err
	}
	if err := get(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no service account: %v", err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("token", "one\n")
	write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	write("namespace", "kube-system")
	if err := get(); err != nil {
		t.Fatal(err)
	}
	server.SetToken("two")
	write("token", "two")
	if err := get(); !k8sapi.IsStatus(err, http.StatusUnauthorized) {
		t.Errorf("the old token: %v", err)
	}
	if err := get(); err != nil {
		t.Errorf("after a 401 the token is read again: %v", err)
	}
	// Another authority takes over within a minute; until then what was read holds.
	write("ca.crt", "no certificate")
	if err := get(); err != nil {
		t.Errorf("while the authority is replaced: %v", err)
	}
	other := httptest.NewTLSServer(server.Handler())
	t.Cleanup(other.Close)
	write("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw}))+"\n")
	clock.Advance(time.Minute)
	if err := get(); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

func (a *api) recorder(health func(error)) *k8sapi.Recorder {
	r := k8sapi.NewRecorder(k8sapi.RecorderOptions{Client: a.client, Controller: "aws-node", Instance: "n1", Health: health,
		Clock: a.clock, Log: slog.New(slog.DiscardHandler)})
	ended := make(chan struct{})
	ctx := a.t.Context()
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	a.t.Cleanup(func() { <-ended })
	return r
}

var warning = k8sapi.Event{Regarding: k8sapi.Reference{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "u"}, Warning: true,
	Reason: "MissingIAMPermissions", Action: "ec2:CreateNetworkInterface", Note: "denied"}

func TestEventsAreCounted(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var posts atomic.Int64
	r := a.recorder(func(error) { posts.Add(1) })
	posted := func(n int64) func() bool { return func() bool { return posts.Load() == n } }
	r.Record(warning)
	a.eventually("the event", posted(1))
	e := a.List("events")[0]
	for field, want := range map[string]any{"type": "Warning", "reason": "MissingIAMPermissions", "action": "ec2:CreateNetworkInterface",
		"note": "denied", "reportingController": "aws-node", "reportingInstance": "n1", "series": nil} {
		if e[field] != want {
			t.Errorf("%s is %v, want %v", field, e[field], want)
		}
	}
	if at, err := time.Parse(time.RFC3339Nano, e["eventTime"].(string)); err != nil || !strings.Contains(e["eventTime"].(string), ".000000Z") {
		t.Errorf("eventTime %v: %v, %v", e["eventTime"], at, err)
	}
	for range 100 {
		r.Record(warning)
	}
	if n := a.Count("", "events"); n != 1 {
		t.Errorf("%d calls for repetitions within the quiet time", n)
	}
	a.clock.Advance(6 * time.Minute)
	r.Record(warning)
	a.eventually("the count", posted(2))
	if series, _ := a.List("events")[0]["series"].(kubeapi.Object); series["count"] != float64(102) {
		t.Errorf("series %v, want a count of 102", series)
	}
	// The API has forgotten it: it is made anew.
	name := a.List("events")[0]["metadata"].(kubeapi.Object)["name"].(string)
	a.Remove("events", "default", name)
	a.clock.Advance(6 * time.Minute)
	r.Record(warning)
	a.eventually("a new event", posted(3))
	if n := a.Count("create", "events"); n != 2 {
		t.Errorf("%d events were made, want 2", n)
	}
}

// An answer that does not come says nothing about the event: the next try makes no second one.
func TestEventWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var posts atomic.Int64
	r := a.recorder(func(err error) {
		if err != nil {
			t.Error(err)
		}
		posts.Add(1)
	})
	a.AddFault(kubeapi.Fault{Verb: "create", Resource: "events", Lose: true, Times: 1})
	r.Record(warning)
	a.eventually("the event", func() bool { return posts.Load() == 1 })
	if tries, made := a.Count("create", "events"), len(a.List("events")); tries != 2 || made != 1 {
		t.Errorf("%d tries made %d events, want 2 and 1", tries, made)
	}
}

// An API that is away, or a node that has far too much to say, costs a bounded number of calls and no memory.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	var ills atomic.Int64
	r := a.recorder(func(err error) {
		if err != nil {
			ills.Add(1)
		}
	})
	end := a.AddFault(kubeapi.Fault{Abort: true})
	for i := range 1000 {
		e := warning
		e.Note = fmt.Sprint(i)
		r.Record(e)
	}
	if got := r.Dropped(); got != 980 {
		t.Errorf("%d of 1000 events dropped at once, want all but 20", got)
	}
	a.eventually("all given up", func() bool { return ills.Load() == 20 })
	if got := r.Dropped(); got != 1000 {
		t.Errorf("%d dropped, want all", got)
	}
	end()
	a.clock.Advance(time.Hour)
	r.Record(warning)
	a.eventually("an event once the API is back", func() bool { return len(a.List("events")) == 1 })
	long := warning
	long.Note = strings.Repeat("ü", 1000)
	r.Record(long)
	a.eventually("a long one", func() bool { return len(a.List("events")) == 2 })
	if !slices.ContainsFunc(a.List("events"), func(e kubeapi.Object) bool { return len(e["note"].(string)) == 1024 }) {
		t.Error("a note was not cut at the API's limit")
	}
}

func TestElection(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	candidate := func(name string) *k8sapi.Election {
		return &k8sapi.Election{Leases: k8sapi.LeaseClient{Client: a.client, Namespace: "kube-system", Name: "cleaner"},
			Identity: name, Duration: time.Hour, Clock: a.clock}
	}
	one, two := candidate("one"), candidate("two")
	try := func(e *k8sapi.Election, want bool, holder string) {
		t.Helper()
		holds, who, err := e.Try(t.Context())
		if err != nil || holds != want || who != holder {
			t.Fatalf("%s: holds %t, holder %q, %v; want %t, %q", e.Identity, holds, who, err, want, holder)
		}
	}
	try(one, true, "one")
	try(two, false, "one")
	a.clock.Advance(50 * time.Minute)
	try(one, true, "one")
	a.clock.Advance(50 * time.Minute)
	try(two, false, "one") // renewed
	a.clock.Advance(10 * time.Minute)
	try(two, true, "two") // expired
	try(one, false, "two")
	spec := a.Get("leases", "kube-system", "cleaner")["spec"].(kubeapi.Object)
	if spec["leaseTransitions"] != float64(1) || spec["leaseDurationSeconds"] != float64(3600) || spec["holderIdentity"] != "two" {
		t.Errorf("lease: %v", spec)
	}
	// A holder whose clock is ahead by a day is not believed for a day.
	lease := a.Get("leases", "kube-system", "cleaner")
	lease["spec"].(kubeapi.Object)["renewTime"] = a.clock.Now().Add(24 * time.Hour).Format("2006-01-02T15:04:05.000000Z07:00")
	a.Put("leases", lease)
	try(one, false, "two")
	a.clock.Advance(time.Hour)
	try(one, true, "one")
}

// racing is a Lease that another candidate takes between a read and the write.
type racing struct {
	k8sapi.Leases
	between func()
}

func (r racing) Put(ctx context.Context, l k8sapi.Lease) (bool, error) {
	r.between()
	return r.Leases.Put(ctx, l)
}

func TestElectionRace(t *testing.T) {
	t.Parallel()
	a := newAPI(t)
	leases := k8sapi.LeaseClient{Client: a.client, Namespace: "kube-system", Name: "cleaner"}
	for _, first := range []bool{true, false} {
		two := &k8sapi.Election{Leases: leases, Identity: "two", Duration: time.Hour, Clock: a.clock}
		one := &k8sapi.Election{Leases: racing{leases, func() {
			if holds, _, err := two.Try(t.Context()); !holds || err != nil {
				t.Errorf("two: %t, %v", holds, err)
			}
		}}, Identity: "one", Duration: time.Hour, Clock: a.clock}
		if holds, holder, err := one.Try(t.Context()); holds || holder != "" || err != nil {
			t.Errorf("first %t: holds %t, %q, %v, but two was faster", first, holds, holder, err)
		}
		a.clock.Advance(2 * time.Hour)
	}
	end := a.AddFault(kubeapi.Fault{Resource: "leases", Status: 403})
	defer end()
	one := &k8sapi.Election{Leases: leases, Identity: "one", Duration: time.Hour, Clock: a.clock}
	if holds, _, err := one.Try(t.Context()); holds || !k8sapi.IsStatus(err, http.StatusForbidden) {
		t.Errorf("without the right: %t, %v", holds, err)
	}
}
