package imds

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/lab/ec2"
)

var _ Cloud = (*ec2.Cloud)(nil)

// fakeCloud is a cloud whose ENIs a test sets as it likes.
type fakeCloud struct {
	mu        sync.Mutex
	instances map[string]ec2.Instance
	enis      map[string][]ec2.ENI
	vpc       ec2.VPC
}

func (f *fakeCloud) Instance(id string) (ec2.Instance, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, ok := f.instances[id]
	return i, ok
}

func (f *fakeCloud) ENIsOf(id string) []ec2.ENI {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.enis[id])
}

func (f *fakeCloud) VPC(string) (ec2.VPC, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.vpc, true
}

func (f *fakeCloud) Subnet(string) (ec2.Subnet, bool) {
	return ec2.Subnet{ID: "subnet-1", CIDR: netip.MustParsePrefix("10.0.0.0/24"), IPv6: netip.MustParsePrefix("2600:1f14:1:2::/64")}, true
}

func (f *fakeCloud) SecurityGroup(id string) (ec2.SecurityGroup, bool) {
	return ec2.SecurityGroup{ID: id, Name: "name-of-" + id}, true
}

func (f *fakeCloud) Credentials(id string) ec2.Credentials {
	return ec2.Credentials{
		AccessKeyID: "ASIA" + id, SecretAccessKey: "secret", SessionToken: "session",
		Expiration: time.Date(2030, 1, 1, 6, 0, 0, 0, time.UTC),
	}
}

func (f *fakeCloud) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

func eni(id string, device int, addrs ...string) ec2.ENI {
	e := ec2.ENI{
		ID: id, MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(device)}, VPCID: "vpc-1", SubnetID: "subnet-1",
		Groups: []string{"sg-1", "sg-2"}, Primary: netip.MustParseAddr(addrs[0]),
		Attachment: &ec2.Attachment{Device: device, State: "attached"},
	}
	for _, a := range addrs[1:] {
		e.Secondary = append(e.Secondary, netip.MustParseAddr(a))
	}
	return e
}

// lab is a server with two instances, i-1 and i-2, over HTTP. The client says which it is by a header.
type lab struct {
	cloud  *fakeCloud
	clock  *clockwork.FakeClock
	server *Server
	url    string
}

const whoHeader = "X-Test-Instance"

func newLab(t *testing.T) *lab {
	t.Helper()
	launched := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	l := &lab{
		clock: clockwork.NewFakeClockAt(launched),
		cloud: &fakeCloud{
			instances: map[string]ec2.Instance{},
			vpc:       ec2.VPC{ID: "vpc-1", CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}},
			enis: map[string][]ec2.ENI{
				"i-1": {eni("eni-1", 0, "10.0.0.4", "10.0.0.9", "10.0.0.5")},
				"i-2": {eni("eni-2", 0, "10.0.0.6")},
			},
		},
	}
	for _, id := range []string{"i-1", "i-2"} {
		l.cloud.instances[id] = ec2.Instance{
			ID: id, Type: "t3.medium", VPCID: "vpc-1", SubnetID: "subnet-1", Zone: "us-west-2a", State: "running", Launched: launched,
		}
	}
	l.server = New(l.cloud, Options{Clock: l.clock})
	srv := httptest.NewServer(l.server.Handler(func(r *http.Request) (string, bool) {
		id := r.Header.Get(whoHeader)
		return id, id != ""
	}))
	t.Cleanup(srv.Close)
	l.url = srv.URL
	return l
}

// as is a transport that asks as an instance.
type as string

func (id as) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(whoHeader, string(id))
	return http.DefaultTransport.RoundTrip(r)
}

// do makes one request as an instance, with headers given as pairs.
func (l *lab) do(t *testing.T, id, method, path string, headers ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, l.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := as(id).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body strings.Builder
	if err := response.Write(&body); err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(body.String(), "\r\n\r\n")
	return response.StatusCode, text
}

// get reads a path without a token.
func (l *lab) get(t *testing.T, id, path string) string {
	t.Helper()
	l.server.AllowV1(id, true)
	code, text := l.do(t, id, http.MethodGet, "/latest/meta-data/"+path)
	if code != http.StatusOK {
		return http.StatusText(code)
	}
	return text
}
