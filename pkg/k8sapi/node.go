package k8sapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Node is what is read of a Node object.
type Node struct {
	Name string
	UID  string
	// Unschedulable is spec.unschedulable: the node is cordoned.
	Unschedulable bool
	// Pods is how many pods the kubelet takes; 0 if it has not said.
	Pods int
}

type nodeObject struct {
	Metadata objectMeta `json:"metadata"`
	Spec     struct {
		Unschedulable bool `json:"unschedulable"`
	} `json:"spec"`
	Status struct {
		Capacity    podCount `json:"capacity"`
		Allocatable podCount `json:"allocatable"`
	} `json:"status"`
}

type podCount struct {
	Pods string `json:"pods"`
}

func (n *nodeObject) node() Node {
	pods := n.Status.Capacity.number()
	if pods == 0 {
		pods = n.Status.Allocatable.number()
	}
	return Node{Name: n.Metadata.Name, UID: n.Metadata.UID, Unschedulable: n.Spec.Unschedulable, Pods: pods}
}

// number reads a quantity of pods; 0 if it is none. Kubernetes writes 2000 as 2k.
func (p podCount) number() int {
	digits, thousands := strings.CutSuffix(p.Pods, "k")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n > 1<<20 {
		return 0
	}
	if thousands {
		n *= 1000
	}
	return n
}

// Times of a watch.
const (
	// watchMin and watchMax are how long one request of a watch lasts, spread so that nodes which started together do
	// not come back together.
	watchMin, watchMax = 5 * time.Minute, 10 * time.Minute
	// watchGrace is what the server gets on top to end it by itself.
	watchGrace = 15 * time.Second
	// firstPause and longestPause are between tries while the API does not answer. A whole cluster waits for it then.
	firstPause, longestPause = time.Second, time.Minute
	// relistAfter is after how many failures in a row the watch begins anew.
	relistAfter = 4
	// shortWatch is a watch that ended too soon to be followed by another at once.
	shortWatch = 5 * time.Second
)

// WatchNode follows a Node until ctx ends. Seen is told its state at first and whenever the object changes; health is
// told nil when the API has answered, and an error each time it fails. Both are called by this goroutine. A Node that
// is deleted leaves its last state standing.
func (c *Client) WatchNode(ctx context.Context, name string, seen func(Node), health func(error)) {
	w := watch{client: c, name: name, seen: seen, health: health}
	for failures := 0; ctx.Err() == nil; {
		began := c.clock.Now()
		err := w.once(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && c.clock.Since(began) >= shortWatch:
			failures = 0
			continue
		case err != nil && !errors.Is(err, errExpired):
			health(err)
		}
		if w.progress {
			failures = 0
		}
		failures++
		if failures%relistAfter == 0 {
			w.version = "" // perhaps one that this API server has never had
		}
		select {
		case <-ctx.Done():
		case <-c.clock.After(pause(failures)):
		}
	}
}

// pause is how long to wait after the n-th failure in a row: full jitter over a half.
func pause(n int) time.Duration {
	d := min(firstPause<<min(n-1, 16), longestPause)
	return d/2 + rand.N(d)
}

// errExpired: the version to watch from is too old, or was never known.
var errExpired = errors.New("the watch has expired")

// watch follows one Node.
type watch struct {
	client   *Client
	name     string
	seen     func(Node)
	health   func(error)
	version  string // to go on from; empty: begin with a list
	progress bool   // the last try brought an event
}

const nodesPath = "/api/v1/nodes"

func (w *watch) query() url.Values {
	return url.Values{"fieldSelector": {"metadata.name=" + w.name}}
}

// once lists if need be, and watches until the watch ends. Nil means that it ended as it should.
func (w *watch) once(ctx context.Context) error {
	w.progress = false
	if w.version == "" {
		if err := w.list(ctx); err != nil {
			return err
		}
	}
	lasts := watchMin + rand.N(watchMax-watchMin)
	ctx, cancel := context.WithTimeout(ctx, lasts+watchGrace)
	defer cancel()
	q := w.query()
	q.Set("watch", "true")
	q.Set("allowWatchBookmarks", "true")
	q.Set("resourceVersion", w.version)
	q.Set("timeoutSeconds", strconv.Itoa(int(lasts/time.Second)))
	stream, err := w.client.send(ctx, request{method: http.MethodGet, path: nodesPath, query: q})
	if err != nil {
		if IsStatus(err, http.StatusGone) {
			w.version = ""
			return errExpired
		}
		return err
	}
	defer func() { _ = stream.Close() }()
	w.health(nil)
	err = w.read(stream)
	if ctx.Err() != nil {
		return nil // its time was up
	}
	return err
}

// list learns the present state, and the version to watch from. Version 0 is answered out of the API server's memory,
// and does not cost etcd a read when a whole cluster starts.
func (w *watch) list(ctx context.Context) error {
	var list struct {
		Metadata objectMeta   `json:"metadata"`
		Items    []nodeObject `json:"items"`
	}
	q := w.query()
	q.Set("resourceVersion", "0")
	if err := w.client.call(ctx, request{method: http.MethodGet, path: nodesPath, query: q, into: &list}); err != nil {
		return err
	}
	if len(list.Items) == 0 {
		return fmt.Errorf("kubernetes: there is no Node %q", w.name)
	}
	w.health(nil)
	w.version = list.Metadata.ResourceVersion
	w.seen(list.Items[0].node())
	return nil
}

// read takes what a watch says until it ends.
func (w *watch) read(stream io.Reader) error {
	limited := &io.LimitedReader{R: stream}
	events := json.NewDecoder(limited)
	for {
		limited.N = maxAnswer
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := events.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("kubernetes: watch of node %s: %w", w.name, err)
		}
		w.progress = true
		if e.Type == "ERROR" {
			st := &StatusError{}
			_ = json.Unmarshal(e.Object, st) // what it does not say is empty
			if st.Code == http.StatusGone {
				w.version = ""
				return errExpired
			}
			return fmt.Errorf("kubernetes: watch of node %s: %w", w.name, st)
		}
		var n nodeObject
		if err := json.Unmarshal(e.Object, &n); err != nil {
			return fmt.Errorf("kubernetes: watch of node %s: %w", w.name, err)
		}
		w.version = n.Metadata.ResourceVersion
		if e.Type == "ADDED" || e.Type == "MODIFIED" {
			w.seen(n.node())
		}
	}
}
