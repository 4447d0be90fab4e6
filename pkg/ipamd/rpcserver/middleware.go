package rpcserver

import (
	"context"
	"log/slog"
	"runtime/debug"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vpccni/pkg/ipamd"
	"vpccni/rpc"
)

// recoverPanics answers with an error where a handler has a bug: one pod's request must not take the node's
// networking down with it.
func recoverPanics(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (reply any, err error) {
		defer func() {
			if p := recover(); p != nil {
				log.Error("panic in a request", "method", info.FullMethod, "panic", p, "stack", string(debug.Stack()))
				reply, err = nil, status.Error(codes.Internal, "internal error, see ipamd's log")
			}
		}()
		return next(ctx, req)
	}
}

// limitCalls gives every call a deadline and bounds how many are under way. ADDs and DELs are counted apart, for a
// node full of waiting ADDs is helped by nothing but a DEL.
func limitCalls() grpc.UnaryServerInterceptor {
	adds, dels := semaphore.NewWeighted(maxAdds), semaphore.NewWeighted(maxDels)
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		timeout := delTimeout
		if info.FullMethod == rpc.CNIBackend_AddNetwork_FullMethodName {
			timeout = addTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		switch info.FullMethod {
		case rpc.CNIBackend_AddNetwork_FullMethodName:
			if !adds.TryAcquire(1) {
				return refused(&ipamd.Refusal{Code: ipamd.CodeQueueFull, Reason: "too many pods are waiting for an address on this node"}), nil
			}
			defer adds.Release(1)
		case rpc.CNIBackend_DelNetwork_FullMethodName:
			if err := dels.Acquire(ctx, 1); err != nil {
				return nil, status.FromContextError(err).Err()
			}
			defer dels.Release(1)
		}
		return next(ctx, req)
	}
}
