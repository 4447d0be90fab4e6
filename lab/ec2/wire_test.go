package ec2_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/lab/ec2"
)

var update = flag.Bool("update", false, "write the golden files anew")

// request makes a signed request from the parameters "Name=value&…".
func (l *lab) request(method, query string) *http.Request {
	l.t.Helper()
	values, err := url.ParseQuery(query)
	if err != nil {
		l.t.Fatal(err)
	}
	if !values.Has("Version") {
		values.Set("Version", "2016-11-15")
	}
	body, target := values.Encode(), l.url+"/"
	if method == http.MethodGet {
		body, target = "", target+"?"+body
	}
	r, err := http.NewRequestWithContext(l.ctx, method, target, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	}
	l.sign(r, body, time.Now())
	return r
}

func (l *lab) sign(r *http.Request, body string, at time.Time) {
	l.t.Helper()
	k := l.Credentials(l.instance.ID)
	digest := sha256.Sum256([]byte(body))
	err := v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{
		AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken,
	}, r, hex.EncodeToString(digest[:]), "ec2", "us-west-2", at)
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) do(r *http.Request) (status int, body string) {
	l.t.Helper()
	resp := must(http.DefaultClient.Do(r))(l.t)
	defer resp.Body.Close()
	return resp.StatusCode, string(must(io.ReadAll(resp.Body))(l.t))
}

// TestGolden holds whole answers to files. The seed makes ids the same in every run.
func TestGolden(t *testing.T) {
	t.Parallel()
	seeded := func(o *ec2.Options) { o.Seed = 1 }
	tests := []struct {
		file, method, query string
		prepare             func(*lab)
	}{
		{"create-network-interface", "POST", "Action=CreateNetworkInterface&SubnetId=$SUBNET&Description=a+<b>+%26+c&SecondaryPrivateIpAddressCount=1&Ipv4PrefixCount=0" +
			"&ClientToken=t&TagSpecification.1.ResourceType=network-interface&TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=v" +
			"&ConnectionTrackingSpecification.UdpTimeout=40", nil},
		{"attach-network-interface", "POST", "Action=AttachNetworkInterface&NetworkInterfaceId=$ENI&InstanceId=$INSTANCE&DeviceIndex=1", nil},
		{"assign-private-ip-addresses", "POST", "Action=AssignPrivateIpAddresses&NetworkInterfaceId=$ENI&SecondaryPrivateIpAddressCount=2", nil},
		{"assign-prefix", "POST", "Action=AssignPrivateIpAddresses&NetworkInterfaceId=$ENI&Ipv4PrefixCount=1", nil},
		{"delete-network-interface", "POST", "Action=DeleteNetworkInterface&NetworkInterfaceId=$ENI", nil},
		{"describe-instances", "GET", "Action=DescribeInstances&InstanceId.1=$INSTANCE", nil},
		{"describe-instance-types", "POST", "Action=DescribeInstanceTypes&InstanceType.1=t3.medium", nil},
		{"describe-subnets", "POST", "Action=DescribeSubnets&SubnetId.1=$SUBNET", nil},
		{"describe-nothing", "POST", "Action=DescribeNetworkInterfaces&Filter.1.Name=tag:x&Filter.1.Value.1=y", nil},
		{"error-not-found", "POST", "Action=DescribeNetworkInterfaces&NetworkInterfaceId.1=eni-0123", nil},
		{"error-unknown-action", "POST", "Action=MakeCoffee", nil},
		{"error-unknown-parameter", "POST", "Action=DescribeVpcs&Sugar=2", nil},
		{"error-missing-parameter", "POST", "Action=CreateNetworkInterface", nil},
		{"error-throttled", "POST", "Action=DescribeVpcs", func(l *lab) { l.SetThrottle("DescribeVpcs", 1, 0); l.do(l.request("POST", "Action=DescribeVpcs")) }},
		{"error-denied", "POST", "Action=DescribeVpcs", func(l *lab) { l.AddFault(ec2.Fault{Deny: true}) }},
		{"error-version", "POST", "Action=DescribeVpcs&Version=2006-06-26", nil},
	}
	requestID := regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4000-8000-[0-9a-f]{12}`)
	for _, tc := range tests {
		t.Run(tc.file, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, seeded)
			eni := *l.create(0).NetworkInterfaceId
			if tc.prepare != nil {
				tc.prepare(l)
			}
			query := strings.NewReplacer("$SUBNET", l.subnet.ID, "$INSTANCE", l.instance.ID, "$ENI", eni).Replace(tc.query)
			status, body := l.do(l.request(tc.method, query))
			got := "HTTP " + itoa(status) + "\n" + strings.ReplaceAll(requestID.ReplaceAllString(body, "REQUEST"), "><", ">\n<") + "\n"
			file := filepath.Join("testdata", tc.file+".xml")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := must(os.ReadFile(file))(t); !bytes.Equal(want, []byte(got)) {
				t.Errorf("%s (run with -update if this is right): got\n%s", file, got)
			}
		})
	}
}

func TestSignature(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const describe = "Action=DescribeVpcs"
	tests := []struct {
		name   string
		status int
		code   string
		caller string
		change func(*http.Request)
	}{
		{"untouched", 200, "<vpcSet>", l.instance.ID, func(*http.Request) {}},
		{"none", 403, "MissingAuthenticationToken", "unknown", func(r *http.Request) { r.Header.Del("Authorization") }},
		{"not SigV4", 400, "IncompleteSignature", "unknown", func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }},
		{"half", 400, "IncompleteSignature", "unknown", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Split(r.Header.Get("Authorization"), ", Signature=")[0])
		}},
		{"unknown key", 401, "AuthFailure", "unknown", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "Credential=ASIA", "Credential=AKIA", 1))
		}},
		{"another token", 401, "AuthFailure", "unknown", func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }},
		{"another body", 403, "SignatureDoesNotMatch", l.instance.ID, func(r *http.Request) {
			body := "Action=DescribeSubnets&Version=2016-11-15"
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}},
		{"another header", 403, "SignatureDoesNotMatch", l.instance.ID, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }},
		{"no date", 400, "IncompleteSignature", l.instance.ID, func(r *http.Request) { r.Header.Del("X-Amz-Date") }},
		{"old", 400, "RequestExpired", l.instance.ID, func(r *http.Request) {
			body := string(must(io.ReadAll(r.Body))(t))
			r.Body = io.NopCloser(strings.NewReader(body))
			l.sign(r, body, time.Now().Add(-6*time.Minute))
		}},
	}
	for _, tc := range tests {
		before := l.Requests()
		r := l.request("POST", describe)
		tc.change(r)
		status, body := l.do(r)
		if status != tc.status || !strings.Contains(body, tc.code) {
			t.Errorf("%s: %d %s, want %d %s", tc.name, status, body, tc.status, tc.code)
		}
		if log := l.Requests()[len(before):]; log[0].Caller != tc.caller {
			t.Errorf("%s: caller %s, want %s", tc.name, log[0].Caller, tc.caller)
		}
	}
	// A query that sorts differently by name than by name and value, and every character that is escaped.
	if status, body := l.do(l.request("GET", "Action=DescribeVpcs&Filter.1.Name=tag:a&Filter.1.Value.1=x+y%2Fz~*%27&Filter.1.Value.10=c&Filter.10.Name=vpc-id&Filter.10.Value.1=v")); status != 200 {
		t.Errorf("GET: %d %s", status, body)
	}
	if status, body := l.do(l.request("PUT", describe)); status != 400 {
		t.Errorf("PUT: %d %s", status, body)
	}
}

func TestCredentialsRotate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	first := l.Credentials(l.instance.ID)
	wantEqual(t, "stable", l.Credentials(l.instance.ID), first)
	if first.Expiration.Sub(l.clock.Now()) < time.Hour || first.SessionToken == "" {
		t.Errorf("key %+v", first)
	}
	l.clock.Advance(first.Expiration.Sub(l.clock.Now()) - 30*time.Minute)
	next := l.Credentials(l.instance.ID)
	if next.AccessKeyID == first.AccessKeyID || !next.Expiration.After(first.Expiration) {
		t.Errorf("not renewed: %+v", next)
	}
	call := func(c ec2.Credentials) error {
		_, err := l.clientOf(c).DescribeVpcs(l.ctx, &sdk.DescribeVpcsInput{})
		return err
	}
	wantCode(t, call(first), "ok")
	wantCode(t, call(next), "ok")
	l.clock.Advance(30 * time.Minute)
	wantCode(t, call(first), "AuthFailure")
	wantCode(t, call(next), "ok")
	wantCode(t, call(l.OperatorCredentials()), "ok")
	l.clock.Advance(1000 * time.Hour)
	wantCode(t, call(l.OperatorCredentials()), "ok")
	counts := l.Counts()
	wantEqual(t, "operator's calls", counts[ec2.CountKey{Action: "DescribeVpcs", Caller: "operator", Outcome: "ok"}], 2)
}
