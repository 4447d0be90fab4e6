// Package imds is a simulated instance metadata service, version 2, over a simulated cloud: the tree that CNIs and SDKs
// read, always as the cloud is now, for whichever instance asks. It can be made to lag, to leave things out, to freeze
// and to fail, and it remembers who asked for what.
//
// It is an http.Handler and knows nothing of sockets or namespaces; who asks is the embedder's to say. Times come from
// an injected clock.
package imds

import (
	"cmp"
	"crypto/rand"
	"io"
	"maps"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/lab/ec2"
)

// Cloud is what the metadata is made of. *ec2.Cloud is one.
type Cloud interface {
	Instance(id string) (ec2.Instance, bool)
	ENIsOf(instanceID string) []ec2.ENI
	VPC(id string) (ec2.VPC, bool)
	Subnet(id string) (ec2.Subnet, bool)
	SecurityGroup(id string) (ec2.SecurityGroup, bool)
	Credentials(instanceID string) ec2.Credentials
}

// Options are what a Server is made of, besides the cloud. The zero value is fine.
type Options struct {
	Clock     clockwork.Clock // nil: the real one
	AccountID string          // default 123456789012, as in lab/ec2
	// Role is the name of the role that every instance has; default vpclab-node.
	Role string
}

// Server is the metadata service of all instances of a cloud. It is safe for concurrent use.
type Server struct {
	cloud Cloud
	clock clockwork.Clock
	opts  Options
	key   [32]byte // signs tokens

	mu      sync.Mutex
	v1      map[string]bool // instances that may ask without a token; guarded by mu
	faults  faults          // guarded by mu
	history history         // guarded by mu
	log     requestLog      // guarded by mu
	// notices are what instances were told: values by path behind /latest/; guarded by mu
	notices map[string]tree
}

// New makes a server.
func New(cloud Cloud, o Options) *Server {
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	o.AccountID = cmp.Or(o.AccountID, "123456789012")
	o.Role = cmp.Or(o.Role, "vpclab-node")
	s := &Server{
		cloud: cloud, clock: o.Clock, opts: o,
		v1: map[string]bool{}, history: history{}, log: newRequestLog(), notices: map[string]tree{},
	}
	rand.Read(s.key[:]) // never fails
	return s
}

// AllowV1 says whether an instance may read without a token, as HttpTokens=optional does. At first it may not.
func (s *Server) AllowV1(instanceID string, allowed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.v1[instanceID] = allowed
}

// Announce tells an instance something, at a path behind /latest/meta-data/, as AWS does with spot/instance-action,
// autoscaling/target-lifecycle-state and events/recommendations/rebalance. An empty text takes it back.
func (s *Server) Announce(instanceID, name, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := tree{}
	maps.Copy(next, s.notices[instanceID])
	if next[metadata+name] = text; text == "" {
		delete(next, metadata+name)
	}
	s.notices[instanceID] = next
}

// Handler serves the instance that instanceOf names for a request. A request that it does not know, and one of an
// instance that is not running, gets 404.
func (s *Server) Handler(instanceOf func(*http.Request) (instanceID string, ok bool)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.clock.Now()
		id, ok := instanceOf(r)
		name := normalize(r.URL.Path)
		a := notFound()
		var hit []string
		if ok {
			a, hit = s.answer(r, id, name)
		}
		if r.Context().Err() == nil {
			a.write(w)
		}
		s.record(Request{
			Time: start, Instance: id, Method: r.Method, Path: name, Status: a.status,
			Duration: s.clock.Since(start), Faults: hit,
		})
	})
}

// answer is what one request gets, faults included.
func (s *Server) answer(r *http.Request, instanceID, name string) (response, []string) {
	v := s.judge(instanceID, name)
	if v.delay > 0 {
		select {
		case <-s.clock.After(v.delay):
		case <-r.Context().Done():
			return response{status: http.StatusServiceUnavailable}, v.hit
		}
	}
	if v.status != 0 {
		return failure(v.status), v.hit
	}
	// A proxy that passes requests on adds this header; IMDSv2 refuses them all.
	if r.Header.Get("X-Forwarded-For") != "" {
		return failure(http.StatusForbidden), v.hit
	}
	if name == tokenPath {
		return s.issueToken(r, instanceID), v.hit
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return failure(http.StatusMethodNotAllowed), v.hit
	}
	left, status := s.checkToken(r, instanceID)
	if status != 0 {
		return failure(status), v.hit
	}
	current, ok := s.tree(instanceID)
	if !ok {
		return notFound(), v.hit
	}
	body, found, hit := s.lookUp(instanceID, current, name)
	hit = append(v.hit, hit...)
	if !found {
		return notFound(), hit
	}
	return response{status: http.StatusOK, body: body, tokenLeft: left}, hit
}

// normalize turns a request's path into one of the tree: without slashes around it, and with a dated version of the
// API as latest.
func normalize(urlPath string) string {
	name := strings.Trim(path.Clean("/"+urlPath), "/")
	version, rest, _ := strings.Cut(name, "/")
	if _, err := time.Parse(time.DateOnly, version); err == nil || version == "latest" {
		return rest
	}
	if name == "" {
		return rootPath
	}
	return "?" + name // nothing that the tree has
}

// rootPath stands for what lies above the versions.
const rootPath = "/"

// response is what goes back to the client.
type response struct {
	status    int
	body      string
	tokenLeft time.Duration // life of the token used; 0 if none was
}

func notFound() response { return failure(http.StatusNotFound) }

func failure(status int) response {
	return response{status: status, body: http.StatusText(status) + "\n"}
}

func (a response) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	h.Set("Server", "EC2ws")
	if a.tokenLeft > 0 {
		h.Set(tokenTTLHeader, seconds(a.tokenLeft))
	}
	w.WriteHeader(a.status)
	// The client may have gone; there is nobody to tell.
	_, _ = io.WriteString(w, a.body)
}
