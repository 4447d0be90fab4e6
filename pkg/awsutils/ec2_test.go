package awsutils

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
)

// endpoint is EC2 over real TLS: it counts requests and cuts the connection after the effect of the first.
func endpoint(t *testing.T, requests *atomic.Int32, cutFirst bool) *httptest.Server {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) == 1 && cutFirst {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write([]byte(assignedXML)); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

// trust makes the SDK trust a server by AWS_CA_BUNDLE.
func trust(t *testing.T, srv *httptest.Server) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", file)
}

func overTLS(t *testing.T, endpoint string) *EC2 {
	t.Helper()
	e, err := NewEC2(t.Context(), EC2Options{
		Region:      "us-west-2",
		Endpoint:    endpoint,
		HTTPTimeout: 5 * time.Second,
		Credentials: credentials.NewStaticCredentialsProvider("AKIA", "secret", ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEndpoint(t *testing.T) {
	var first, second atomic.Int32
	a, b := endpoint(t, &first, false), endpoint(t, &second, false)
	trust(t, a) // httptest has one certificate for all
	if err := assign(t.Context(), overTLS(t, a.URL)); err != nil || first.Load() != 1 {
		t.Errorf("AWS_EC2_ENDPOINT: %v, %d requests", err, first.Load())
	}
	t.Setenv("AWS_ENDPOINT_URL_EC2", b.URL)
	if err := assign(t.Context(), overTLS(t, a.URL)); err != nil || first.Load() != 1 || second.Load() != 1 {
		t.Errorf("AWS_ENDPOINT_URL_EC2: %v, %d and %d requests", err, first.Load(), second.Load())
	}
}

func TestLostOverTCP(t *testing.T) {
	var requests atomic.Int32
	srv := endpoint(t, &requests, true)
	e := overTLS(t, srv.URL)
	if err := assign(t.Context(), e); Classify(err) != Other || requests.Load() != 0 {
		t.Errorf("certificate not trusted: class %v, %d requests; %v", Classify(err), requests.Load(), err)
	}
	trust(t, srv)
	e = overTLS(t, srv.URL)
	if err := assign(t.Context(), e); Classify(err) != Timeout || requests.Load() != 1 {
		t.Errorf("connection cut: class %v, %d requests; %v", Classify(err), requests.Load(), err)
	}
	if err := assign(t.Context(), e); err != nil || requests.Load() != 2 {
		t.Errorf("after that: %v, %d requests", err, requests.Load())
	}
	srv.Close()
	if err := assign(t.Context(), e); err == nil || requests.Load() != 2 {
		t.Errorf("server gone: %v, %d requests", err, requests.Load())
	}
}

func TestNoRegion(t *testing.T) {
	t.Parallel()
	if _, err := NewEC2(t.Context(), EC2Options{}); err == nil {
		t.Error("a client without a region")
	}
}
