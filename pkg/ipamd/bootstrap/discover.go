// Package bootstrap finds out what the daemon has to know before it can start: where it runs (IMDS), what it held
// before (the state file, or else the kernel), and what its operator wants (the configuration).
package bootstrap

import (
	"context"
	"fmt"
	"log/slog"
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
)

// Instance is what the daemon has to know of where it runs.
type Instance struct {
	Identity awsutils.Identity
	VPCCIDRs []netip.Prefix
	Groups   []string                // security groups of the primary ENI
	Subnets  map[string]netip.Prefix // ranges of the subnets that the instance has ENIs in
}

// Metadata is what is read from IMDS. *awsutils.IMDS has it.
type Metadata interface {
	Identity(context.Context) (awsutils.Identity, error)
	VPCCIDRs(context.Context) ([]netip.Prefix, error)
	SecurityGroups(context.Context) ([]string, error)
	ENIs(context.Context) ([]awsutils.ENI, error)
}

// Discover reads where the daemon runs, again and again until IMDS has answered everything or time is up.
func Discover(ctx context.Context, imds Metadata, clock clockwork.Clock, log *slog.Logger) (Instance, error) {
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
			return Instance{}, fmt.Errorf("instance metadata: %w", err)
		case <-clock.After(pause):
		}
	}
}

func read(ctx context.Context, imds Metadata) (Instance, error) {
	found := Instance{Subnets: map[string]netip.Prefix{}}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) { found.Identity, err = imds.Identity(ctx); return err })
	group.Go(func() (err error) { found.VPCCIDRs, err = imds.VPCCIDRs(ctx); return err })
	group.Go(func() (err error) { found.Groups, err = imds.SecurityGroups(ctx); return err })
	var enis []awsutils.ENI
	group.Go(func() (err error) { enis, err = imds.ENIs(ctx); return err })
	if err := group.Wait(); err != nil {
		return Instance{}, err
	}
	for _, e := range enis {
		if e.SubnetCIDR.IsValid() {
			found.Subnets[e.SubnetID] = e.SubnetCIDR
		}
	}
	if !found.Subnets[found.Identity.SubnetID].IsValid() {
		return Instance{}, fmt.Errorf("the range of subnet %q is not there yet", found.Identity.SubnetID)
	}
	return found, nil
}
