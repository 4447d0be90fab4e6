// Package kubeapi is a small Kubernetes API server for tests and the lab: stateful, in memory, over plain HTTP. It has
// what a node's network daemon meets: get, list, watch, create, update, merge patch and delete of a few kinds, resource
// versions that conflict, watches that expire, and faults on request. There is no admission, no validation beyond names
// and versions, and no garbage collection; authorization is what Faults deny.
package kubeapi

import (
	"net/http"
	"sync"

	"github.com/jonboulle/clockwork"
)

// Resource is a kind of object that the server knows.
type Resource struct {
	Group      string // empty: core
	Version    string // v1
	Name       string // nodes
	Kind       string // Node
	Namespaced bool
}

// Builtin are the resources that every Server has.
var Builtin = []Resource{
	{"", "v1", "nodes", "Node", false},
	{"", "v1", "pods", "Pod", true},
	{"", "v1", "namespaces", "Namespace", false},
	{"", "v1", "events", "Event", true},
	{"events.k8s.io", "v1", "events", "Event", true},
	{"coordination.k8s.io", "v1", "leases", "Lease", true},
}

// Object is an object as JSON has it.
type Object = map[string]any

// Options are what a Server needs. All may be left out.
type Options struct {
	Clock     clockwork.Clock // of creation times and the request log; the real one if nil
	Resources []Resource      // besides Builtin
	// Token, if set, is what requests must bear. It can be changed with SetToken.
	Token string
}

// Server is a Kubernetes API server. It is safe for concurrent use.
type Server struct {
	clock     clockwork.Clock
	resources []Resource

	mu       sync.Mutex // guards what follows
	token    string
	version  uint64
	objects  map[key]Object // never modified, only replaced
	history  []change       // by version; watches read it
	oldest   uint64         // the version that history begins after
	changed  chan struct{}  // closed and replaced whenever watches have to look
	cuts     uint64         // how often watches were cut off
	faults   []*Fault
	lastID   uint64
	requests []Request
}

// key names an object.
type key struct{ group, resource, namespace, name string }

// change is an entry of the history: before is nil for a creation, after for a deletion.
type change struct {
	version       uint64
	key           key
	before, after Object
}

// New returns a Server without objects.
func New(o Options) *Server {
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	return &Server{
		clock: o.Clock, resources: append(append([]Resource(nil), Builtin...), o.Resources...), token: o.Token,
		version: 1, oldest: 1, objects: map[key]Object{}, changed: make(chan struct{}),
	}
}

// Handler serves the API.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serve) }

// SetToken changes what requests must bear; empty lets everybody in.
func (s *Server) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = token
}

// Compact forgets the history: watches that are behind end with 410 Gone, as after etcd's compaction, and so do those
// that begin at an old version.
func (s *Server) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++ // so that versions handed out so far are old
	s.history, s.oldest = nil, s.version
	s.wake()
}

// CutWatches ends all watches that are open, without a word.
func (s *Server) CutWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cuts++
	s.wake()
}

// wake makes watches look; mu must be held.
func (s *Server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}
