package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/jonboulle/clockwork"
	"golang.org/x/sync/errgroup"

	"vpccni/pkg/awsutils"
)

const (
	// discoverFor bounds the search for the instance's identity. Right after boot IMDS may need some seconds; later a
	// restart by kubelet is as good as a further try.
	discoverFor = 45 * time.Second
	firstPause  = 250 * time.Millisecond
	longPause   = 5 * time.Second

	// refreshEvery is how often IMDS is asked for what changes now and then. It costs EC2 nothing.
	refreshEvery   = 30 * time.Second
	refreshTimeout = 10 * time.Second
)

// instance is what the daemon has to know of where it runs.
type instance struct {
	identity awsutils.Identity
	cidrs    []netip.Prefix
	groups   []string
	subnets  map[string]netip.Prefix
}

// metadata is what is read from IMDS at the start.
type metadata interface {
	Identity(context.Context) (awsutils.Identity, error)
	VPCCIDRs(context.Context) ([]netip.Prefix, error)
	SecurityGroups(context.Context) ([]string, error)
	ENIs(context.Context) ([]awsutils.ENI, error)
}

// discover reads where the daemon runs, again and again until IMDS has answered everything or time is up.
func discover(ctx context.Context, imds metadata, clock clockwork.Clock, log *slog.Logger) (instance, error) {
	ctx, cancel := clockwork.WithTimeout(ctx, clock, discoverFor)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		found, err := read(ctx, imds)
		if err == nil {
			return found, nil
		}
		if ctx.Err() == nil {
			log.Warn("instance metadata incomplete, trying again", "error", err, "after", pause)
		}
		select {
		case <-ctx.Done():
			return instance{}, fmt.Errorf("instance metadata: %w", err)
		case <-clock.After(pause):
		}
	}
}

func read(ctx context.Context, imds metadata) (instance, error) {
	found := instance{subnets: map[string]netip.Prefix{}}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) { found.identity, err = imds.Identity(ctx); return err })
	group.Go(func() (err error) { found.cidrs, err = imds.VPCCIDRs(ctx); return err })
	group.Go(func() (err error) { found.groups, err = imds.SecurityGroups(ctx); return err })
	var enis []awsutils.ENI
	group.Go(func() (err error) { enis, err = imds.ENIs(ctx); return err })
	if err := group.Wait(); err != nil {
		return instance{}, err
	}
	for _, e := range enis {
		if e.SubnetCIDR.IsValid() {
			found.subnets[e.SubnetID] = e.SubnetCIDR
		}
	}
	if !found.subnets[found.identity.SubnetID].IsValid() {
		return instance{}, fmt.Errorf("the range of subnet %q is not there yet", found.identity.SubnetID)
	}
	return found, nil
}

// refresh calls read about every refreshEvery until ctx ends. A failure is logged once, not each time.
func refresh(ctx context.Context, clock clockwork.Clock, what string, log *slog.Logger, read func(context.Context) error) {
	failing := false
	for {
		// Nodes that started together do not ask together.
		select {
		case <-ctx.Done():
			return
		case <-clock.After(refreshEvery*9/10 + rand.N(refreshEvery/5)):
		}
		err := func() error {
			ctx, cancel := clockwork.WithTimeout(ctx, clock, refreshTimeout)
			defer cancel()
			return read(ctx)
		}()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failing:
			log.Warn("not refreshed", "what", what, "error", err)
		case err == nil && failing:
			log.Info("refreshed again", "what", what)
		}
		failing = err != nil
	}
}
