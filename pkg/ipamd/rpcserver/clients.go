package rpcserver

import (
	"context"
	"log/slog"
	"sync"

	"google.golang.org/grpc/metadata"
)

// versionKey is the metadata by which our plugin tells its version. The request's ClientVersion is no place for it:
// upstream's peers compare that with their own, which is empty in every official build.
const versionKey = "vpc-cni-version"

// maxVersion bounds what is kept of a client's word.
const maxVersion = 64

// noVersion stands for plugins that do not tell theirs: upstream's.
const noVersion = "(not told)"

// clients remembers which version of the plugin called last. During a roll-out the daemon and the plugin differ; both
// are served, and the log says when that began and ended.
type clients struct {
	log *slog.Logger

	mu   sync.Mutex
	last string // guarded by mu; empty: none has called
}

// heard takes the version out of a call. legacy is the request's ClientVersion.
func (c *clients) heard(ctx context.Context, legacy string) {
	version := legacy
	if told := metadata.ValueFromIncomingContext(ctx, versionKey); len(told) > 0 {
		version = told[0]
	}
	if version == "" {
		version = noVersion
	}
	if len(version) > maxVersion {
		version = version[:maxVersion]
	}
	c.mu.Lock()
	before := c.last
	c.last = version
	c.mu.Unlock()
	if before != version {
		c.log.InfoContext(ctx, "version of the plugin", "version", version, "before", before)
	}
}

func (c *clients) version() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}
