package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/ipamd/audit"
	"vpccni/pkg/ipamd/checkpoint"
)

// Restore takes over the state that the last run left. What it cannot read it replaces by what the kernel knows.
func Restore(ctx context.Context, store *checkpoint.Store, clock clockwork.Clock, log *slog.Logger) (checkpoint.State, error) {
	state, err := store.Load()
	var notice *checkpoint.Notice
	if !errors.As(err, &notice) {
		return state, err
	}
	log.Error("state file", "error", notice)
	if !notice.AllocationsLost {
		return state, nil
	}
	// Without this an address of a living pod could be given to another one.
	state.Allocations, err = audit.Rebuild(ctx, clock.Now())
	if err != nil {
		return checkpoint.State{}, fmt.Errorf("who lives on this node cannot be told: %w", err)
	}
	log.Warn("allocations rebuilt from the kernel", "allocations", len(state.Allocations))
	return state, nil
}
