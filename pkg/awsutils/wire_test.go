package awsutils

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"
)

// The SDK reads the environment; no test may depend on the developer's.
func TestMain(m *testing.M) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("AWS_CONFIG_FILE", os.DevNull)
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	os.Exit(m.Run())
}

// answer is one scripted answer of EC2.
type answer struct {
	status int
	body   string
	err    error // instead of an answer
	cut    bool  // the connection ends in the middle of the body
	hang   bool  // no answer before the client gives up
}

func ok(body string) answer { return answer{status: 200, body: body} }

func failed(status int, code, message string) answer {
	return answer{status: status, body: fmt.Sprintf(
		"<Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors><RequestID>r-1</RequestID></Response>",
		code, message)}
}

var throttled = failed(503, "RequestLimitExceeded", "Request limit exceeded.")

// wire is EC2 as a transport: it gives its answers in order, the last one for ever, and keeps the requests.
type wire struct {
	mu       sync.Mutex
	answers  []answer
	requests []url.Values
	agents   []string
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.requests = append(w.requests, form)
	w.agents = append(w.agents, r.UserAgent())
	a := w.answers[0]
	if len(w.answers) > 1 {
		w.answers = w.answers[1:]
	}
	w.mu.Unlock()
	switch {
	case a.hang:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case a.err != nil:
		return nil, a.err
	}
	reader := io.Reader(strings.NewReader(a.body))
	if a.cut {
		reader = io.MultiReader(strings.NewReader(a.body[:len(a.body)/2]), cutReader{})
	}
	return &http.Response{
		StatusCode: a.status, Status: http.StatusText(a.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(reader), Request: r,
	}, nil
}

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func (w *wire) sent() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.requests)
}

// form is the n-th request as sorted lines.
func (w *wire) form(n int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(w.requests[n])) {
		if key != "Version" {
			lines = append(lines, key+"="+w.requests[n].Get(key))
		}
	}
	return strings.Join(lines, "\n")
}

// client is an EC2 that talks to the wire, with the calls that it reported.
func client(t *testing.T, w http.RoundTripper) (*EC2, func() []Call) {
	t.Helper()
	var (
		mu    sync.Mutex
		calls []Call
	)
	e, err := NewEC2(context.Background(), EC2Options{
		Region:      "us-west-2",
		Version:     "v1.2.3",
		Credentials: credentials.NewStaticCredentialsProvider("AKIA", "secret", ""),
		HTTPClient:  &http.Client{Transport: w, Timeout: DefaultHTTPTimeout},
		Observe: func(c Call) {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, c)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e, func() []Call {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(calls)
	}
}
