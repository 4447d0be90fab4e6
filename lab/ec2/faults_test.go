package ec2_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/lab/ec2"
)

func (l *lab) vpcs() error {
	_, err := l.client.DescribeVpcs(l.ctx, &sdk.DescribeVpcsInput{})
	return err
}

func TestFaultConditions(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	other := l.addSubnet("10.0.2.0/24", "us-west-2a")
	inOther := *must(l.client.CreateNetworkInterface(l.ctx, &sdk.CreateNetworkInterfaceInput{SubnetId: &other.ID}))(t).NetworkInterface.NetworkInterfaceId
	assign := func(eni string) error {
		_, err := l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{NetworkInterfaceId: &eni, SecondaryPrivateIpAddressCount: aws.Int32(1)})
		return err
	}
	tests := []struct {
		name  string
		fault ec2.Fault
		do    func() error
		want  string
	}{
		{"all calls", ec2.Fault{Error: "Unavailable"}, l.vpcs, "Unavailable"},
		{"a glob", ec2.Fault{Action: "Describe*", Deny: true}, l.vpcs, "UnauthorizedOperation"},
		{"another action", ec2.Fault{Action: "Create*", Deny: true}, l.vpcs, "ok"},
		{"another caller", ec2.Fault{InstanceID: "i-1", Deny: true}, l.vpcs, "ok"},
		{"this caller", ec2.Fault{InstanceID: l.instance.ID, Error: "X"}, l.vpcs, "X"},
		{"the subnet of the ENI", ec2.Fault{SubnetID: other.ID, Error: "InsufficientCidrBlocks"}, func() error { return assign(inOther) }, "InsufficientCidrBlocks"},
		{"another subnet", ec2.Fault{SubnetID: other.ID, Error: "InsufficientCidrBlocks"}, func() error { return assign(*l.primary()) }, "ok"},
		{"the subnet that is named", ec2.Fault{SubnetID: l.subnet.ID, Error: "X"}, func() error { return l.tryCreate(func(*sdk.CreateNetworkInterfaceInput) {}) }, "X"},
	}
	for _, tc := range tests {
		id := l.AddFault(tc.fault)
		if got := codeOf(tc.do()); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		if !l.RemoveFault(id) || l.RemoveFault(id) {
			t.Errorf("%s: not removed, or twice", tc.name)
		}
	}
}

func TestFaultValidate(t *testing.T) {
	t.Parallel()
	for _, f := range []ec2.Fault{
		{Deny: true}, {Action: "*", Latency: time.Second}, {Action: "*NetworkInterface", Error: "X", Count: 1, Probability: 0.5},
	} {
		if err := f.Validate(); err != nil {
			t.Errorf("%+v: %v", f, err)
		}
	}
	for _, f := range []ec2.Fault{
		{}, {Action: "AttachNetworkInterfaces", Deny: true}, {Action: "[", Deny: true}, {Error: "X", Count: -1}, {Error: "X", Probability: 2},
	} {
		if f.Validate() == nil {
			t.Errorf("%+v is not refused", f)
		}
	}
}

func TestFaultCount(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.AddFault(ec2.Fault{ID: "mine", Error: "RequestLimitExceeded", Count: 2})
	wantCode(t, l.vpcs(), "RequestLimitExceeded")
	wantEqual(t, "hits", l.Faults()[0].Hits, 1)
	wantCode(t, l.vpcs(), "RequestLimitExceeded")
	wantEqual(t, "rules left", len(l.Faults()), 0)
	wantCode(t, l.vpcs(), "ok")
}

func TestFaultProbability(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.AddFault(ec2.Fault{Error: "X", Probability: 0.5})
	failed := 0
	for range 100 {
		if l.vpcs() != nil {
			failed++
		}
	}
	if failed < 25 || failed > 75 {
		t.Errorf("%d of 100 failed", failed)
	}
}

func TestLostResponse(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.AddFault(ec2.Fault{Action: "CreateNetworkInterface", LostResponse: true, Count: 1})
	in := &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID, ClientToken: aws.String("t")}
	if _, err := l.client.CreateNetworkInterface(l.ctx, in); err == nil {
		t.Fatal("the response was not lost")
	}
	wantEqual(t, "ENIs, although nobody was told", len(l.ENIs()), 2)
	log := l.Requests()
	wantEqual(t, "in the log", log[len(log)-1].Lost && log[len(log)-1].Outcome == "ok", true)
	must(l.client.CreateNetworkInterface(l.ctx, in))(t)
	wantEqual(t, "ENIs, after the repetition", len(l.ENIs()), 2)

	// The SDK repeats by itself, with the same token.
	l.AddFault(ec2.Fault{Action: "CreateNetworkInterface", LostResponse: true, Count: 1})
	client := l.clientOf(l.Credentials(l.instance.ID), func(o *sdk.Options) {
		o.Retryer = retry.AddWithMaxBackoffDelay(retry.NewStandard(), time.Millisecond)
		o.RetryMaxAttempts = 3
	})
	must(client.CreateNetworkInterface(l.ctx, &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID}))(t)
	wantEqual(t, "ENIs", len(l.ENIs()), 3)
}

func TestLatency(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *ec2.Options) { o.APILatency = 200 * time.Millisecond })
	l.AddFault(ec2.Fault{Latency: time.Second})
	result := make(chan error, 1)
	go func() { result <- l.vpcs() }()
	for _, d := range []time.Duration{200 * time.Millisecond, time.Second} {
		if err := l.clock.BlockUntilContext(l.ctx, 1); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-result:
			t.Fatalf("answered too early: %v", err)
		default:
		}
		l.clock.Advance(d)
	}
	wantCode(t, <-result, "ok")
	wantEqual(t, "duration", l.Requests()[0].Duration, 1200*time.Millisecond)
}

func TestRequestLog(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	eni := *l.create(2).NetworkInterfaceId
	_ = l.tryAttach(eni, "i-1", 1, 0)
	log := l.Requests()
	wantEqual(t, "calls", len(log), 2)
	wantEqual(t, "parameters", log[0].Params["SecondaryPrivateIpAddressCount"], "2")
	wantEqual(t, "outcome", log[1].Outcome, "InvalidInstanceID.NotFound")
	wantEqual(t, "since", len(l.RequestsSince(log[0].Seq)), 1)
	text := string(must(json.Marshal(l.Counts()))(t))
	if want := `"CreateNetworkInterface ` + l.instance.ID + ` ok":1`; !strings.Contains(text, want) {
		t.Errorf("%s lacks %s", text, want)
	}
	l.ResetRequests()
	wantEqual(t, "calls", len(l.Requests())+len(l.Counts()), 0)
	_ = l.vpcs()
	wantEqual(t, "numbering", l.Requests()[0].Seq, log[1].Seq+1)
}
