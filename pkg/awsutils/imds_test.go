package awsutils

import (
	"context"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// metadata is IMDS: values and statuses by path. It is served in memory.
type metadata struct {
	mu       sync.Mutex
	values   map[string]string // behind /latest/meta-data/
	statuses map[string]int
	hang     bool
	last     string // forget a MAC's directory after this path has been read
}

func (m *metadata) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	m.mu.Lock()
	hang := m.hang
	m.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	m.serve(w, r)
	response := w.Result()
	response.Request = r
	return response, nil
}

func (m *metadata) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/latest/")
	if r.Method == http.MethodPut && path == "api/token" {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
		_, _ = w.Write([]byte("token"))
		return
	}
	path = strings.TrimPrefix(path, "meta-data/")
	if r.Header.Get("X-Aws-Ec2-Metadata-Token") != "token" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if code, ok := m.statuses[path]; ok {
		w.WriteHeader(code)
		return
	}
	value, ok := m.values[path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = w.Write([]byte(value))
	if path == m.last {
		dir, _, _ := strings.Cut(path, "/device-number")
		maps.DeleteFunc(m.values, func(name, _ string) bool { return strings.HasPrefix(name, dir+"/") })
	}
}

const macs = "network/interfaces/macs/"

func newMetadata() *metadata {
	const first, second = macs + "02:00:00:00:00:01/", macs + "02:00:00:00:00:02/"
	return &metadata{statuses: map[string]int{}, values: map[string]string{
		"dynamic/instance-identity/document": `{"region":"us-west-2"}`,
		"mac":                                "02:00:00:00:00:01",
		"placement/availability-zone":        "us-west-2a",
		"instance-id":                        "i-1",
		"instance-type":                      "t3.medium",
		"local-ipv4":                         "10.0.0.4",
		macs:                                 "02:00:00:00:00:02/\n02:00:00:00:00:01/",
		first + "device-number":              "3", // as has been seen
		first + "interface-id":               "eni-1",
		first + "subnet-id":                  "subnet-1",
		first + "vpc-id":                     "vpc-1",
		first + "local-ipv4s":                "10.0.0.4\n10.0.0.9\n10.0.0.5",
		first + "subnet-ipv4-cidr-block":     "10.0.0.0/24",
		first + "security-group-ids":         "sg-2\nsg-1",
		first + "vpc-ipv4-cidr-blocks":       "10.0.0.0/16\n100.64.0.0/16",
		second + "device-number":             "1",
		second + "interface-id":              "eni-2",
		second + "subnet-id":                 "subnet-1",
		second + "network-card":              "1",
		second + "local-ipv4s":               "10.0.0.6",
		second + "subnet-ipv4-cidr-block":    "10.0.0.0/24",
		second + "ipv4-prefix":               "10.0.0.64/28\n10.0.0.48/28",
	}}
}

func (m *metadata) client() *IMDS {
	return NewIMDS(IMDSOptions{HTTPClient: &http.Client{Transport: m, Timeout: DefaultHTTPTimeout}})
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	got, err := newMetadata().client().Identity(t.Context())
	want := Identity{
		Region: "us-west-2", Zone: "us-west-2a", InstanceID: "i-1", InstanceType: "t3.medium", VPCID: "vpc-1",
		SubnetID: "subnet-1", PrimaryENI: "eni-1", PrimaryMAC: "02:00:00:00:00:01", PrimaryIP: netip.MustParseAddr("10.0.0.4"),
	}
	if err != nil || got != want {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

func TestNodeIPv6(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"2001:db8::10": "2001:db8::10", "": "invalid IP", "fe80::1": "error", "10.0.0.4": "error", "x": "error"} {
		m := newMetadata()
		if text != "" {
			m.values["ipv6"] = text
		}
		got, err := m.client().NodeIPv6(t.Context())
		if (err != nil) != (want == "error") || err == nil && got.String() != want {
			t.Errorf("%q: %s %v", text, got, err)
		}
	}
	m := newMetadata()
	m.statuses["ipv6"] = 500
	if got, err := m.client().NodeIPv6(t.Context()); err == nil {
		t.Errorf("no error, and %s", got)
	}
}

func TestIMDSENIs(t *testing.T) {
	t.Parallel()
	got, err := newMetadata().client().ENIs(t.Context())
	subnet := netip.MustParsePrefix("10.0.0.0/24")
	want := []ENI{
		{
			ID: "eni-1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, SubnetID: "subnet-1", SubnetCIDR: subnet, Status: "in-use",
			Primary: netip.MustParseAddr("10.0.0.4"), Secondary: []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("10.0.0.9")},
		},
		{
			ID: "eni-2", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, Device: 1, Card: 1, SubnetID: "subnet-1", SubnetCIDR: subnet, Status: "in-use",
			Primary:  netip.MustParseAddr("10.0.0.6"),
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.48/28"), netip.MustParsePrefix("10.0.0.64/28")},
		},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

// An answer that is missing for good reason is none; every other trouble is an error and never an ENI with less.
func TestIMDSTrouble(t *testing.T) {
	t.Parallel()
	const second = macs + "02:00:00:00:00:02/"
	for _, tc := range []struct {
		name   string
		change func(*metadata)
		class  Class
		ok     bool
	}{
		{"efa-only eni", func(m *metadata) {
			delete(m.values, second+"local-ipv4s")
			delete(m.values, second+"subnet-ipv4-cidr-block")
		}, 0, true},
		{"optional path fails", func(m *metadata) { m.statuses[second+"ipv4-prefix"] = 500 }, Timeout, false},
		{"optional path throttled", func(m *metadata) { m.statuses[second+"ipv4-prefix"] = 429 }, Throttled, false},
		{"no card for a reason unknown", func(m *metadata) { m.statuses[second+"network-card"] = 503 }, Timeout, false},
		{"required path missing", func(m *metadata) { delete(m.values, second+"subnet-id") }, NotFound, false},
		{"eni goes away", func(m *metadata) { m.last = second + "device-number" }, NotFound, false},
		{"list missing", func(m *metadata) { delete(m.values, macs) }, NotFound, false},
		{"nonsense", func(m *metadata) { m.values[second+"local-ipv4s"] = "10.0.0" }, Other, false},
		{"no service", func(m *metadata) { m.hang = true }, Timeout, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newMetadata()
				tc.change(m)
				start := time.Now()
				enis, err := m.client().ENIs(context.Background())
				switch {
				case tc.ok && (err != nil || len(enis) != 2):
					t.Errorf("got %+v, %v", enis, err)
				case !tc.ok && (err == nil || enis != nil || Classify(err) != tc.class):
					t.Errorf("got %+v, class %v, %v; want class %v", enis, Classify(err), err, tc.class)
				}
				if took := time.Since(start); took > 2*imdsCallTimeout {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

func TestVPC(t *testing.T) {
	t.Parallel()
	m := newMetadata()
	i := m.client()
	cidrs, err := i.VPCCIDRs(t.Context())
	if want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("100.64.0.0/16")}; err != nil || !slices.Equal(cidrs, want) {
		t.Errorf("ranges %v, %v", cidrs, err)
	}
	groups, err := i.SecurityGroups(t.Context())
	if err != nil || !slices.Equal(groups, []string{"sg-1", "sg-2"}) {
		t.Errorf("groups %v, %v", groups, err)
	}
	m.mu.Lock()
	m.statuses["mac"] = 500 // known already
	m.statuses[macs+"02:00:00:00:00:01/vpc-ipv4-cidr-blocks"] = 404
	m.mu.Unlock()
	if cidrs, err := i.VPCCIDRs(t.Context()); err == nil {
		t.Errorf("ranges %v without an answer", cidrs)
	}
	if _, err := i.SecurityGroups(t.Context()); err != nil {
		t.Error(err)
	}
}

// On 127.0.0.1 and with the SDK's own way of finding it.
func TestIMDSEndpoint(t *testing.T) {
	m := newMetadata()
	srv := httptest.NewServer(http.HandlerFunc(m.serve))
	defer srv.Close()
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", srv.URL)
	var calls []Call
	i := NewIMDS(IMDSOptions{Observe: func(c Call) { calls = append(calls, c) }})
	if groups, err := i.SecurityGroups(t.Context()); err != nil || len(groups) != 2 {
		t.Errorf("groups %v, %v", groups, err)
	}
	if len(calls) == 0 || calls[0].Service != "ec2imds" || calls[0].Status != 200 {
		t.Errorf("observed %+v", calls)
	}
}

func TestIMDSPools(t *testing.T) {
	t.Parallel()
	m := newMetadata()
	for _, prefixes := range []bool{false, true} {
		enis, err := m.client().Pools(t.Context(), prefixes)
		if err != nil || len(enis) != 2 {
			t.Fatal(enis, err)
		}
		second, first := enis[0], enis[1]
		if first.MAC.String() != "02:00:00:00:00:01" || first.Primary.String() != "10.0.0.4" || len(first.Secondary) != 2 ||
			first.Secondary[0].String() != "10.0.0.5" || (len(second.Prefixes) == 2) != prefixes {
			t.Errorf("prefixes %v: %+v", prefixes, enis)
		}
	}
	m.statuses[macs+"02:00:00:00:00:02/local-ipv4s"] = http.StatusForbidden
	if enis, err := m.client().Pools(t.Context(), true); err == nil {
		t.Errorf("an answer that lacks an ENI: %+v", enis)
	}
}

func TestIMDSLeaving(t *testing.T) {
	t.Parallel()
	for want, notice := range map[string][2]string{
		"": {"autoscaling/target-lifecycle-state", "InService"},
		"spot interruption: terminate at 2026-01-02T03:04:05Z": {"spot/instance-action", `{"action": "terminate", "time": "2026-01-02T03:04:05Z"}`},
		"spot interruption":                    {"spot/instance-action", "soon"},
		"its Auto Scaling group terminates it": {"autoscaling/target-lifecycle-state", "Terminated"},
		"EC2 recommends to rebalance":          {"events/recommendations/rebalance", `{"noticeTime": "2026-01-02T03:04:05Z"}`},
	} {
		m := newMetadata()
		m.values[notice[0]] = notice[1]
		if got, err := m.client().Leaving(t.Context()); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", notice[0], got, err, want)
		}
	}
	m := newMetadata()
	m.statuses["spot/instance-action"] = http.StatusForbidden
	if got, err := m.client().Leaving(t.Context()); err == nil {
		t.Errorf("%q although IMDS did not say", got)
	}
}
