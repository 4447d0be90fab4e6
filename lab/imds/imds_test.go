package imds

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

func (l *lab) sdk(id string) *imds.Client {
	return imds.New(imds.Options{Endpoint: l.url, HTTPClient: &http.Client{Transport: as(id)}})
}

func TestSDKClient(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for id, want := range map[string]string{"i-1": "10.0.0.4\n10.0.0.9\n10.0.0.5", "i-2": "10.0.0.6"} {
		client := l.sdk(id)
		out, err := client.GetMetadata(t.Context(), &imds.GetMetadataInput{Path: "network/interfaces/macs/02:00:00:00:00:00/local-ipv4s"})
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(out.Content)
		if err != nil || string(text) != want {
			t.Errorf("%s: local-ipv4s %q, %v; want %q", id, text, err, want)
		}
		doc, err := client.GetInstanceIdentityDocument(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if doc.Region != "us-west-2" || doc.InstanceID != id || doc.AccountID != "123456789012" ||
			doc.InstanceType != "t3.medium" || doc.AvailabilityZone != "us-west-2a" || doc.Architecture != "x86_64" ||
			!strings.HasPrefix(want, doc.PrivateIP) || doc.ImageID == "" {
			t.Errorf("%s: identity document %+v", id, doc)
		}
		info, err := client.GetIAMInfo(t.Context(), nil)
		if err != nil || !strings.HasSuffix(info.InstanceProfileArn, "/vpclab-node") {
			t.Errorf("%s: iam info %+v, %v", id, info, err)
		}
		creds, err := ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = client }).Retrieve(t.Context())
		if err != nil || creds.AccessKeyID != "ASIA"+id || creds.SessionToken != "session" || !creds.CanExpire {
			t.Errorf("%s: credentials %+v, %v", id, creds, err)
		}
	}
	for _, r := range l.server.Requests() {
		if r.Status != http.StatusOK {
			t.Errorf("%+v", r)
		}
	}
	if n := l.server.Counts()[CountKey{"i-1", tokenPath}]; n != 1 {
		t.Errorf("i-1 asked for %d tokens", n)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const mac = "/latest/meta-data/mac"
	put := func(headers ...string) (int, string) {
		return l.do(t, "i-1", http.MethodPut, "/latest/api/token", headers...)
	}
	get := func(id, token string, more ...string) int {
		code, _ := l.do(t, id, http.MethodGet, mac, append([]string{tokenHeader, token}, more...)...)
		return code
	}
	for _, ttl := range []string{"", "0", "21601", "x", "-1"} {
		if code, _ := put(tokenTTLHeader, ttl); code != http.StatusBadRequest {
			t.Errorf("token with ttl %q: %d", ttl, code)
		}
	}
	if code, _ := put(tokenTTLHeader, "60", "X-Forwarded-For", "10.0.0.1"); code != http.StatusForbidden {
		t.Errorf("token through a proxy: %d", code)
	}
	if code, _ := l.do(t, "i-1", http.MethodGet, mac); code != http.StatusUnauthorized {
		t.Errorf("no token: %d", code)
	}
	code, token := put(tokenTTLHeader, "60")
	if code != http.StatusOK {
		t.Fatalf("token: %d", code)
	}
	for _, tc := range []struct {
		what string
		got  int
		want int
	}{
		{"own token", get("i-1", token), 200},
		{"token of another instance", get("i-2", token), 401},
		{"forged token", get("i-1", token[:len(token)-2]+"AA"), 401},
		{"through a proxy", get("i-1", token, "X-Forwarded-For", "10.0.0.1"), 403},
		{"unknown instance", get("i-3", token), 401},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %d, want %d", tc.what, tc.got, tc.want)
		}
	}
	if code, _ := l.do(t, "i-1", http.MethodPost, mac, tokenHeader, token); code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", code)
	}
	l.clock.Advance(59 * time.Second)
	if code := get("i-1", token); code != http.StatusOK {
		t.Errorf("a second before its end: %d", code)
	}
	l.clock.Advance(time.Second)
	if code := get("i-1", token); code != http.StatusUnauthorized {
		t.Errorf("token at its end: %d", code)
	}
	l.server.AllowV1("i-1", true)
	if code, _ := l.do(t, "i-1", http.MethodGet, mac); code != http.StatusOK {
		t.Errorf("version 1, allowed: %d", code)
	}
	if code := get("i-1", token); code != http.StatusUnauthorized {
		t.Errorf("old token with version 1 allowed: %d", code)
	}
	if code, _ := l.do(t, "", http.MethodGet, mac); code != http.StatusNotFound {
		t.Errorf("nobody: %d", code)
	}
}

const goldenTree = `meta-data/ami-id = ami-0a1b2c3d4e5f60789
meta-data/hostname = ip-10-0-0-4.us-west-2.compute.internal
meta-data/instance-id = i-1
meta-data/instance-life-cycle = on-demand
meta-data/instance-type = p4d.24xlarge
meta-data/ipv6 = 2600:1f14:1:2::5
meta-data/local-hostname = ip-10-0-0-4.us-west-2.compute.internal
meta-data/local-ipv4 = 10.0.0.4
meta-data/mac = 02:00:00:00:00:00
meta-data/network/interfaces/macs/02:00:00:00:00:00/device-number = 0
meta-data/network/interfaces/macs/02:00:00:00:00:00/interface-id = eni-1
meta-data/network/interfaces/macs/02:00:00:00:00:00/ipv4-associations/198.18.0.1 = 10.0.0.4
meta-data/network/interfaces/macs/02:00:00:00:00:00/ipv4-prefix = 10.0.0.16/28
meta-data/network/interfaces/macs/02:00:00:00:00:00/ipv6-prefix = 2600:1f14:1:2:1::/80
meta-data/network/interfaces/macs/02:00:00:00:00:00/ipv6s = 2600:1f14:1:2::5
meta-data/network/interfaces/macs/02:00:00:00:00:00/local-hostname = ip-10-0-0-4.us-west-2.compute.internal
meta-data/network/interfaces/macs/02:00:00:00:00:00/local-ipv4s = 10.0.0.4 10.0.0.9 10.0.0.5
meta-data/network/interfaces/macs/02:00:00:00:00:00/mac = 02:00:00:00:00:00
meta-data/network/interfaces/macs/02:00:00:00:00:00/network-card = 0
meta-data/network/interfaces/macs/02:00:00:00:00:00/owner-id = 123456789012
meta-data/network/interfaces/macs/02:00:00:00:00:00/public-ipv4s = 198.18.0.1
meta-data/network/interfaces/macs/02:00:00:00:00:00/security-group-ids = sg-1 sg-2
meta-data/network/interfaces/macs/02:00:00:00:00:00/security-groups = name-of-sg-1 name-of-sg-2
meta-data/network/interfaces/macs/02:00:00:00:00:00/subnet-id = subnet-1
meta-data/network/interfaces/macs/02:00:00:00:00:00/subnet-ipv4-cidr-block = 10.0.0.0/24
meta-data/network/interfaces/macs/02:00:00:00:00:00/subnet-ipv6-cidr-blocks = 2600:1f14:1:2::/64
meta-data/network/interfaces/macs/02:00:00:00:00:00/vpc-id = vpc-1
meta-data/network/interfaces/macs/02:00:00:00:00:00/vpc-ipv4-cidr-block = 10.0.0.0/16
meta-data/network/interfaces/macs/02:00:00:00:00:00/vpc-ipv4-cidr-blocks = 10.0.0.0/16 100.64.0.0/16
meta-data/network/interfaces/macs/02:00:00:00:00:00/vpc-ipv6-cidr-blocks = 2600:1f14:1::/56
meta-data/placement/availability-zone = us-west-2a
meta-data/placement/region = us-west-2
meta-data/public-ipv4 = 198.18.0.1
meta-data/security-groups = name-of-sg-1 name-of-sg-2
meta-data/services/domain = amazonaws.com
meta-data/services/partition = aws
`

func TestTree(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cloud.change(func() {
		i := l.cloud.instances["i-1"]
		i.Type, i.PublicIP = "p4d.24xlarge", netip.MustParseAddr("198.18.0.1")
		l.cloud.instances["i-1"] = i
		e := &l.cloud.enis["i-1"][0]
		e.PublicIP = i.PublicIP
		e.Prefixes = []netip.Prefix{netip.MustParsePrefix("10.0.0.16/28")}
		e.IPv6 = []netip.Addr{netip.MustParseAddr("2600:1f14:1:2::5")}
		e.IPv6Prefixes = []netip.Prefix{netip.MustParsePrefix("2600:1f14:1:2:1::/80")}
		l.cloud.vpc.CIDRs = append(l.cloud.vpc.CIDRs, netip.MustParsePrefix("100.64.0.0/16"))
		coming := eni("eni-9", 1, "10.0.0.40")
		coming.Attachment.State = "attaching"
		l.cloud.enis["i-1"] = append(l.cloud.enis["i-1"], coming)
	})
	made, ok := l.server.tree("i-1")
	if !ok {
		t.Fatal("no tree")
	}
	made = made.without("meta-data/iam").without("dynamic")
	var got strings.Builder
	for _, name := range slices.Sorted(maps.Keys(made)) {
		got.WriteString(name + " = " + strings.ReplaceAll(made[name], "\n", " ") + "\n")
	}
	if got.String() != goldenTree {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), goldenTree)
	}
	if got := l.get(t, "i-2", "network/interfaces/macs/02:00:00:00:00:00/network-card"); got != "Not Found" {
		t.Errorf("network-card of a type with one card: %q", got)
	}
}

func TestListings(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cloud.change(func() { l.cloud.enis["i-1"] = append(l.cloud.enis["i-1"], eni("eni-3", 1, "10.0.0.7")) })
	l.server.AllowV1("i-1", true)
	for path, want := range map[string]string{
		"/":                         "latest",
		"/latest":                   "dynamic\nmeta-data",
		"/latest/":                  "dynamic\nmeta-data",
		"/latest/meta-data/network": "interfaces/",
		"/latest/meta-data/network/interfaces/macs":           "02:00:00:00:00:00/\n02:00:00:00:00:01/",
		"/latest/meta-data/network/interfaces/macs/":          "02:00:00:00:00:00/\n02:00:00:00:00:01/",
		"/2021-07-15/meta-data/placement/":                    "availability-zone\nregion",
		"/latest/meta-data/iam/security-credentials/":         "vpclab-node",
		"/latest/dynamic/":                                    "instance-identity/",
		"//latest/meta-data//instance-id":                     "i-1",
		"/latest/meta-data/spot/instance-action":              "Not Found\n",
		"/latest/meta-data/network/interfaces/macs/02:aa/mac": "Not Found\n",
		"/meta-data/instance-id":                              "Not Found\n",
		"/latest/user-data":                                   "Not Found\n",
	} {
		if _, got := l.do(t, "i-1", http.MethodGet, path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	l.cloud.change(func() {
		i := l.cloud.instances["i-1"]
		i.State = "terminated"
		l.cloud.instances["i-1"] = i
	})
	if got := l.get(t, "i-1", "mac"); got != "Not Found" {
		t.Errorf("terminated instance: %q", got)
	}
}

func TestArchitecture(t *testing.T) {
	t.Parallel()
	for instanceType, want := range map[string]string{
		"t3.medium": "x86_64", "t4g.small": "arm64", "a1.large": "arm64", "c7gn.large": "arm64", "g5.xlarge": "x86_64",
		"g4dn.xlarge": "x86_64", "g5g.xlarge": "arm64", "is4gen.large": "arm64", "m7i-flex.large": "x86_64", "u-6tb1.metal": "x86_64",
	} {
		if got := architecture(instanceType); got != want {
			t.Errorf("%s: %s", instanceType, got)
		}
	}
}

func TestRequestLog(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.get(t, "i-1", "mac")
	l.get(t, "i-1", "mac")
	l.get(t, "i-2", "nothing")
	if got := l.server.Counts(); got[CountKey{"i-1", "meta-data/mac"}] != 2 || got[CountKey{"i-2", "meta-data/nothing"}] != 1 {
		t.Errorf("counts %v", got)
	}
	text, err := json.Marshal(l.server.Counts())
	if err != nil || string(text) != `{"i-1 meta-data/mac":2,"i-2 meta-data/nothing":1}` {
		t.Errorf("counts as JSON: %s, %v", text, err)
	}
	requests := l.server.Requests()
	if len(requests) != 3 || requests[2].Seq != 3 || requests[2].Status != 404 || requests[2].Instance != "i-2" {
		t.Errorf("requests %+v", requests)
	}
	l.server.ResetRequests()
	if n := len(l.server.Requests()) + len(l.server.Counts()); n != 0 {
		t.Errorf("%d left after the reset", n)
	}
}

// Requests, rules and changes of the cloud at the same time; the race detector is the judge.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.server.AllowV1("i-1", true)
	handler := l.server.Handler(func(*http.Request) (string, bool) { return "i-1", true })
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for range 50 {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/latest/meta-data/"+localIPs, nil))
				if w.Code != http.StatusOK {
					t.Errorf("status %d", w.Code)
				}
			}
		})
		wait.Go(func() {
			for _, f := range []Fault{{Lag: time.Second}, {Freeze: true}, {Path: "meta-data/mac", Omit: true}} {
				id := l.fault(t, f)
				l.move("10.0.0.9")
				l.server.Changed("i-1")
				l.server.RemoveFault(id)
			}
		})
	}
	wait.Wait()
	if n := l.server.Counts()[CountKey{"i-1", metadata + localIPs}]; n != 200 {
		t.Errorf("%d requests counted", n)
	}
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const name = "spot/instance-action"
	read := func(id string) (string, bool) {
		out, err := l.sdk(id).GetMetadata(t.Context(), &imds.GetMetadataInput{Path: name})
		if err != nil {
			return "", false
		}
		text, err := io.ReadAll(out.Content)
		return string(text), err == nil
	}
	l.server.Announce("i-1", name, `{"action": "terminate"}`)
	if text, ok := read("i-1"); !ok || text != `{"action": "terminate"}` {
		t.Errorf("%q, %v", text, ok)
	}
	if text, ok := read("i-2"); ok {
		t.Errorf("another instance is told %q", text)
	}
	l.server.Announce("i-1", name, "")
	if text, ok := read("i-1"); ok {
		t.Errorf("still %q", text)
	}
}
