// Package engine tests ipamd's engine, the daemon with its controller and planner and the EC2 client, against the
// lab's EC2: every call goes through the SDK and the wire format, time passes as fast as nothing happens. Only the
// host's network and the disk are stand-ins.
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/lab/ec2"
	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/networkutils/hostnet"
)

// TestMain clears what the SDK would read by itself: nothing here may come from the machine.
func TestMain(m *testing.M) {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			_ = os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}

// rig is one instance with its daemon.
type rig struct {
	t        *testing.T
	cloud    *ec2.Cloud
	instance ec2.Instance
	subnet   ec2.Subnet
	*ipamd.Daemon
	stop func()
}

// newRig starts an instance and its daemon. It must be called in a synctest bubble.
func newRig(t *testing.T, instanceType string, settings ipamd.Settings, cidr string, prepare func(*rig), wire func(http.RoundTripper) http.RoundTripper) *rig {
	t.Helper()
	r := &rig{t: t, cloud: ec2.New(ec2.Options{AttachDelay: 4 * time.Second, DetachDelay: 3 * time.Second, APILatency: 100 * time.Millisecond, Seed: 7})}
	vpc := must(r.cloud.CreateVPC(netip.MustParsePrefix("10.0.0.0/16")))(t)
	r.subnet = must(r.cloud.CreateSubnet(ec2.Subnet{VPCID: vpc.ID, Zone: "us-west-2a", CIDR: netip.MustParsePrefix(cidr)}))(t)
	r.instance = must(r.cloud.RunInstance(ec2.InstanceSpec{Type: instanceType, SubnetID: r.subnet.ID}))(t)
	prepare(r)
	transport := r.cloud.Transport()
	if wire != nil {
		transport = wire(transport)
	}
	client := must(awsutils.NewEC2(t.Context(), awsutils.EC2Options{Region: "us-west-2", Endpoint: "http://ec2.invalid",
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			keys := r.cloud.Credentials(r.instance.ID) // the role's keys, which end after some hours
			return aws.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, SessionToken: keys.SessionToken,
				CanExpire: true, Expires: time.Now().Add(time.Hour)}, nil
		}),
		HTTPClient: &http.Client{Transport: transport}}))(t)
	limits, _ := awsutils.LimitsOf(instanceType)
	eni := r.cloud.ENIsOf(r.instance.ID)[0]
	settings.Cooldown = 30 * time.Second
	o := ipamd.Options{
		Settings: settings, Limits: limits, Groups: eni.Groups, Subnets: map[string]netip.Prefix{r.subnet.ID: r.subnet.CIDR},
		Identity: awsutils.Identity{Region: "us-west-2", Zone: "us-west-2a", InstanceID: r.instance.ID, InstanceType: instanceType, VPCID: vpc.ID,
			SubnetID: r.subnet.ID, PrimaryENI: eni.ID, PrimaryMAC: eni.MAC.String(), PrimaryIP: eni.Primary},
		VPCCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		EC2:      client, Network: host{r.cloud, r.instance.ID}, Checkpointer: &disk{},
	}
	r.Daemon = must(ipamd.New(o))(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	<-r.Ready()
	return r
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, f)
}

// burst adds pods at once and returns the longest wait.
func (r *rig) burst(from, n int) time.Duration {
	r.t.Helper()
	start := time.Now()
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, err := r.Add(r.t.Context(), ipamd.AddRequest{Namespace: "default", Pod: fmt.Sprintf("p%d", from+i), Sandbox: sandbox(from + i)})
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			r.t.Error(err)
		}
	}
	return time.Since(start)
}

func sandbox(n int) ipamd.Sandbox {
	return ipamd.Sandbox{NetworkName: "aws-cni", ContainerID: fmt.Sprintf("c%d", n), IfName: "eth0"}
}

// calls counts what the instance asked of EC2, by action.
func (r *rig) calls() map[string]int {
	n := map[string]int{}
	for _, q := range r.cloud.Requests() {
		if q.Caller == r.instance.ID {
			n[q.Action]++
		}
	}
	return n
}

func total(calls map[string]int) (n int) {
	for _, k := range calls {
		n += k
	}
	return n
}

func table(calls map[string]int) string {
	var b strings.Builder
	for _, action := range slices.Sorted(maps.Keys(calls)) {
		fmt.Fprintf(&b, "\n  %-34s %3d", action, calls[action])
	}
	return b.String() + fmt.Sprintf("\n  %-34s %3d", "in all", total(calls))
}

// held counts what the instance's ENIs hold for pods.
func (r *rig) held() (enis, prefixes, singles int) {
	for _, e := range r.cloud.ENIsOf(r.instance.ID) {
		enis, prefixes, singles = enis+1, prefixes+len(e.Prefixes), singles+len(e.Secondary)
	}
	return enis, prefixes, singles
}

// operator is a client with the rights of a person.
func (r *rig) operator() *sdk.Client {
	keys := r.cloud.OperatorCredentials()
	endpoint := "http://ec2.invalid"
	return sdk.New(sdk.Options{Region: "us-west-2", BaseEndpoint: &endpoint, HTTPClient: &http.Client{Transport: r.cloud.Transport()},
		Credentials: credentials.NewStaticCredentialsProvider(keys.AccessKeyID, keys.SecretAccessKey, keys.SessionToken)})
}

// host believes that what EC2 has attached is there.
type host struct {
	cloud    *ec2.Cloud
	instance string
}

func (h host) WaitLink(ctx context.Context, mac net.HardwareAddr) error {
	for !h.there(mac) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

func (h host) there(mac net.HardwareAddr) bool {
	return slices.ContainsFunc(h.cloud.ENIsOf(h.instance), func(e ec2.ENI) bool {
		return e.MAC.String() == mac.String() && e.Attachment != nil && e.Attachment.State == "attached"
	})
}

func (h host) Apply(_ context.Context, cfg hostnet.Config) (hostnet.Report, error) {
	report := hostnet.Report{NotReady: map[string]error{}}
	for _, e := range cfg.ENIs {
		if !h.there(e.MAC) {
			report.NotReady[e.ID] = errors.New("no interface")
		}
	}
	return report, nil
}

// disk keeps nothing: no test here starts a second life.
type disk struct{}

func (*disk) Commit(context.Context) error { return nil }

var _ ipamd.Checkpointer = (*disk)(nil)

// otherShape rewrites EC2's answer about a subnet without a free /28 into its other form.
type otherShape struct {
	http.RoundTripper
	hits atomic.Int32
}

func (o *otherShape) RoundTrip(q *http.Request) (*http.Response, error) {
	resp, err := o.RoundTripper.RoundTrip(q)
	if err != nil || resp.StatusCode < http.StatusBadRequest {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(body, []byte("InsufficientCidrBlocks")) {
		o.hits.Add(1)
		body = []byte(`<Response><Errors><Error><Code>InvalidParameterValue</Code><Message>There aren't sufficient free Ipv4 addresses ` +
			`or prefixes</Message></Error></Errors><RequestID>1</RequestID></Response>`)
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return resp, nil
}
