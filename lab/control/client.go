package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Request is what to ask of a lab.
type Request struct {
	Method string
	Params any // encoded as JSON; nil for none
	// Files are handed to the lab; they stay open here.
	Files []*os.File
	// Progress is called with each line of progress, if it is not nil.
	Progress func(raw json.RawMessage)
	// Signals are passed on to the lab while the request runs.
	Signals <-chan os.Signal
}

// Do sends a request to a lab and decodes the result into result, unless that is nil. The lab drops the request when
// ctx ends.
func Do(ctx context.Context, lab string, r Request, result any) error {
	if err := CheckName(lab); err != nil {
		return err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: Address(lab), Net: "unix"})
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("lab %q %w", lab, ErrNotUp)
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := checkPeer(conn); err != nil {
		return fmt.Errorf("lab %q: %w", lab, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := send(conn, r); err != nil {
		return fmt.Errorf("lab %q: %w", lab, err)
	}
	over := make(chan struct{})
	defer close(over)
	go passSignals(conn, r.Signals, over)
	err = await(bufio.NewReader(conn), r.Progress, result)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("lab %q: %w", lab, ErrGone)
	default:
		return err
	}
}

// ErrGone means that the lab ended during a request.
var ErrGone = errors.New("the lab has ended")

func send(conn *net.UnixConn, r Request) error {
	req := request{Method: r.Method, Files: len(r.Files)}
	if r.Params != nil {
		raw, err := json.Marshal(r.Params)
		if err != nil {
			return err
		}
		req.Params = raw
	}
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	var oob []byte
	if len(r.Files) > 0 {
		fds := make([]int, len(r.Files))
		for i, f := range r.Files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := conn.WriteMsgUnix(line, oob, nil)
	if err == nil && n < len(line) {
		_, err = conn.Write(line[n:])
	}
	return err
}

func passSignals(conn *net.UnixConn, signals <-chan os.Signal, over <-chan struct{}) {
	enc := json.NewEncoder(conn)
	for {
		select {
		case sig, ok := <-signals:
			if !ok {
				return
			}
			if s, ok := sig.(syscall.Signal); ok {
				_ = enc.Encode(note{Signal: int(s)})
			}
		case <-over:
			return
		}
	}
}

func await(r *bufio.Reader, progress func(json.RawMessage), result any) error {
	for {
		line, err := readLine(r)
		if err != nil {
			return err
		}
		var a answer
		if err := json.Unmarshal(line, &a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		switch {
		case a.Error != "":
			return errors.New(a.Error)
		case !a.Done:
			if progress != nil {
				progress(a.Progress)
			}
		case result == nil || len(a.Result) == 0:
			return nil
		default:
			return json.Unmarshal(a.Result, result)
		}
	}
}
