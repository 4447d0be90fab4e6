package onecall

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vpccni/rpc"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const method = "/rpc.CNIBackend/AddNetwork"

// backend answers with a function.
type backend struct {
	rpc.UnimplementedCNIBackendServer
	add func(context.Context, *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error)
}

func (b backend) AddNetwork(ctx context.Context, r *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error) {
	return b.add(ctx, r)
}

// serve runs a real gRPC server and returns its socket.
func serve(t *testing.T, add func(context.Context, *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error)) (string, *grpc.Server) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	return socket, serveOn(t, socket, add)
}

func serveOn(t *testing.T, socket string, add func(context.Context, *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error)) *grpc.Server {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	rpc.RegisterCNIBackendServer(server, backend{add: add})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return server
}

func call(t *testing.T, ctx context.Context, socket string, request *rpc.AddNetworkRequest, headers ...Header) (*rpc.AddNetworkReply, error) {
	t.Helper()
	conn, err := Connect(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	encoded, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := conn.Call(ctx, method, headers, encoded)
	if err != nil {
		return nil, err
	}
	reply := &rpc.AddNetworkReply{}
	if err := proto.Unmarshal(answer, reply); err != nil {
		t.Fatal(err)
	}
	return reply, nil
}

func withTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestCallToARealServer(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3000)
	socket, _ := serve(t, func(ctx context.Context, r *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error) {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 30*time.Second {
			return nil, status.Errorf(codes.Internal, "the server knows no deadline")
		}
		if got := metadata.ValueFromIncomingContext(ctx, "vpc-cni-version"); len(got) != 1 || got[0] != "v1" {
			return nil, status.Errorf(codes.Internal, "metadata %q", got)
		}
		// Several frames of answer.
		return &rpc.AddNetworkReply{Success: true, Code: r.GetContainerID(), Reason: strings.Repeat(r.GetNetns(), 20)}, nil
	})
	reply, err := call(t, withTimeout(t), socket, &rpc.AddNetworkRequest{ContainerID: "c1", Netns: long},
		Header{"vpc-cni-version", "v1"}, Header{"long", strings.Repeat("y", 300)})
	if err != nil {
		t.Fatal(err)
	}
	if !reply.GetSuccess() || reply.GetCode() != "c1" || reply.GetReason() != strings.Repeat(long, 20) {
		t.Errorf("got %.80v", reply)
	}
}

func TestErrorsOfARealServer(t *testing.T) {
	t.Parallel()
	socket, server := serve(t, func(ctx context.Context, r *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error) {
		switch r.GetContainerID() {
		case "unknown":
			return nil, status.Error(codes.Unknown, "datastore: unknown pod")
		case "text":
			return nil, status.Error(codes.FailedPrecondition, "3×(6−1) = 100 %\nall held")
		case "large":
			return &rpc.AddNetworkReply{Reason: strings.Repeat("x", maxAnswer)}, nil
		default:
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	for _, tt := range []struct {
		container string
		code      Code
		message   string
	}{
		{"unknown", Unknown, "datastore: unknown pod"},
		{"text", 9, "3×(6−1) = 100 %\nall held"},
	} {
		_, err := call(t, withTimeout(t), socket, &rpc.AddNetworkRequest{ContainerID: tt.container})
		if CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.message) {
			t.Errorf("%s: %v", tt.container, err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := call(t, short, socket, &rpc.AddNetworkRequest{ContainerID: "late"}); CodeOf(err) != DeadlineExceeded {
		t.Errorf("late: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := call(t, cancelled, socket, &rpc.AddNetworkRequest{ContainerID: "late"}); CodeOf(err) != DeadlineExceeded {
		t.Errorf("cancelled: %v", err)
	}
	// More than the window: the server must not be waited for in vain.
	if _, err := call(t, withTimeout(t), socket, &rpc.AddNetworkRequest{ContainerID: "large"}); err == nil {
		t.Error("an answer beyond the window was taken")
	}
	time.AfterFunc(50*time.Millisecond, server.Stop)
	if _, err := call(t, withTimeout(t), socket, &rpc.AddNetworkRequest{ContainerID: "late"}); CodeOf(err) != Unavailable {
		t.Errorf("server killed in the middle: %v", err)
	}
	conn, err := Connect(short, socket)
	if CodeOf(err) != DeadlineExceeded && CodeOf(err) != Unavailable {
		t.Errorf("nobody there: %v %v", conn, err)
	}
}

func TestGracefulStopLetsTheCallEnd(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	socket, server := serve(t, func(context.Context, *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error) {
		close(entered)
		<-release
		return &rpc.AddNetworkReply{Success: true}, nil
	})
	go func() {
		<-entered
		time.AfterFunc(20*time.Millisecond, func() { close(release) })
		server.GracefulStop()
	}()
	if reply, err := call(t, withTimeout(t), socket, &rpc.AddNetworkRequest{}); err != nil || !reply.GetSuccess() {
		t.Errorf("%v %v", reply, err)
	}
}

func TestConnectWaitsForAListener(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "s")
	connected := make(chan error, 1)
	go func() {
		conn, err := Connect(withTimeout(t), socket)
		if err == nil {
			conn.Close()
		}
		connected <- err
	}()
	select {
	case err := <-connected:
		t.Fatalf("connected to nobody: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	serveOn(t, socket, nil)
	if err := <-connected; err != nil {
		t.Error(err)
	}
}

func TestRequestsThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	if _, err := open(t.Context(), method, nil, make([]byte, maxFrame)); err == nil {
		t.Error("a request of more than a frame")
	}
	if _, err := open(t.Context(), method, []Header{{"x", strings.Repeat("y", maxFrame)}}, nil); err == nil {
		t.Error("headers of more than a frame")
	}
}

// scripted is a server that has said everything already.
type scripted struct {
	io.Reader
	written bytes.Buffer
}

func (s *scripted) Write(b []byte) (int, error) { return s.written.Write(b) }

func headers(fields ...string) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for i := 0; i < len(fields); i += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return block.Bytes()
}

func message(payload string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(payload))), payload...)
}

// What servers may say by the protocol, and what they may not.
func TestFrames(t *testing.T) {
	t.Parallel()
	ok := headers(":status", "200", "content-type", "application/grpc")
	end := headers("grpc-status", "0")
	frames := func(list ...[]byte) []byte { return bytes.Join(list, nil) }
	good := frames(appendFrame(nil, frameHeaders, flagEndHeaders, 1, ok), appendFrame(nil, frameData, 0, 1, message("hi")),
		appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, end))
	for name, tt := range map[string]struct {
		input []byte
		want  string
		code  Code
	}{
		"plain": {input: good, want: "hi"},
		"other streams and unknown frames": {want: "hi", input: frames(
			appendFrame(nil, frameSettings, 0, 0, make([]byte, 6)), appendFrame(nil, frameData, 0, 3, []byte("x")),
			appendFrame(nil, 0xfa, 0xff, 1, []byte("x")), appendFrame(nil, framePing, 0, 0, make([]byte, 8)), good)},
		"padding, priority, continuation, split data": {want: "hi", input: frames(
			appendFrame(nil, frameHeaders, flagPadded|flagPriority, 1, frames([]byte{3}, make([]byte, 5), ok[:2], make([]byte, 3))),
			appendFrame(nil, frameContinuation, flagEndHeaders, 1, ok[2:]),
			appendFrame(nil, frameData, flagPadded, 1, frames([]byte{2}, message("hi")[:4], []byte{0, 0})),
			appendFrame(nil, frameData, 0, 1, message("hi")[4:]),
			appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, end))},
		"trailers only":      {code: 7, input: appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, headers(":status", "200", "grpc-status", "7"))},
		"goaway before us":   {code: Unavailable, input: appendFrame(nil, frameGoAway, 0, 0, make([]byte, 8))},
		"goaway after us":    {want: "hi", input: frames(appendFrame(nil, frameGoAway, 0, 0, []byte{0, 0, 0, 1, 0, 0, 0, 0}), good)},
		"refused":            {code: Unavailable, input: appendFrame(nil, frameReset, 0, 1, []byte{0, 0, 0, refusedStream})},
		"given up":           {code: DeadlineExceeded, input: appendFrame(nil, frameReset, 0, 1, []byte{0, 0, 0, cancelStream})},
		"reset":              {code: Internal, input: appendFrame(nil, frameReset, 0, 1, []byte{0, 0, 0, 2})},
		"closed":             {code: Unavailable, input: good[:len(good)-3]},
		"not gRPC":           {code: Unavailable, input: appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, headers(":status", "404"))},
		"not HTTP/2":         {code: Internal, input: []byte("HTTP/1.1 400 Bad Request\r\n\r\n")},
		"bad padding":        {code: Internal, input: appendFrame(nil, frameData, flagPadded, 1, []byte{9, 0})},
		"bad headers":        {code: Internal, input: appendFrame(nil, frameHeaders, flagEndHeaders, 1, []byte{0xff})},
		"bad status":         {code: Internal, input: appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, headers("grpc-status", "fine"))},
		"success, no answer": {code: Internal, input: appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, end)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := &scripted{Reader: bytes.NewReader(tt.input)}
			answer, err := newReader(server).answer()
			if err != nil {
				err = classify(err)
			}
			if string(answer) != tt.want || CodeOf(err) != tt.code {
				t.Errorf("got %q, %v", answer, err)
			}
			if name == "other streams and unknown frames" {
				want := appendFrame(appendFrame(nil, frameSettings, flagAck, 0, nil), framePing, flagAck, 0, make([]byte, 8))
				if !bytes.Equal(server.written.Bytes(), want) {
					t.Errorf("wrote %x, want %x", server.written.Bytes(), want)
				}
			}
		})
	}
}

// Whatever a server sends, the reader ends with an answer or an error.
func FuzzReader(f *testing.F) {
	f.Add(appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, headers("grpc-status", "0")))
	f.Add(appendFrame(appendFrame(nil, frameSettings, 0, 0, nil), frameData, flagPadded|flagEndStream, 1, message("x")))
	f.Fuzz(func(_ *testing.T, input []byte) {
		_, _ = newReader(&scripted{Reader: bytes.NewReader(input)}).answer()
	})
}
