package k8sapi

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
)

// DefaultAccount is where the kubelet puts a pod's service account.
const DefaultAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

const defaultNamespace = "kube-system"

const (
	// rereadAfter is how long what was read of the service account is used. The kubelet replaces a token when 80 % of
	// its life is over, 48 minutes at least for the usual hour.
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

// account is the pod's service account, as files that change now and then.
type account struct {
	dir    string
	secure bool
	clock  clockwork.Clock

	mu        sync.Mutex // guards what follows
	read      time.Time
	token     string
	authority []byte
	transport *http.Transport
}

// prepare gives a request what it needs to be let in, and the transport to send it by.
func (a *account) prepare(r *http.Request) (*http.Transport, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.transport == nil || a.clock.Since(a.read) >= rereadAfter {
		if err := a.reread(); err != nil && a.transport == nil {
			return nil, err
		}
	}
	if a.secure {
		r.Header.Set("Authorization", "Bearer "+a.token)
	}
	return a.transport, nil
}

// reread takes over what the files say now; mu must be held. After an error everything is as it was: a file may be
// missing for the moment in which it is replaced.
func (a *account) reread() error {
	if !a.secure {
		// A token that goes over the wire in the clear is no secret any more.
		if a.transport == nil {
			a.transport = transport(nil)
		}
		return nil
	}
	token, err := os.ReadFile(filepath.Join(a.dir, "token"))
	if err != nil {
		return fmt.Errorf("service account: %w", err)
	}
	authority, err := os.ReadFile(filepath.Join(a.dir, "ca.crt"))
	if err != nil {
		return fmt.Errorf("service account: %w", err)
	}
	if a.transport == nil || !bytes.Equal(authority, a.authority) {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(authority) {
			return errors.New("service account: ca.crt has no certificate")
		}
		if a.transport != nil {
			a.transport.CloseIdleConnections()
		}
		a.transport, a.authority = transport(roots), authority
	}
	a.token, a.read = strings.TrimSpace(string(token)), a.clock.Now()
	return nil
}

// expire has the files read again before the next request.
func (a *account) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.read = time.Time{}
}

func (a *account) namespace() string {
	name, err := os.ReadFile(filepath.Join(a.dir, "namespace"))
	if err != nil || len(bytes.TrimSpace(name)) == 0 {
		return defaultNamespace
	}
	return string(bytes.TrimSpace(name))
}

func transport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		IdleConnTimeout:       idleTimeout,
		MaxIdleConns:          2,
	}
}
