package bootstrap

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jonboulle/clockwork"
)

const (
	// refreshEvery is how often IMDS is asked for what changes now and then. It costs EC2 nothing.
	refreshEvery   = 30 * time.Second
	refreshTimeout = 10 * time.Second
)

// Refresh calls read about every refreshEvery until ctx ends. A failure is logged once, not each time.
func Refresh(ctx context.Context, clock clockwork.Clock, what string, log *slog.Logger, read func(context.Context) error) {
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
