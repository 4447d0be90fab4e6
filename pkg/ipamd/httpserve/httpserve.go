// Package httpserve runs a small HTTP endpoint for people and collectors beside a daemon whose work does not depend on
// it: an address that is taken is tried again, a slow or greedy client is bounded.
package httpserve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// Bounds of a request.
const (
	timeout     = 5 * time.Second
	maxHeaders  = 16 << 10
	maxRequests = 8 // at once; further ones are turned away
)

// How long a failed endpoint rests before the next try; doubled each time.
const (
	firstRest = time.Second
	longRest  = time.Minute
)

// shutdownTimeout is what requests under way get at the end.
const shutdownTimeout = time.Second

// Server is one endpoint.
type Server struct {
	Name    string // for the log
	Address string // host:port, or unix:PATH, which only the own user may connect to
	Handler http.Handler
	Log     *slog.Logger
}

// Run serves until ctx ends. It returns nothing: that the endpoint cannot be had is no reason to stop.
func (s *Server) Run(ctx context.Context) {
	rest := firstRest
	for {
		err := s.serve(ctx, &rest)
		if ctx.Err() != nil {
			return
		}
		s.Log.Warn("endpoint not served", "endpoint", s.Name, "address", s.Address, "error", err, "again", rest)
		timer := time.NewTimer(rest + rand.N(rest/4))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		rest = min(2*rest, longRest)
	}
}

func (s *Server) serve(ctx context.Context, rest *time.Duration) error {
	l, err := s.listen(ctx)
	if err != nil {
		return err
	}
	*rest = firstRest
	s.Log.Info("endpoint served", "endpoint", s.Name, "address", l.Addr().String())
	server := &http.Server{
		Handler:           s.bounded(),
		ReadHeaderTimeout: timeout,
		ReadTimeout:       timeout,
		WriteTimeout:      timeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    maxHeaders,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(stop); err != nil {
		err = errors.Join(err, server.Close())
		s.Log.Debug("endpoint closed with requests under way", "endpoint", s.Name, "error", err)
	}
	<-ended
	return nil
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	path, isUnix := strings.CutPrefix(s.Address, "unix:")
	if !isUnix {
		return new(net.ListenConfig).Listen(ctx, "tcp", s.Address)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict socket: %w", err), l.Close())
	}
	return l, nil
}

// bounded turns requests away while too many are under way: each answer copies the daemon's state.
func (s *Server) bounded() http.Handler {
	slots := make(chan struct{}, maxRequests)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			s.Handler.ServeHTTP(w, r)
		default:
			http.Error(w, "too many requests at once", http.StatusServiceUnavailable)
		}
	})
}
