package ec2

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
)

// Transport carries requests to the cloud without a socket: many callers in one process, or a fake clock's test, need
// no server. A lost response is an unexpected end of the connection, as over a real one.
func (c *Cloud) Transport() http.RoundTripper { return transport{c.Handler()} }

type transport struct{ handler http.Handler }

func (t transport) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	// As a server sees it.
	in := r.Clone(r.Context())
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	defer in.Body.Close()
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			resp, err = nil, io.ErrUnexpectedEOF
		default:
			panic(p)
		}
	}()
	a := &answer{header: http.Header{}, status: http.StatusOK}
	t.handler.ServeHTTP(a, in)
	return &http.Response{
		Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(&a.body), ContentLength: int64(a.body.Len()), Request: r,
	}, nil
}

// answer collects what a handler answers.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }
