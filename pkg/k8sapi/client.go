// Package k8sapi speaks with the Kubernetes API for one node: it follows the node's own Node object, posts events, and
// takes turns with other nodes by a Lease.
//
// Who this node is, and how that is proved, is client-go's (package rest): the service account, its token's rotation,
// TLS. The requests are plain HTTP and JSON, of which only the few fields that are used are decoded: typed clients and
// informers would cost more memory than all addresses of a node.
package k8sapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/jonboulle/clockwork"
)

const (
	// callTimeout bounds one call, a watch apart.
	callTimeout = 10 * time.Second
	// maxAnswer bounds what an answer, or one event of a watch, may bring into memory. A Node with all its images has
	// some tens of KB.
	maxAnswer = 4 << 20
)

// ErrNoCluster is the error of New where nothing says where the API is.
var ErrNoCluster = errors.New("no Kubernetes API: none of CLUSTER_ENDPOINT and KUBERNETES_SERVICE_HOST is set")

// Options say where the API is. Endpoint or Host is required.
type Options struct {
	Endpoint  string // CLUSTER_ENDPOINT: goes before Host and Port
	Host      string // KUBERNETES_SERVICE_HOST
	Port      string // KUBERNETES_SERVICE_PORT; 443 if empty
	Account   string // folder of the service account; DefaultAccount if empty
	UserAgent string
	Clock     clockwork.Clock // of pauses and times in objects, not of connections; the real one if nil
}

// Client calls the Kubernetes API. It is safe for concurrent use. It needs no answer to be made.
type Client struct {
	base    *url.URL
	account *account
	clock   clockwork.Clock
}

// New returns a Client. It makes no call, and reads no file before the first one.
func New(o Options) (*Client, error) {
	address := o.Endpoint
	if address == "" && o.Host != "" {
		address = "https://" + net.JoinHostPort(o.Host, cmp.Or(o.Port, "443"))
	}
	if address == "" {
		return nil, ErrNoCluster
	}
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	base, err := url.Parse(address)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, fmt.Errorf("kubernetes API: %q is no URL of a server", address)
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	return &Client{
		base: base, clock: o.Clock,
		account: &account{dir: cmp.Or(o.Account, DefaultAccount), agent: o.UserAgent, secure: base.Scheme == "https", clock: o.Clock},
	}, nil
}

// StatusError is what the API says of a request that it does not fulfil.
type StatusError struct {
	Code    int    // of HTTP
	Reason  string // Forbidden, Conflict, AlreadyExists, Expired …
	Message string
}

// Error joins what the API says.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Code, e.Reason, e.Message)
}

// IsStatus tells whether the API answered with one of these HTTP codes.
func IsStatus(err error, codes ...int) bool {
	var st *StatusError
	if !errors.As(err, &st) {
		return false
	}
	for _, code := range codes {
		if st.Code == code {
			return true
		}
	}
	return false
}

// request is one call. Body and into may be nil.
type request struct {
	method string
	path   string // /api/v1/…
	query  url.Values
	body   any
	into   any
}

// call makes one call and decodes its answer.
func (c *Client) call(ctx context.Context, r request) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	defer drain(answer)
	if r.into == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(answer, maxAnswer)).Decode(r.into); err != nil {
		return fmt.Errorf("kubernetes: %s %s: %w", r.method, r.path, err)
	}
	return nil
}

// send makes a request and returns the body of a good answer. The error of any other is a *StatusError.
func (c *Client) send(ctx context.Context, r request) (io.ReadCloser, error) {
	fail := func(err error) error { return fmt.Errorf("kubernetes: %s %s: %w", r.method, r.path, err) }
	var body io.Reader
	if r.body != nil {
		data, err := json.Marshal(r.body)
		if err != nil {
			return nil, fail(err)
		}
		body = bytes.NewReader(data)
	}
	to := c.base.JoinPath(r.path)
	to.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, to.String(), body)
	if err != nil {
		return nil, fail(err)
	}
	req.Header.Set("Accept", "application/json")
	switch {
	case r.method == http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case body != nil:
		req.Header.Set("Content-Type", "application/json")
	}
	transport, err := c.account.transport()
	if err != nil {
		return nil, fail(err)
	}
	// Redirects are not followed: they would take the token to somebody else.
	answer, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fail(err)
	}
	if answer.StatusCode/100 == 2 {
		return answer.Body, nil
	}
	defer drain(answer.Body)
	if answer.StatusCode == http.StatusUnauthorized {
		c.account.expire()
	}
	st := &StatusError{}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(st); err != nil || st.Reason == "" {
		// Something before the API answered, a load balancer for instance.
		*st = StatusError{Reason: http.StatusText(answer.StatusCode), Message: "an answer that is not the API's"}
	}
	st.Code = answer.StatusCode
	return nil, fail(st)
}

// drain lets the connection be used again.
func drain(body io.ReadCloser) {
	_, _ = io.Copy(io.Discard, io.LimitReader(body, 64<<10))
	_ = body.Close()
}

// objectMeta is what is read of an object's metadata, and written of it.
type objectMeta struct {
	Name            string `json:"name,omitempty"`
	Namespace       string `json:"namespace,omitempty"`
	UID             string `json:"uid,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// PodUID returns the uid of a pod, by which people find its events.
func (c *Client) PodUID(ctx context.Context, namespace, name string) (string, error) {
	var pod struct {
		Metadata objectMeta `json:"metadata"`
	}
	err := c.call(ctx, request{
		method: http.MethodGet, path: "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods/" + url.PathEscape(name), into: &pod,
	})
	return pod.Metadata.UID, err
}

// Namespace is that of the service account, which is this pod's; kube-system if it cannot be read.
func (c *Client) Namespace() string { return c.account.namespace() }
