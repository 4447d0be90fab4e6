package k8sapi

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/jonboulle/clockwork"
)

// Lease is a coordination.k8s.io/v1 Lease.
type Lease struct {
	Version     string // resource version; empty before it is created
	Holder      string
	Duration    time.Duration
	Acquired    time.Time
	Renewed     time.Time
	Transitions int
}

// Leases reads and writes one Lease. A LeaseClient has it.
type Leases interface {
	// Get returns the Lease; the zero Lease if there is none.
	Get(context.Context) (Lease, error)
	// Put creates the Lease if its Version is empty, else replaces that version of it. Taken says that somebody else
	// was faster.
	Put(context.Context, Lease) (taken bool, err error)
}

// LeaseClient is one Lease of the API.
type LeaseClient struct {
	Client    *Client
	Namespace string
	Name      string
}

type leaseObject struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   objectMeta `json:"metadata"`
	Spec       struct {
		Holder      string    `json:"holderIdentity"`
		Seconds     int       `json:"leaseDurationSeconds"`
		Acquired    leaseTime `json:"acquireTime"`
		Renewed     leaseTime `json:"renewTime"`
		Transitions int       `json:"leaseTransitions"`
	} `json:"spec"`
}

// leaseTime is a MicroTime.
type leaseTime struct{ time.Time }

// MarshalJSON writes microseconds, no more and no less, as the API wants them.
func (t leaseTime) MarshalJSON() ([]byte, error) { return []byte(`"` + microTime(t.Time) + `"`), nil }

func (l LeaseClient) path() string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + url.PathEscape(l.Namespace) + "/leases"
}

// Get reads the Lease.
func (l LeaseClient) Get(ctx context.Context) (Lease, error) {
	var o leaseObject
	err := l.Client.call(ctx, request{method: http.MethodGet, path: l.path() + "/" + url.PathEscape(l.Name), into: &o})
	if IsStatus(err, http.StatusNotFound) {
		return Lease{}, nil
	}
	if err != nil {
		return Lease{}, err
	}
	return Lease{
		Version: o.Metadata.ResourceVersion, Holder: o.Spec.Holder, Duration: time.Duration(o.Spec.Seconds) * time.Second,
		Acquired: o.Spec.Acquired.Time, Renewed: o.Spec.Renewed.Time, Transitions: o.Spec.Transitions,
	}, nil
}

// Put writes the Lease.
func (l LeaseClient) Put(ctx context.Context, lease Lease) (taken bool, err error) {
	o := leaseObject{APIVersion: "coordination.k8s.io/v1", Kind: "Lease",
		Metadata: objectMeta{Name: l.Name, Namespace: l.Namespace, ResourceVersion: lease.Version}}
	o.Spec.Holder, o.Spec.Seconds, o.Spec.Transitions = lease.Holder, int(lease.Duration/time.Second), lease.Transitions
	o.Spec.Acquired, o.Spec.Renewed = leaseTime{lease.Acquired}, leaseTime{lease.Renewed}
	r := request{method: http.MethodPost, path: l.path(), body: o}
	if lease.Version != "" {
		r.method, r.path = http.MethodPut, r.path+"/"+url.PathEscape(l.Name)
	}
	err = l.Client.call(ctx, r)
	// Not found: it was deleted in between.
	if IsStatus(err, http.StatusConflict) || lease.Version != "" && IsStatus(err, http.StatusNotFound) {
		return true, nil
	}
	return false, err
}

// Election is one candidate for a Lease. It keeps the Lease by trying more often than the Lease lasts. It is not safe
// for concurrent use.
//
// It is made for work of which it is only a waste if two do it at once: a candidate whose clock is ahead may take over
// early.
type Election struct {
	Leases   Leases
	Identity string
	Duration time.Duration
	Clock    clockwork.Clock

	// seen is the Lease as it was last read, and since when it is so by this candidate's clock.
	seen  Lease
	since time.Time
}

// Try makes the candidate the holder if the Lease is free, expired or its own already, and renews it then. The holder
// is returned in any case; it is empty if another candidate was faster just now.
func (e *Election) Try(ctx context.Context) (holds bool, holder string, err error) {
	now := e.Clock.Now()
	lease, err := e.Leases.Get(ctx)
	if err != nil {
		return false, "", fmt.Errorf("lease: %w", err)
	}
	if lease.Version != e.seen.Version {
		e.seen, e.since = lease, now
	}
	if !e.free(lease, now) {
		return false, lease.Holder, nil
	}
	next := Lease{Version: lease.Version, Holder: e.Identity, Duration: e.Duration, Acquired: lease.Acquired, Renewed: now,
		Transitions: lease.Transitions}
	if lease.Holder != e.Identity {
		next.Acquired = now
		if lease.Version != "" {
			next.Transitions++
		}
	}
	taken, err := e.Leases.Put(ctx, next)
	if err != nil {
		return false, lease.Holder, fmt.Errorf("lease: %w", err)
	}
	if taken {
		return false, "", nil
	}
	return true, e.Identity, nil
}

// free tells whether the candidate may take the Lease. A Lease that nobody has renewed for as long as it lasts has
// expired, by the holder's time or, should its clock be ahead, by how long this candidate has seen it unchanged.
func (e *Election) free(lease Lease, now time.Time) bool {
	return lease.Holder == "" || lease.Holder == e.Identity ||
		now.Sub(lease.Renewed) >= lease.Duration || now.Sub(e.since) >= lease.Duration
}
