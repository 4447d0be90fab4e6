package ec2_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"vpccni/lab/ec2"
)

// TestDescribe asks for everything there is by every filter, once so that it is found and once so that it is not.
func TestDescribe(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	public := must(l.RunInstance(ec2.InstanceSpec{
		Type: "m5.large", SubnetID: l.subnet.ID, PublicIP: true, PrivateIP: netip.MustParseAddr("10.0.1.77"), Tags: map[string]string{"role": "node"},
	}))(t)
	primary := l.ENIsOf(public.ID)[0]
	group := must(l.CreateSecurityGroup(ec2.SecurityGroup{VPCID: l.vpc.ID, Name: "pods", Description: "of pods"}))(t)

	instances := func(f []types.Filter) (int, error) {
		out, err := l.client.DescribeInstances(l.ctx, &sdk.DescribeInstancesInput{Filters: f})
		if err != nil {
			return 0, err
		}
		return len(out.Reservations), nil
	}
	subnets := func(f []types.Filter) (int, error) {
		out, err := l.client.DescribeSubnets(l.ctx, &sdk.DescribeSubnetsInput{Filters: f})
		if err != nil {
			return 0, err
		}
		return len(out.Subnets), nil
	}
	vpcs := func(f []types.Filter) (int, error) {
		out, err := l.client.DescribeVpcs(l.ctx, &sdk.DescribeVpcsInput{Filters: f})
		if err != nil {
			return 0, err
		}
		return len(out.Vpcs), nil
	}
	groups := func(f []types.Filter) (int, error) {
		out, err := l.client.DescribeSecurityGroups(l.ctx, &sdk.DescribeSecurityGroupsInput{Filters: f})
		if err != nil {
			return 0, err
		}
		return len(out.SecurityGroups), nil
	}
	enis := func(f []types.Filter) (int, error) {
		out, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{Filters: f})
		if err != nil {
			return 0, err
		}
		return len(out.NetworkInterfaces), nil
	}
	instanceTypes := func(f []types.Filter) (int, error) {
		out, err := l.client.DescribeInstanceTypes(l.ctx, &sdk.DescribeInstanceTypesInput{
			InstanceTypes: []types.InstanceType{"t3.medium", "m5.metal", "m4.large"}, Filters: f,
		})
		if err != nil {
			return 0, err
		}
		return len(out.InstanceTypes), nil
	}
	for _, tc := range []struct {
		name   string
		find   func([]types.Filter) (int, error)
		value  string
		expect int
	}{
		{"instance-id", instances, public.ID, 1},
		{"instance-type", instances, "m5.*", 1},
		{"instance-state-name", instances, "running", 2},
		{"instance-state-code", instances, "16", 2},
		{"vpc-id", instances, l.vpc.ID, 2},
		{"subnet-id", instances, l.subnet.ID, 2},
		{"availability-zone", instances, "us-west-2a", 2},
		{"private-ip-address", instances, "10.0.1.77", 1},
		{"private-dns-name", instances, "ip-10-0-1-77.us-west-2.compute.internal", 1},
		{"network-interface.network-interface-id", instances, primary.ID, 1},
		{"network-interface.subnet-id", instances, l.subnet.ID, 2},
		{"tag:role", instances, "node", 1},

		{"subnet-id", subnets, l.subnet.ID, 1},
		{"vpc-id", subnets, l.vpc.ID, 1},
		{"availability-zone", subnets, "us-west-2a", 1},
		{"cidr-block", subnets, "10.0.1.0/24", 1},
		{"state", subnets, "available", 1},
		{"owner-id", subnets, l.AccountID(), 1},
		{"available-ip-address-count", subnets, "249", 1},
		{"ipv6-cidr-block-association.ipv6-cidr-block", subnets, l.subnet.IPv6.String(), 1},

		{"vpc-id", vpcs, l.vpc.ID, 1},
		{"cidr", vpcs, "10.0.0.0/16", 1},
		{"cidr-block-association.cidr-block", vpcs, "10.0.0.0/16", 1},
		{"state", vpcs, "available", 1},
		{"owner-id", vpcs, l.AccountID(), 1},
		{"is-default", vpcs, "false", 1},

		{"group-id", groups, group.ID, 1},
		{"group-name", groups, "pods", 1},
		{"vpc-id", groups, l.vpc.ID, 2},
		{"description", groups, "of pods", 1},
		{"owner-id", groups, l.AccountID(), 2},

		{"mac-address", enis, primary.MAC.String(), 1},
		{"interface-type", enis, "interface", 2},
		{"requester-managed", enis, "false", 2},
		{"source-dest-check", enis, "true", 2},
		{"private-ip-address", enis, "10.0.1.77", 1},
		{"group-id", enis, primary.Groups[0], 2},
		{"association.public-ip", enis, public.PublicIP.String(), 1},
		{"addresses.primary", enis, "true", 2},
		{"attachment.attachment-id", enis, primary.Attachment.ID, 1},
		{"attachment.network-card-index", enis, "0", 2},
		{"attachment.delete-on-termination", enis, "true", 2},
		{"attachment.status", enis, "attached", 2},
		{"attachment.attach-time", enis, "2025-03-01T12:00:00.000Z", 2},

		{"instance-type", instanceTypes, "t3.*", 1},
		{"bare-metal", instanceTypes, "true", 1},
		{"hypervisor", instanceTypes, "xen", 1},
		{"network-info.maximum-network-interfaces", instanceTypes, "3", 1},
		{"network-info.ipv4-addresses-per-interface", instanceTypes, "6", 1},
	} {
		if got, err := tc.find(filterList(tc.name, tc.value)); err != nil || got != tc.expect {
			t.Errorf("%s=%s: %d, want %d, error %v", tc.name, tc.value, got, tc.expect, err)
		}
		if got, err := tc.find(filterList(tc.name, "no such value")); err != nil || got != 0 {
			t.Errorf("%s without a match: %d, error %v", tc.name, got, err)
		}
		if _, err := tc.find(filterList("x-"+tc.name, tc.value)); codeOf(err) != "InvalidParameterValue" {
			t.Errorf("x-%s: %v", tc.name, err)
		}
	}

	out := must(l.client.DescribeInstances(l.ctx, &sdk.DescribeInstancesInput{InstanceIds: []string{public.ID}}))(t)
	i := out.Reservations[0].Instances[0]
	wantEqual(t, "private address", aws.ToString(i.PrivateIpAddress), "10.0.1.77")
	wantEqual(t, "public address", aws.ToString(i.PublicIpAddress), public.PublicIP.String())
	wantEqual(t, "name", aws.ToString(i.PrivateDnsName), "ip-10-0-1-77.us-west-2.compute.internal")
	wantEqual(t, "zone", aws.ToString(i.Placement.AvailabilityZone), "us-west-2a")
	wantEqual(t, "ENI", aws.ToString(i.NetworkInterfaces[0].MacAddress), primary.MAC.String())
}

// TestLibrary: what the API shows is what the library gives, and what it gives is a copy.
func TestLibrary(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	wantEqual(t, "VPCs", len(l.VPCs()), 1)
	wantEqual(t, "subnets", len(l.Subnets(l.vpc.ID)), 1)
	wantEqual(t, "subnets of another VPC", len(l.Subnets("vpc-1")), 0)
	wantEqual(t, "groups", len(l.SecurityGroups("")), 1)
	g, ok := l.SecurityGroup(l.SecurityGroups(l.vpc.ID)[0].ID)
	wantEqual(t, "default group", ok && g.Name == "default", true)
	wantEqual(t, "region", l.Region(), "us-west-2")

	e := l.ENIs()[0]
	e.Tags["x"], e.MAC[0], e.Groups[0], e.Attachment.Device = "y", 0xff, "sg-1", 7
	again := l.ENIs()[0]
	if again.Tags["x"] != "" || again.MAC[0] == 0xff || again.Groups[0] == "sg-1" || again.Attachment.Device == 7 {
		t.Errorf("the cloud's own ENI was changed: %+v", again)
	}

	for what, spec := range map[string]ec2.InstanceSpec{
		"InvalidParameterValue":    {Type: "t3.enormous", SubnetID: l.subnet.ID},
		"InvalidSubnetID.NotFound": {Type: "t3.medium", SubnetID: "subnet-1"},
		"InvalidGroup.NotFound":    {Type: "t3.medium", SubnetID: l.subnet.ID, SecurityGroups: []string{"sg-1"}},
		"InvalidIPAddress.InUse":   {Type: "t3.medium", SubnetID: l.subnet.ID, PrivateIP: again.Primary},
	} {
		var e *ec2.Error
		if _, err := l.RunInstance(spec); !errors.As(err, &e) || e.Code != what {
			t.Errorf("got %v, want %s", err, what)
		}
	}
	private := must(l.CreateSubnet(ec2.Subnet{VPCID: l.vpc.ID, CIDR: netip.MustParsePrefix("10.0.9.0/24")}))(t)
	if _, err := l.RunInstance(ec2.InstanceSpec{Type: "t3.medium", SubnetID: private.ID, PublicIP: true}); err == nil {
		t.Error("a public address in a private subnet")
	}
	wantEqual(t, "nothing is left of the refused ones", l.FreeAddresses(private.ID), 251)
}
