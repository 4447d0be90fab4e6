package ec2_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	"github.com/jonboulle/clockwork"

	"vpccni/lab/ec2"
)

const attachDelay, detachDelay = 8 * time.Second, 5 * time.Second

// lab is a cloud with one instance, and an unmodified SDK client that calls it over a socket with the instance's key.
type lab struct {
	*ec2.Cloud
	t        *testing.T
	ctx      context.Context
	clock    *clockwork.FakeClock
	vpc      ec2.VPC
	subnet   ec2.Subnet
	instance ec2.Instance
	client   *sdk.Client
	url      string
}

func newLab(t *testing.T, tweak ...func(*ec2.Options)) *lab {
	t.Helper()
	clock := clockwork.NewFakeClockAt(time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC))
	o := ec2.Options{Clock: clock, AttachDelay: attachDelay, DetachDelay: detachDelay}
	for _, f := range tweak {
		f(&o)
	}
	l := &lab{Cloud: ec2.New(o), t: t, ctx: t.Context(), clock: clock}
	l.vpc = must(l.CreateVPC(netip.MustParsePrefix("10.0.0.0/16")))(t)
	l.subnet = l.addSubnet("10.0.1.0/24", "us-west-2a")
	l.instance = l.run("t3.medium")
	server := httptest.NewServer(l.Handler())
	t.Cleanup(server.Close)
	l.url = server.URL
	l.client = l.clientOf(l.Credentials(l.instance.ID))
	return l
}

func (l *lab) addSubnet(cidr, zone string) ec2.Subnet {
	l.t.Helper()
	return must(l.CreateSubnet(ec2.Subnet{
		VPCID: l.vpc.ID, Zone: zone, CIDR: netip.MustParsePrefix(cidr), IPv6: netip.MustParsePrefix("2600:1f13:0:" + netip.MustParsePrefix(cidr).Addr().String()[5:6] + "::/64"), Public: true,
	}))(l.t)
}

func (l *lab) run(instanceType string) ec2.Instance {
	l.t.Helper()
	return must(l.RunInstance(ec2.InstanceSpec{Type: instanceType, SubnetID: l.subnet.ID}))(l.t)
}

func (l *lab) clientOf(c ec2.Credentials, tweak ...func(*sdk.Options)) *sdk.Client {
	o := sdk.Options{
		Region: "us-west-2", BaseEndpoint: &l.url,
		Credentials:      credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
		RetryMaxAttempts: 1,
	}
	return sdk.New(o, tweak...)
}

// create makes an ENI with so many secondary addresses.
func (l *lab) create(secondary int32) *types.NetworkInterface {
	l.t.Helper()
	in := &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID}
	if secondary > 0 {
		in.SecondaryPrivateIpAddressCount = &secondary
	}
	return must(l.client.CreateNetworkInterface(l.ctx, in))(l.t).NetworkInterface
}

func (l *lab) attach(eniID string, device int32) string {
	l.t.Helper()
	out := must(l.client.AttachNetworkInterface(l.ctx, &sdk.AttachNetworkInterfaceInput{
		NetworkInterfaceId: &eniID, InstanceId: &l.instance.ID, DeviceIndex: &device, NetworkCardIndex: aws.Int32(0),
	}))(l.t)
	return *out.AttachmentId
}

// describe gives one ENI as the API shows it.
func (l *lab) describe(eniID string) types.NetworkInterface {
	l.t.Helper()
	out := must(l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eniID}}))(l.t)
	return out.NetworkInterfaces[0]
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

// codeOf gives the error code that the SDK understood, "ok" without an error.
func codeOf(err error) string {
	var api smithy.APIError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &api):
		return api.ErrorCode()
	}
	return err.Error()
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if got := codeOf(err); got != code {
		t.Errorf("got %s (%v), want %s", got, err, code)
	}
}

func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestLifeOfAnENI(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	made := must(l.client.CreateNetworkInterface(l.ctx, &sdk.CreateNetworkInterfaceInput{
		SubnetId: &l.subnet.ID, Description: aws.String("aws-K8S-" + l.instance.ID),
		SecondaryPrivateIpAddressCount: aws.Int32(3),
		TagSpecifications: []types.TagSpecification{{
			ResourceType: types.ResourceTypeNetworkInterface,
			Tags:         []types.Tag{{Key: aws.String("node.k8s.amazonaws.com/instance_id"), Value: &l.instance.ID}},
		}},
		ConnectionTrackingSpecification: &types.ConnectionTrackingSpecificationRequest{UdpTimeout: aws.Int32(45)},
	}))(t).NetworkInterface
	id := *made.NetworkInterfaceId
	wantEqual(t, "status", made.Status, types.NetworkInterfaceStatusAvailable)
	wantEqual(t, "addresses", len(made.PrivateIpAddresses), 4)
	wantEqual(t, "groups", len(made.Groups), 1)
	wantEqual(t, "tag", *made.TagSet[0].Value, l.instance.ID)
	wantEqual(t, "UDP time-out", *made.ConnectionTrackingConfiguration.UdpTimeout, 45)

	attachment := l.attach(id, 1)
	l.clock.Advance(attachDelay - time.Nanosecond)
	wantEqual(t, "on its way", l.describe(id).Attachment.Status, types.AttachmentStatusAttaching)
	wantEqual(t, "status while attaching", l.describe(id).Status, types.NetworkInterfaceStatusInUse)
	// CNIs set this at once, while the ENI is still attaching.
	must(l.client.ModifyNetworkInterfaceAttribute(l.ctx, &sdk.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: &id,
		Attachment:         &types.NetworkInterfaceAttachmentChanges{AttachmentId: &attachment, DeleteOnTermination: aws.Bool(true)},
	}))(t)
	l.clock.Advance(time.Nanosecond)
	e := l.describe(id)
	wantEqual(t, "arrived", e.Attachment.Status, types.AttachmentStatusAttached)
	wantEqual(t, "status", e.Status, types.NetworkInterfaceStatusInUse)
	wantEqual(t, "goes with the instance", *e.Attachment.DeleteOnTermination, true)
	wantEqual(t, "as the library sees it", l.ENIsOf(l.instance.ID)[1].Attachment.State, "attached")

	_, err := l.client.DeleteNetworkInterface(l.ctx, &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id})
	wantCode(t, err, "InvalidParameterValue")
	must(l.client.DetachNetworkInterface(l.ctx, &sdk.DetachNetworkInterfaceInput{AttachmentId: &attachment}))(t)
	wantEqual(t, "on its way out", l.describe(id).Attachment.Status, types.AttachmentStatusDetaching)
	_, err = l.client.DetachNetworkInterface(l.ctx, &sdk.DetachNetworkInterfaceInput{AttachmentId: &attachment})
	wantCode(t, err, "IncorrectState")
	l.clock.Advance(detachDelay)
	if e := l.describe(id); e.Attachment != nil || e.Status != types.NetworkInterfaceStatusAvailable {
		t.Errorf("not available after the delay: %+v", e)
	}
	must(l.client.DeleteNetworkInterface(l.ctx, &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id}))(t)
	_, err = l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{id}})
	wantCode(t, err, "InvalidNetworkInterfaceID.NotFound")
	wantEqual(t, "free addresses", l.FreeAddresses(l.subnet.ID), 256-5-1)
}

func TestTransportNeedsNoSocket(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	client := l.clientOf(l.Credentials(l.instance.ID), func(o *sdk.Options) {
		o.HTTPClient = &http.Client{Transport: l.Transport()}
	})
	out := must(client.DescribeInstances(l.ctx, &sdk.DescribeInstancesInput{InstanceIds: []string{l.instance.ID}}))(t)
	wantEqual(t, "type", out.Reservations[0].Instances[0].InstanceType, types.InstanceTypeT3Medium)
	l.AddFault(ec2.Fault{Action: "Describe*", LostResponse: true})
	if _, err := client.DescribeInstances(l.ctx, &sdk.DescribeInstancesInput{}); err == nil {
		t.Error("a lost response is no answer")
	}
}
