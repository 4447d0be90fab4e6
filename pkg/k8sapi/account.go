package k8sapi

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
	"k8s.io/client-go/rest"
)

// DefaultAccount is where the kubelet puts a pod's service account.
const DefaultAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

const defaultNamespace = "kube-system"

const (
	// rereadAfter is how often the file of the authority is looked at; client-go looks at the token's as often.
	rereadAfter = time.Minute
	// dialTimeout bounds a connection's beginnings, so that a dead address is known before a call's time is over.
	dialTimeout = 5 * time.Second
	// headerTimeout is how long a server may think before it says anything.
	headerTimeout = 10 * time.Second
	// pingAfter and pingTimeout find connections that died without a word: a watch says nothing for minutes.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	idleTimeout = 90 * time.Second
)

// account is the pod's service account, as files that change now and then. client-go reads them and shows them to the
// API.
type account struct {
	dir    string
	agent  string
	secure bool
	clock  clockwork.Clock

	mu        sync.Mutex // guards what follows
	looked    time.Time
	authority []byte
	base      *http.Transport
	rounds    http.RoundTripper // base, with what lets requests in
	refused   bool              // the token is not good any more
}

// transport returns what requests are sent by. Files that are missing are an error only until they were there once: one
// may be missing for the moment in which it is replaced.
func (a *account) transport() (http.RoundTripper, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rounds != nil && !a.refused && (!a.secure || a.clock.Since(a.looked) < rereadAfter) {
		return a.rounds, nil
	}
	if err := a.open(); err != nil && a.rounds == nil {
		return nil, fmt.Errorf("service account: %w", err)
	}
	return a.rounds, nil
}

// open makes the transport, again if the authority has changed or the token was refused; mu must be held.
func (a *account) open() error {
	cfg := &rest.Config{UserAgent: a.agent}
	var authority []byte
	if a.secure { // A token that goes over the wire in the clear is no secret any more.
		cfg.CAFile = filepath.Join(a.dir, "ca.crt")
		cfg.BearerTokenFile = filepath.Join(a.dir, "token")
		var err error
		if authority, err = os.ReadFile(cfg.CAFile); err != nil {
			return err
		}
	}
	a.looked = a.clock.Now()
	if a.rounds != nil && !a.refused && bytes.Equal(authority, a.authority) {
		return nil
	}
	secure, err := rest.TLSConfigFor(cfg)
	if err != nil {
		return err
	}
	base := baseTransport(secure)
	rounds, err := rest.HTTPWrappersForConfig(cfg, base)
	if err != nil {
		return err
	}
	if a.base != nil {
		a.base.CloseIdleConnections()
	}
	a.base, a.rounds, a.authority, a.refused = base, rounds, authority, false
	return nil
}

// expire has the token read again before the next request.
func (a *account) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused = true
}

func (a *account) namespace() string {
	name, err := os.ReadFile(filepath.Join(a.dir, "namespace"))
	if err != nil || len(bytes.TrimSpace(name)) == 0 {
		return defaultNamespace
	}
	return string(bytes.TrimSpace(name))
}

func baseTransport(secure *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       secure,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		IdleConnTimeout:       idleTimeout,
		MaxIdleConns:          2,
	}
}
