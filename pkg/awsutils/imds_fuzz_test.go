package awsutils

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path"
	"strings"
	"testing"
)

// answers is an IMDS that answers each path by its last element, whatever comes before it. A missing one is a 404.
type answers map[string]string

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	if r.Method == http.MethodPut {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
		_, _ = w.WriteString("token")
	} else if text, ok := a[path.Base(strings.TrimSuffix(r.URL.Path, "/"))]; ok {
		_, _ = w.WriteString(text)
	} else {
		w.WriteHeader(http.StatusNotFound)
	}
	response := w.Result()
	response.Request = r
	return response, nil
}

// fuzzed are the paths whose answers FuzzIMDS makes up, in the order of its arguments.
var fuzzed = []string{"mac", "macs", "device-number", "network-card", "interface-id", "subnet-id", "subnet-ipv4-cidr-block",
	"local-ipv4s", "ipv4-prefix", "vpc-ipv4-cidr-blocks", "security-group-ids", "local-ipv4"}

// FuzzIMDS: whatever IMDS answers, the result is an error or something that can be relied on, and never an ENI with less
// than IMDS named.
func FuzzIMDS(f *testing.F) {
	const mac, list = "02:00:00:00:00:01", "02:00:00:00:00:01/"
	for _, seed := range []struct {
		missing uint16
		text    [12]string
	}{
		{0x8, [12]string{mac, list, "0", "", "eni-1", "subnet-1", "10.0.0.0/24", "10.0.0.4\n10.0.0.5", "10.0.0.16/28\n", "10.0.0.0/16\n100.64.0.0/16", "sg-1\nsg-2", "10.0.0.4"}},
		{0, [12]string{mac, list, "1", "1", "eni-2", "subnet-1", "10.0.0.0/24", "10.0.0.6", "", "10.0.0.0/16", "sg-1", "10.0.0.4"}},
		{0x1c8, [12]string{mac, list, "0", "", "eni-1", "subnet-1", "", "", "", "10.0.0.0/16", "sg-1", "10.0.0.4"}},
		{0, [12]string{"02-00-00-00-00-0A", "02:00:00:00:00:0a/\n0200.0000.000A", "-1", "x", "", " ", "10.0.0.1/24", "::1 10.0.0.4", "10.0.0.16", "::/0", "\n", "fe80::1%eth0"}},
		{0, [12]string{"..", "../..", "99999999999", "0x1", "\x00", "a b", "10.0.0.0/33", "10.0.0.4\n10.0.0.4", "10.0.0.16/28 10.0.0.16/28", "0/0", "<?xml version=\"1.0\"?>", "10.0.0.04"}},
	} {
		s := seed.text
		f.Add(seed.missing, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11])
	}
	f.Fuzz(func(t *testing.T, missing uint16, a, b, c, d, e, g, h, i, j, k, l, m string) {
		service := answers{"document": `{"region":"us-west-2"}`, "availability-zone": "us-west-2a", "instance-id": "i-1",
			"instance-type": "t3.medium", "vpc-id": "vpc-1"}
		for n, text := range []string{a, b, c, d, e, g, h, i, j, k, l, m} {
			if missing&(1<<n) == 0 {
				service[fuzzed[n]] = text
			}
		}
		client := NewIMDS(IMDSOptions{HTTPClient: &http.Client{Transport: service}})
		ctx := context.Background()
		if id, err := client.Identity(ctx); err == nil {
			if id.PrimaryENI == "" || id.PrimaryMAC == "" || id.SubnetID == "" || !id.PrimaryIP.Is4() {
				t.Errorf("%+v", id)
			}
		}
		if cidrs, err := client.VPCCIDRs(ctx); err == nil {
			checkRanges(t, cidrs)
			if len(cidrs) != len(strings.Fields(service["vpc-ipv4-cidr-blocks"])) || len(cidrs) == 0 {
				t.Errorf("ranges %v of %q", cidrs, service["vpc-ipv4-cidr-blocks"])
			}
		}
		if groups, err := client.SecurityGroups(ctx); err == nil && len(groups) == 0 {
			t.Error("no security groups, and no error")
		}
		if enis, err := client.ENIs(ctx); err == nil {
			checkENIs(t, service, enis)
		} else if enis != nil {
			t.Errorf("%+v beside %v", enis, err)
		}
	})
}

func checkENIs(t *testing.T, service answers, enis []ENI) {
	if len(enis) != len(strings.Fields(service["macs"])) || len(enis) == 0 {
		t.Errorf("%d ENIs of %q", len(enis), service["macs"])
	}
	seen := map[string]bool{}
	for _, e := range enis {
		if e.ID == "" || e.SubnetID == "" || e.Device < 0 || e.Card < 0 || len(e.MAC) == 0 || seen[e.MAC.String()] {
			t.Errorf("%+v", e)
		}
		seen[e.MAC.String()] = true
		addrs := e.Secondary
		if e.Primary.IsValid() {
			addrs = append(addrs, e.Primary)
		}
		if len(addrs) != len(strings.Fields(service["local-ipv4s"])) {
			t.Errorf("%v of %q", addrs, service["local-ipv4s"])
		}
		for _, ip := range addrs {
			if !ip.Is4() || seen[ip.String()] {
				t.Errorf("%s in %+v", ip, e)
			}
			seen[ip.String()] = true
		}
		checkRanges(t, e.Prefixes)
		if len(e.Prefixes) != len(strings.Fields(service["ipv4-prefix"])) {
			t.Errorf("%v of %q", e.Prefixes, service["ipv4-prefix"])
		}
	}
}

func checkRanges(t *testing.T, ranges []netip.Prefix) {
	for _, p := range ranges {
		if !p.Addr().Is4() || p != p.Masked() {
			t.Errorf("%s is no IPv4 range", p)
		}
	}
}
