// Package onecall is a gRPC client for a process that makes one unary call over a unix socket and ends. A full client
// costs more to start than everything else that the CNI plugin does (docs/aws-cni.md has the figures): its
// initialization, its goroutines and the pages that they touch serve connections that live on. Here one goroutine
// writes one request and reads until its answer is there.
//
// It is HTTP/2 as far as that needs it. Requests fit one frame and answers the initial flow-control window, so there
// is no flow control; settings and pings of the server are answered, what concerns other streams is ignored.
package onecall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"
)

// Code is a gRPC status code.
type Code uint32

// The codes that callers tell apart.
const (
	Unknown          Code = 2
	DeadlineExceeded Code = 4
	Internal         Code = 13
	Unavailable      Code = 14
)

// Status is a call that did not succeed: what the server said, or what kept it from saying something.
type Status struct {
	Code    Code
	Message string
}

func (s *Status) Error() string {
	return fmt.Sprintf("rpc error: code = %s desc = %s", s.Code, s.Message)
}

func (c Code) String() string {
	switch c {
	case Unknown:
		return "Unknown"
	case DeadlineExceeded:
		return "DeadlineExceeded"
	case Internal:
		return "Internal"
	case Unavailable:
		return "Unavailable"
	default:
		return fmt.Sprintf("Code(%d)", uint32(c))
	}
}

// CodeOf is the code of a call's error; 0 for nil, Unknown for errors of other kinds.
func CodeOf(err error) Code {
	var status *Status
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return status.Code
	default:
		return Unknown
	}
}

// Pauses between attempts to connect: a daemon that restarts is back within seconds, and many plugins may wait for it.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// Header is one entry of a call's metadata.
type Header struct{ Name, Value string }

// Conn is a connection that has not made its call yet.
type Conn struct{ conn net.Conn }

// Connect waits for somebody to listen on the socket, until ctx ends.
func Connect(ctx context.Context, socket string) (*Conn, error) {
	var dialer net.Dialer
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		conn, err := dialer.DialContext(ctx, "unix", socket)
		if err == nil {
			return &Conn{conn: conn}, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EAGAIN) {
			return nil, classify(err)
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, &Status{Unavailable, fmt.Sprintf("nobody listens: %v", err)}
		case <-timer.C:
		}
	}
}

// Close gives the connection up.
func (c *Conn) Close() { _ = c.conn.Close() }

// Call makes the connection's one call and returns the encoded answer. Method is "/package.Service/Method".
func (c *Conn) Call(ctx context.Context, method string, headers []Header, request []byte) ([]byte, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.conn.SetDeadline(deadline); err != nil {
			return nil, classify(err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	opening, err := open(ctx, method, headers, request)
	if err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(opening); err != nil {
		return nil, classify(err)
	}
	answer, err := newReader(c.conn).answer()
	if err != nil {
		return nil, classify(err)
	}
	return answer, nil
}

// classify gives transport errors a code. A connection that breaks leaves open what became of the call.
func classify(err error) error {
	var status *Status
	switch {
	case errors.As(err, &status):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &Status{DeadlineExceeded, "no answer in time"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &Status{Unavailable, "the connection was closed before the answer"}
	default:
		return &Status{Unavailable, err.Error()}
	}
}
