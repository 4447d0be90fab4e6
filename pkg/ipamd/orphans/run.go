package orphans

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/awsutils"
)

// LeaseName is the Lease, in the namespace of the daemon's service account, by which nodes agree on who cleans.
const LeaseName = "vpc-cni-orphan-cleaner"

const (
	// Every is about how often the elected node cleans, and how often the others look whether there is one. At half an
	// hour a cluster of 5,000 nodes asks the API server three times a second.
	Every = 30 * time.Minute
	// LeaseDuration is more than two of the longest times between passes.
	LeaseDuration = 90 * time.Minute
	// passTimeout bounds one pass.
	passTimeout = 8 * time.Minute
)

// Turns decides whose turn it is. *k8sapi.Election does.
type Turns interface {
	// Try tells whether this node is the one to clean. It sees to its own deadline.
	Try(ctx context.Context) (holds bool, holder string, err error)
}

// Run takes part in the election and, when elected, cleans, until ctx ends. Health is told what is wrong after each
// time; empty if nothing is.
func (c *Cleaner) Run(ctx context.Context, turns Turns, health func(reason string)) {
	var sitOut time.Time
	was := false
	// Nodes that start together do not ask together.
	for wait := rand.N(Every); ; wait = Every*3/4 + rand.N(Every/2) {
		select {
		case <-ctx.Done():
			return
		case <-c.o.Clock.After(wait):
		}
		if c.o.Clock.Now().Before(sitOut) {
			continue
		}
		holds, holder, err := turns.Try(ctx)
		if holds != was {
			c.o.Log.Info("orphan cleaner", "elected", holds, "holder", holder)
			was = holds
		}
		if holds && err == nil {
			if err = c.pass(ctx); err != nil && awsutils.Classify(err) == awsutils.Denied {
				// Another node may have the rights that this one lacks: let the Lease expire.
				sitOut = c.o.Clock.Now().Add(2 * LeaseDuration)
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			health(err.Error())
		default:
			health("")
		}
	}
}

func (c *Cleaner) pass(ctx context.Context) error {
	ctx, cancel := clockwork.WithTimeout(ctx, c.o.Clock, passTimeout)
	defer cancel()
	_, err := c.Clean(ctx)
	return err
}
