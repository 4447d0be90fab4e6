package onecall

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/net/http2/hpack"
)

// Frame types, flags and limits of HTTP/2 (RFC 9113, section 6).
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	frameReset        = 0x3
	frameSettings     = 0x4
	framePing         = 0x6
	frameGoAway       = 0x7
	frameContinuation = 0x9

	flagAck        = 0x1 // SETTINGS, PING
	flagEndStream  = 0x1 // DATA, HEADERS
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20

	maxFrame  = 16384 // what a peer accepts that has not said otherwise
	maxAnswer = 65535 // the initial window

	refusedStream = 0x7 // error code: the request was not looked at
	cancelStream  = 0x8 // error code: the server ends the call
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// stream is the number of the only stream.
const stream = 1

// message prefix of gRPC: one byte for compression, four for the length.
const prefixLen = 5

// open is all that the client has to say: the connection's preface, its settings, and the request. A client need not
// wait for the server's settings.
func open(ctx context.Context, method string, headers []Header, request []byte) ([]byte, error) {
	block := headerBlock(ctx, method, headers)
	if len(block) > maxFrame || prefixLen+len(request) > maxFrame {
		return nil, &Status{Internal, "the request is too large"}
	}
	out := []byte(preface)
	out = appendFrame(out, frameSettings, 0, 0, nil)
	out = appendFrame(out, frameHeaders, flagEndHeaders, stream, block)
	message := make([]byte, prefixLen, prefixLen+len(request))
	binary.BigEndian.PutUint32(message[1:], uint32(len(request)))
	return appendFrame(out, frameData, flagEndStream, stream, append(message, request...)), nil
}

func headerBlock(ctx context.Context, method string, headers []Header) []byte {
	all := []Header{
		{":method", "POST"}, {":scheme", "http"}, {":path", method}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	}
	if deadline, ok := ctx.Deadline(); ok {
		left := max(time.Until(deadline).Milliseconds(), 1)
		all = append(all, Header{"grpc-timeout", strconv.FormatInt(min(left, 99_999_999), 10) + "m"})
	}
	var block []byte
	for _, h := range append(all, headers...) {
		// A literal with a literal name, not to be indexed: no table to keep.
		block = append(block, 0)
		block = appendString(block, h.Name)
		block = appendString(block, h.Value)
	}
	return block
}

// appendString appends an HPACK string without Huffman coding: its length with a 7-bit prefix (RFC 7541, 5.1), itself.
func appendString(b []byte, s string) []byte {
	const prefix = 1<<7 - 1
	if len(s) < prefix {
		b = append(b, byte(len(s)))
	} else {
		b = binary.AppendUvarint(append(b, prefix), uint64(len(s)-prefix))
	}
	return append(b, s...)
}

func appendFrame(b []byte, typ, flags byte, id uint32, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n>>16), byte(n>>8), byte(n), typ, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	return append(b, payload...)
}

// reader reads the server's frames until the call is over.
type reader struct {
	in     *bufio.Reader
	out    io.Writer
	decode *hpack.Decoder

	status  string // grpc-status
	message string // grpc-message
	http    string // :status
	block   []byte // header block that goes on in CONTINUATION frames
	ends    bool   // the block is the stream's end
	body    []byte
}

func newReader(rw io.ReadWriter) *reader {
	r := &reader{in: bufio.NewReader(rw), out: rw}
	r.decode = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		switch f.Name {
		case ":status":
			r.http = f.Value
		case "grpc-status":
			r.status = f.Value
		case "grpc-message":
			r.message = f.Value
		}
	})
	return r
}

// answer reads to the end of the stream.
func (r *reader) answer() ([]byte, error) {
	for {
		typ, flags, id, payload, err := r.frame()
		if err != nil {
			return nil, err
		}
		done, err := r.take(typ, flags, id, payload)
		if err != nil {
			return nil, err
		}
		if done {
			return r.finish()
		}
	}
}

func (r *reader) frame() (typ, flags byte, id uint32, payload []byte, err error) {
	var head [9]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	size := int(head[0])<<16 | int(head[1])<<8 | int(head[2])
	if size > maxFrame {
		return 0, 0, 0, nil, protocolError("a frame of %d bytes", size)
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(r.in, payload)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]) &^ (1 << 31), payload, err
}

// take handles one frame and tells whether the stream ended with it.
func (r *reader) take(typ, flags byte, id uint32, payload []byte) (bool, error) {
	switch typ {
	case frameSettings, framePing:
		if flags&flagAck != 0 {
			return false, nil
		}
		if typ == frameSettings {
			payload = nil
		}
		_, err := r.out.Write(appendFrame(nil, typ, flagAck, 0, payload))
		return false, err
	case frameGoAway:
		if len(payload) >= 4 && binary.BigEndian.Uint32(payload)&^(1<<31) < stream {
			return false, &Status{Unavailable, "the server is going away"}
		}
		return false, nil
	}
	if id != stream {
		return false, nil
	}
	switch typ {
	case frameReset:
		code := uint32(0)
		if len(payload) == 4 {
			code = binary.BigEndian.Uint32(payload)
		}
		switch code {
		case refusedStream:
			return false, &Status{Unavailable, "the server refuses the call"}
		case cancelStream:
			// The server knows the caller's deadline, and its clock can be the first to reach it.
			return false, &Status{DeadlineExceeded, "the server gave the call up"}
		}
		return false, &Status{Internal, "the server broke the call off"}
	case frameData:
		data, err := unpad(flags, payload)
		if err != nil {
			return false, err
		}
		r.body = append(r.body, data...)
		// The server would wait for a wider window before it sends the rest.
		if len(r.body) > maxAnswer || len(r.body) >= prefixLen && r.messageLen() > maxAnswer-prefixLen {
			return false, protocolError("an answer of more than %d bytes", maxAnswer)
		}
		return flags&flagEndStream != 0, nil
	case frameHeaders:
		block, err := unpad(flags, payload)
		if err != nil {
			return false, err
		}
		if flags&flagPriority != 0 {
			if len(block) < 5 {
				return false, protocolError("short priority")
			}
			block = block[5:]
		}
		r.block, r.ends = block, flags&flagEndStream != 0
	case frameContinuation:
		if r.block = append(r.block, payload...); len(r.block) > maxAnswer {
			return false, protocolError("headers of more than %d bytes", maxAnswer)
		}
	default:
		return false, nil
	}
	if flags&flagEndHeaders == 0 {
		return false, nil
	}
	if _, err := r.decode.Write(r.block); err != nil {
		return false, protocolError("headers: %v", err)
	}
	if err := r.decode.Close(); err != nil {
		return false, protocolError("headers: %v", err)
	}
	return r.ends, nil
}

func unpad(flags byte, payload []byte) ([]byte, error) {
	if flags&flagPadded == 0 {
		return payload, nil
	}
	if len(payload) == 0 || int(payload[0]) >= len(payload) {
		return nil, protocolError("bad padding")
	}
	return payload[1 : len(payload)-int(payload[0])], nil
}

// finish reads the call's status and its one message.
func (r *reader) finish() ([]byte, error) {
	if r.status == "" {
		return nil, &Status{Unavailable, fmt.Sprintf("no gRPC server answered (HTTP status %q)", r.http)}
	}
	code, err := strconv.ParseUint(r.status, 10, 32)
	if err != nil {
		return nil, protocolError("grpc-status %q", r.status)
	}
	if code != 0 {
		text, err := url.PathUnescape(r.message)
		if err != nil {
			text = r.message
		}
		return nil, &Status{Code(code), text}
	}
	if len(r.body) < prefixLen || r.body[0] != 0 || r.messageLen() != len(r.body)-prefixLen {
		return nil, protocolError("an answer that is not one plain message")
	}
	return r.body[prefixLen:], nil
}

// messageLen is the length of the answer by its prefix.
func (r *reader) messageLen() int { return int(binary.BigEndian.Uint32(r.body[1:])) }

func protocolError(format string, args ...any) error {
	return &Status{Internal, "the server does not keep to the protocol: " + fmt.Sprintf(format, args...)}
}
