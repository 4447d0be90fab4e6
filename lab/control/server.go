package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// requestTimeout bounds the time between a connection and its request.
const requestTimeout = 10 * time.Second

// Call is a request being served.
type Call struct {
	params json.RawMessage
	// Files are the caller's descriptors. They are closed when the handler returns.
	Files []*os.File
	// Signals that the caller has received meanwhile.
	Signals <-chan syscall.Signal

	mu  sync.Mutex
	enc *json.Encoder
}

// Params decodes the request's parameters.
func (c *Call) Params(into any) error {
	if len(c.params) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(c.params))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("parameters: %w (is the lab of another version?)", err)
	}
	return nil
}

// Progress tells the caller how far the request has come.
func (c *Call) Progress(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.send(answer{Progress: raw})
}

func (c *Call) send(a answer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enc.Encode(a)
}

// Handler serves a request. Its context ends when the caller goes away.
type Handler func(ctx context.Context, call *Call) (result any, err error)

// Server answers requests by method.
type Server struct {
	Handlers map[string]Handler
	Log      *slog.Logger
}

// Serve answers until ctx ends, and returns when the requests in flight, whose contexts end with it, are answered.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var flying sync.WaitGroup
	defer flying.Wait()
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("control socket: %w", err)
		}
		flying.Go(func() {
			defer func() { _ = conn.Close() }()
			if err := s.serve(ctx, conn); err != nil {
				s.Log.Warn("control request", "error", err)
			}
		})
	}
}

func (s *Server) serve(ctx context.Context, conn *net.UnixConn) error {
	if err := checkPeer(conn); err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	req, rest, files, err := receive(conn)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil {
		return err
	}
	_ = conn.SetReadDeadline(time.Time{})
	handler, ok := s.Handlers[req.Method]
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan syscall.Signal, 8)
	call := &Call{params: req.Params, Files: files, Signals: signals, enc: json.NewEncoder(conn)}
	if !ok {
		return call.send(answer{Done: true, Error: fmt.Sprintf("the lab knows no request %q: it is of another version", req.Method)})
	}
	go func() {
		follow(rest, signals)
		cancel(errors.New("the caller has gone"))
	}()
	result, err := handler(ctx, call)
	last := answer{Done: true}
	if err != nil {
		last.Error = err.Error()
	} else if last.Result, err = json.Marshal(result); err != nil {
		return err
	}
	// The caller may have gone.
	_ = call.send(last)
	return nil
}

// follow passes the caller's notes on until it goes.
func follow(lines *bufio.Reader, signals chan<- syscall.Signal) {
	dec := json.NewDecoder(lines)
	for {
		var n note
		if err := dec.Decode(&n); err != nil {
			return
		}
		select {
		case signals <- syscall.Signal(n.Signal):
		default: // a handler that does not listen to signals
		}
	}
}

// receive reads a request and the descriptors that come with its first byte.
func receive(conn *net.UnixConn) (req request, rest *bufio.Reader, files []*os.File, err error) {
	buf := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return req, nil, nil, err
	}
	files, err = parseFiles(oob[:oobn])
	if err != nil {
		return req, nil, files, err
	}
	rest = bufio.NewReader(&prefixed{first: buf[:n], conn: conn})
	line, err := readLine(rest)
	if err != nil {
		return req, nil, files, err
	}
	if err := json.Unmarshal(line, &req); err != nil {
		return req, nil, files, fmt.Errorf("request: %w", err)
	}
	if req.Files != len(files) {
		return req, nil, files, fmt.Errorf("request with %d descriptors, %d announced", len(files), req.Files)
	}
	return req, rest, files, nil
}

func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
		if len(line) > maxLine {
			return nil, fmt.Errorf("line of more than %d bytes", maxLine)
		}
	}
}

func parseFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "caller's"))
		}
	}
	return files, nil
}

// prefixed reads what has been read already, then the connection.
type prefixed struct {
	first []byte
	conn  *net.UnixConn
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.conn.Read(b)
}
