package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

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
	alive, err := audit.Rebuild(ctx, clock.Now())
	if err != nil {
		return checkpoint.State{}, fmt.Errorf("who lives on this node cannot be told: %w", err)
	}
	read := len(state.Allocations)
	state.Allocations = merge(state.Allocations, alive)
	log.Warn("allocations rebuilt from the kernel", "allocations", len(state.Allocations)-read, "read", read)
	return state, nil
}

// merge adds what the kernel knows to what could be read of the file, which says more of each: its sandbox.
func merge(read, alive []checkpoint.Allocation) []checkpoint.Allocation {
	for _, a := range alive {
		if !slices.ContainsFunc(read, func(r checkpoint.Allocation) bool { return r.Address == a.Address }) {
			read = append(read, a)
		}
	}
	return read
}
