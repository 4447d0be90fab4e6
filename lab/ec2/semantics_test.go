package ec2_test

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"vpccni/lab/ec2"
)

func itoa(n int) string { return strconv.Itoa(n) }

func tagList(kv ...string) []types.Tag {
	var tags []types.Tag
	for n := 0; n < len(kv); n += 2 {
		tags = append(tags, types.Tag{Key: &kv[n], Value: &kv[n+1]})
	}
	return tags
}

func filterList(name string, values ...string) []types.Filter {
	return []types.Filter{{Name: &name, Values: values}}
}

func TestAssignAndUnassign(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	eni := l.primary()
	out := must(l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: eni, SecondaryPrivateIpAddressCount: aws.Int32(2),
	}))(t)
	wantEqual(t, "addresses", len(out.AssignedPrivateIpAddresses), 2)
	first := *out.AssignedPrivateIpAddresses[0].PrivateIpAddress
	wantEqual(t, "lowest free address", first, "10.0.1.5")
	prefixes := must(l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: eni, Ipv4PrefixCount: aws.Int32(1),
	}))(t)
	wantEqual(t, "prefix", *prefixes.AssignedIpv4Prefixes[0].Ipv4Prefix, "10.0.1.16/28")
	must(l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: eni, Ipv4Prefixes: []string{"10.0.1.64/28"},
	}))(t)
	must(l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: eni, PrivateIpAddresses: []string{"10.0.1.200"},
	}))(t)
	e, _ := l.ENI(*eni)
	wantEqual(t, "slots", 1+len(e.Secondary)+len(e.Prefixes), 6)
	wantEqual(t, "free", l.FreeAddresses(l.subnet.ID), 251-4-32)

	for a, want := range map[string]bool{"10.0.1.4": true, first: true, "10.0.1.31": true, "10.0.1.64": true, "10.0.1.32": false} {
		i, ok := l.InstanceByAddress(netip.MustParseAddr(a))
		if ok != want || ok && i.ID != l.instance.ID {
			t.Errorf("owner of %s: %v %s", a, ok, i.ID)
		}
	}

	must(l.client.UnassignPrivateIpAddresses(l.ctx, &sdk.UnassignPrivateIpAddressesInput{
		NetworkInterfaceId: eni, PrivateIpAddresses: []string{first, "10.0.1.200"},
	}))(t)
	must(l.client.UnassignPrivateIpAddresses(l.ctx, &sdk.UnassignPrivateIpAddressesInput{
		NetworkInterfaceId: eni, Ipv4Prefixes: []string{"10.0.1.16/28"},
	}))(t)
	wantEqual(t, "free", l.FreeAddresses(l.subnet.ID), 251-2-16)
	wantEqual(t, "as the API sees it", len(l.describe(*eni).Ipv4Prefixes), 1)
}

func TestReassignment(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	from, to := l.create(2), l.primary()
	moved := *from.PrivateIpAddresses[1].PrivateIpAddress
	must(l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: to, PrivateIpAddresses: []string{moved}, AllowReassignment: aws.Bool(true),
	}))(t)
	wantEqual(t, "left", len(l.describe(*from.NetworkInterfaceId).PrivateIpAddresses), 2)
	wantEqual(t, "joined", len(l.describe(*to).PrivateIpAddresses), 2)
	i, ok := l.InstanceByAddress(netip.MustParseAddr(moved))
	if !ok || i.ID != l.instance.ID {
		t.Errorf("the address is %q's", i.ID)
	}
	// Once more changes nothing.
	must(l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: to, PrivateIpAddresses: []string{moved}, AllowReassignment: aws.Bool(true),
	}))(t)
	wantEqual(t, "free", l.FreeAddresses(l.subnet.ID), 251-4)
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	made := must(l.client.CreateNetworkInterface(l.ctx, &sdk.CreateNetworkInterfaceInput{
		SubnetId: &l.subnet.ID, Ipv6AddressCount: aws.Int32(1), Ipv6Prefixes: []types.Ipv6PrefixSpecificationRequest{{Ipv6Prefix: aws.String("2600:1f13:0:1:2::/80")}},
	}))(t).NetworkInterface
	wantEqual(t, "addresses", len(made.Ipv6Addresses), 1)
	wantEqual(t, "prefix", *made.Ipv6Prefixes[0].Ipv6Prefix, "2600:1f13:0:1:2::/80")
	out := must(l.client.AssignIpv6Addresses(l.ctx, &sdk.AssignIpv6AddressesInput{NetworkInterfaceId: made.NetworkInterfaceId, Ipv6PrefixCount: aws.Int32(2)}))(t)
	wantEqual(t, "prefixes", len(out.AssignedIpv6Prefixes), 2)
	for _, p := range out.AssignedIpv6Prefixes {
		at := netip.MustParsePrefix(p)
		if at.Bits() != 80 || at != at.Masked() || !l.subnet.IPv6.Contains(at.Addr()) {
			t.Errorf("%s is no /80 of the subnet", p)
		}
	}
	for what, in := range map[string]*sdk.AssignIpv6AddressesInput{
		"a prefix twice":         {Ipv6Prefixes: out.AssignedIpv6Prefixes[:1]},
		"an address in a prefix": {Ipv6Addresses: []string{"2600:1f13:0:1:2::5"}},
	} {
		in.NetworkInterfaceId = l.primary()
		_, err := l.client.AssignIpv6Addresses(l.ctx, in)
		if codeOf(err) != "InvalidIPAddress.InUse" {
			t.Errorf("%s: %v", what, err)
		}
	}
	un := must(l.client.UnassignIpv6Addresses(l.ctx, &sdk.UnassignIpv6AddressesInput{
		NetworkInterfaceId: made.NetworkInterfaceId, Ipv6Prefixes: out.AssignedIpv6Prefixes, Ipv6Addresses: []string{*made.Ipv6Addresses[0].Ipv6Address},
	}))(t)
	wantEqual(t, "unassigned", len(un.UnassignedIpv6Prefixes)+len(un.UnassignedIpv6Addresses), 3)
	e := l.describe(*made.NetworkInterfaceId)
	wantEqual(t, "left", len(e.Ipv6Addresses)+len(e.Ipv6Prefixes), 1)
}

func TestNetworkCards(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.instance = l.run("p4d.24xlarge")
	// The same device index on another card is another place.
	for _, card := range []int32{0, 1} {
		if err := l.tryAttach(*l.create(0).NetworkInterfaceId, l.instance.ID, 1, card); err != nil {
			t.Fatal(err)
		}
	}
	l.clock.Advance(attachDelay)
	enis := l.ENIsOf(l.instance.ID)
	got := make([][2]int, 0, len(enis))
	for _, e := range enis {
		got = append(got, [2]int{e.Attachment.Card, e.Attachment.Device})
	}
	if !slices.Equal(got, [][2]int{{0, 0}, {0, 1}, {1, 1}}) {
		t.Errorf("places %v", got)
	}
	types := must(l.client.DescribeInstanceTypes(l.ctx, &sdk.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"p4d.24xlarge"}}))(t)
	n := types.InstanceTypes[0].NetworkInfo
	wantEqual(t, "cards", len(n.NetworkCards), 4)
	wantEqual(t, "addresses", *n.Ipv4AddressesPerInterface, 50)
	wantEqual(t, "hypervisor", string(types.InstanceTypes[0].Hypervisor), "nitro")
	wantEqual(t, "CPUs", *types.InstanceTypes[0].VCpuInfo.DefaultVCpus, 96)
}

func TestInstances(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	out := must(l.client.RunInstances(l.ctx, &sdk.RunInstancesInput{
		ImageId: aws.String("ami-1"), InstanceType: types.InstanceTypeM5Large, MinCount: aws.Int32(1), MaxCount: aws.Int32(2),
		NetworkInterfaces: []types.InstanceNetworkInterfaceSpecification{{
			DeviceIndex: aws.Int32(0), SubnetId: &l.subnet.ID, AssociatePublicIpAddress: aws.Bool(true),
		}},
		TagSpecifications: []types.TagSpecification{
			{ResourceType: types.ResourceTypeInstance, Tags: tagList("Name", "node")},
			{ResourceType: types.ResourceTypeNetworkInterface, Tags: tagList("of", "node")},
		},
	}))(t)
	wantEqual(t, "instances", len(out.Instances), 2)
	i := out.Instances[1]
	wantEqual(t, "public address", *i.PublicIpAddress, "198.18.0.2")
	wantEqual(t, "tags of the instance", *i.Tags[0].Value, "node")
	wantEqual(t, "state", i.State.Name, types.InstanceStateNameRunning)
	primary := l.describe(*i.NetworkInterfaces[0].NetworkInterfaceId)
	wantEqual(t, "tags of the ENI", *primary.TagSet[0].Key, "of")
	wantEqual(t, "mapping", *primary.Association.PublicIp, "198.18.0.2")
	wantEqual(t, "at once", primary.Attachment.Status, types.AttachmentStatusAttached)

	// One ENI goes with the instance, the other one stays.
	l.instance.ID = *i.InstanceId
	stays, goes := l.create(0), l.create(0)
	l.attach(*stays.NetworkInterfaceId, 1)
	attachment := l.attach(*goes.NetworkInterfaceId, 2)
	must(l.client.ModifyNetworkInterfaceAttribute(l.ctx, &sdk.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: goes.NetworkInterfaceId,
		Attachment:         &types.NetworkInterfaceAttachmentChanges{AttachmentId: &attachment, DeleteOnTermination: aws.Bool(true)},
	}))(t)
	must(l.client.TerminateInstances(l.ctx, &sdk.TerminateInstancesInput{InstanceIds: []string{*i.InstanceId}}))(t)
	wantEqual(t, "what stays", l.describe(*stays.NetworkInterfaceId).Status, types.NetworkInterfaceStatusAvailable)
	for _, id := range []string{*goes.NetworkInterfaceId, *primary.NetworkInterfaceId} {
		if _, ok := l.ENI(id); ok {
			t.Errorf("%s did not go with its instance", id)
		}
	}
	l.clock.Advance(attachDelay) // the timers of attachments that no longer are
	wantEqual(t, "what stays", l.describe(*stays.NetworkInterfaceId).Status, types.NetworkInterfaceStatusAvailable)
	gone, _ := l.Instance(*i.InstanceId)
	wantEqual(t, "state", gone.State, "terminated")
}

func TestFilters(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	made := must(l.client.CreateNetworkInterface(l.ctx, &sdk.CreateNetworkInterfaceInput{
		SubnetId: &l.subnet.ID, Description: aws.String("aws-K8S-i-1"), SecondaryPrivateIpAddressCount: aws.Int32(1),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeNetworkInterface, Tags: tagList("owner", "vpc-cni", "empty", "")}},
	}))(t).NetworkInterface
	filter := func(name, value string) types.Filter { return types.Filter{Name: &name, Values: []string{value}} }
	for _, tc := range []struct {
		name    string
		filters []types.Filter
		want    int
	}{
		{"none", nil, 2},
		{"id", []types.Filter{filter("network-interface-id", *made.NetworkInterfaceId)}, 1},
		{"tag", []types.Filter{filter("tag:owner", "vpc-cni")}, 1},
		{"tag, other value", []types.Filter{filter("tag:owner", "vpc")}, 0},
		{"tag, wildcard", []types.Filter{filter("tag:owner", "vpc*")}, 1},
		{"tag with an empty value", []types.Filter{filter("tag:empty", "")}, 1},
		{"tag key", []types.Filter{filter("tag-key", "owner")}, 1},
		{"description", []types.Filter{filter("description", "aws-K8S-*")}, 1},
		{"status", []types.Filter{filter("status", "available")}, 1},
		{"instance", []types.Filter{filter("attachment.instance-id", l.instance.ID)}, 1},
		{"device", []types.Filter{filter("attachment.device-index", "0")}, 1},
		{"vpc", []types.Filter{filter("vpc-id", l.vpc.ID)}, 2},
		{"subnet", []types.Filter{filter("subnet-id", "subnet-1")}, 0},
		{"zone", []types.Filter{filter("availability-zone", "us-west-2?")}, 2},
		{"secondary address", []types.Filter{filter("addresses.private-ip-address", *made.PrivateIpAddresses[1].PrivateIpAddress)}, 1},
		{"upstream's search for leaks", []types.Filter{filter("tag-key", "owner"), filter("status", "available"), filter("vpc-id", l.vpc.ID)}, 1},
		{"all must hold", []types.Filter{filter("tag-key", "owner"), filter("status", "in-use")}, 0},
		{"any value will do", []types.Filter{{Name: aws.String("status"), Values: []string{"in-use", "available"}}}, 2},
	} {
		out, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{Filters: tc.filters})
		if err != nil || len(out.NetworkInterfaces) != tc.want {
			t.Errorf("%s: %v, want %d, error %v", tc.name, len(out.NetworkInterfaces), tc.want, err)
		}
	}
	subnets := must(l.client.DescribeSubnets(l.ctx, &sdk.DescribeSubnetsInput{Filters: []types.Filter{
		filter("vpc-id", l.vpc.ID), filter("availability-zone", "us-west-2a"),
	}}))(t)
	wantEqual(t, "free", *subnets.Subnets[0].AvailableIpAddressCount, 251-3)
	vpcs := must(l.client.DescribeVpcs(l.ctx, &sdk.DescribeVpcsInput{VpcIds: []string{l.vpc.ID}}))(t)
	wantEqual(t, "ranges", *vpcs.Vpcs[0].CidrBlockAssociationSet[0].CidrBlock, "10.0.0.0/16")
	groups := must(l.client.DescribeSecurityGroups(l.ctx, &sdk.DescribeSecurityGroupsInput{Filters: []types.Filter{filter("group-name", "default")}}))(t)
	wantEqual(t, "group of the ENI", *groups.SecurityGroups[0].GroupId, *made.Groups[0].GroupId)
}

func TestPages(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	want := map[string]bool{}
	for range 11 {
		want[*l.create(0).NetworkInterfaceId] = true
	}
	pages := sdk.NewDescribeNetworkInterfacesPaginator(l.client, &sdk.DescribeNetworkInterfacesInput{
		Filters: filterList("status", "available"), MaxResults: aws.Int32(5),
	})
	var sizes []int
	for pages.HasMorePages() {
		out := must(pages.NextPage(l.ctx))(t)
		sizes = append(sizes, len(out.NetworkInterfaces))
		for _, e := range out.NetworkInterfaces {
			if !want[*e.NetworkInterfaceId] {
				t.Errorf("%s is shown twice", *e.NetworkInterfaceId)
			}
			delete(want, *e.NetworkInterfaceId)
		}
		if len(sizes) == 1 { // the page's last one goes; the next page starts where it should all the same
			last := out.NetworkInterfaces[4].NetworkInterfaceId
			must(l.client.DeleteNetworkInterface(l.ctx, &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: last}))(t)
		}
	}
	if len(want) != 0 || !slices.Equal(sizes, []int{5, 5, 1}) {
		t.Errorf("pages of %v, %d never shown", sizes, len(want))
	}
	all := 0
	more := sdk.NewDescribeInstanceTypesPaginator(l.client, &sdk.DescribeInstanceTypesInput{Filters: filterList("instance-type", "m5*")})
	for more.HasMorePages() {
		all += len(must(more.NextPage(l.ctx))(t).InstanceTypes)
	}
	if all < 5*9 {
		t.Errorf("only %d instance types", all)
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	eni := *l.primary()
	must(l.client.CreateTags(l.ctx, &sdk.CreateTagsInput{Resources: []string{eni, l.subnet.ID, l.instance.ID, l.vpc.ID}, Tags: tagList("a", "1", "b", "2")}))(t)
	must(l.client.CreateTags(l.ctx, &sdk.CreateTagsInput{Resources: []string{eni}, Tags: tagList("b", "3")}))(t)
	out := must(l.client.DescribeTags(l.ctx, &sdk.DescribeTagsInput{Filters: filterList("resource-id", eni)}))(t)
	wantEqual(t, "tags", len(out.Tags), 2)
	wantEqual(t, "overwritten", *out.Tags[1].Value, "3")
	wantEqual(t, "type", out.Tags[0].ResourceType, types.ResourceTypeNetworkInterface)
	all := must(l.client.DescribeTags(l.ctx, &sdk.DescribeTagsInput{Filters: filterList("key", "a")}))(t)
	wantEqual(t, "resources", len(all.Tags), 4)

	del := func(tags ...types.Tag) {
		must(l.client.DeleteTags(l.ctx, &sdk.DeleteTagsInput{Resources: []string{eni}, Tags: tags}))(t)
	}
	del(types.Tag{Key: aws.String("a"), Value: aws.String("other")}, types.Tag{Key: aws.String("b")})
	e, _ := l.ENI(eni)
	if len(e.Tags) != 1 || e.Tags["a"] != "1" {
		t.Errorf("tags %v", e.Tags)
	}
	del()
	e, _ = l.ENI(eni)
	wantEqual(t, "tags", len(e.Tags), 0)
	s, _ := l.Subnet(l.subnet.ID)
	wantEqual(t, "subnet's tag", s.Tags["b"], "2")
}

func TestModify(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	group := must(l.CreateSecurityGroup(ec2.SecurityGroup{VPCID: l.vpc.ID, Name: "pods"}))(t)
	for _, in := range []*sdk.ModifyNetworkInterfaceAttributeInput{
		{Groups: []string{group.ID}},
		{Description: &types.AttributeValue{Value: aws.String("mine")}},
		{SourceDestCheck: &types.AttributeBooleanValue{Value: aws.Bool(false)}},
		{ConnectionTrackingSpecification: &types.ConnectionTrackingSpecificationRequest{TcpEstablishedTimeout: aws.Int32(600)}},
	} {
		in.NetworkInterfaceId = l.primary()
		must(l.client.ModifyNetworkInterfaceAttribute(l.ctx, in))(t)
	}
	e := l.describe(*l.primary())
	wantEqual(t, "group", *e.Groups[0].GroupName, "pods")
	wantEqual(t, "description", *e.Description, "mine")
	wantEqual(t, "source check", *e.SourceDestCheck, false)
	wantEqual(t, "time-out", *e.ConnectionTrackingConfiguration.TcpEstablishedTimeout, 600)
}

func TestClientToken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	in := &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID, ClientToken: aws.String("once")}
	first := must(l.client.CreateNetworkInterface(l.ctx, in))(t)
	again := must(l.client.CreateNetworkInterface(l.ctx, in))(t)
	wantEqual(t, "the same ENI", *again.NetworkInterface.NetworkInterfaceId, *first.NetworkInterface.NetworkInterfaceId)
	wantEqual(t, "ENIs", len(l.ENIs()), 2)
}

func TestSeed(t *testing.T) {
	t.Parallel()
	grow := func(seed uint64) (ec2.Instance, []netip.Addr) {
		c := ec2.New(ec2.Options{Seed: seed})
		v := must(c.CreateVPC(netip.MustParsePrefix("10.0.0.0/16")))(t)
		s := must(c.CreateSubnet(ec2.Subnet{VPCID: v.ID, CIDR: netip.MustParsePrefix("10.0.0.0/18")}))(t)
		var addrs []netip.Addr
		var i ec2.Instance
		for range 4 {
			i = must(c.RunInstance(ec2.InstanceSpec{Type: "m5.large", SubnetID: s.ID}))(t)
			addrs = append(addrs, c.ENIsOf(i.ID)[0].Primary)
		}
		return i, addrs
	}
	one, at := grow(7)
	two, again := grow(7)
	if one.ID != two.ID || !slices.Equal(at, again) {
		t.Error("the same seed gives another cloud")
	}
	if three, other := grow(8); three.ID == one.ID || slices.Equal(at, other) {
		t.Error("another seed gives the same cloud")
	}
	if _, packed := grow(0); packed[3] != netip.MustParseAddr("10.0.0.7") {
		t.Errorf("seed 0 does not pack: %v", packed)
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	if err := l.AddVPCCIDR(l.vpc.ID, netip.MustParsePrefix("100.64.0.0/16")); err != nil {
		t.Fatal(err)
	}
	must(l.CreateSubnet(ec2.Subnet{VPCID: l.vpc.ID, CIDR: netip.MustParsePrefix("100.64.0.0/24")}))(t)
	for what, err := range map[string]error{
		"CidrConflict":           l.AddVPCCIDR(l.vpc.ID, netip.MustParsePrefix("100.64.4.0/24")),
		"InvalidVpc.Range":       l.AddVPCCIDR(l.vpc.ID, netip.MustParsePrefix("100.0.0.0/8")),
		"InvalidVpcID.NotFound":  l.AddVPCCIDR("vpc-1", netip.MustParsePrefix("100.65.0.0/16")),
		"InvalidSubnet.Conflict": second(l.CreateSubnet(ec2.Subnet{VPCID: l.vpc.ID, CIDR: netip.MustParsePrefix("10.0.1.128/25")})),
		"InvalidSubnet.Range":    second(l.CreateSubnet(ec2.Subnet{VPCID: l.vpc.ID, CIDR: netip.MustParsePrefix("10.1.0.0/24")})),
	} {
		var e *ec2.Error
		if !errors.As(err, &e) || e.Code != what {
			t.Errorf("got %v, want %s", err, what)
		}
	}
	v, _ := l.VPC(l.vpc.ID)
	wantEqual(t, "ranges", len(v.CIDRs), 2)
}

func second[T any](_ T, err error) error { return err }
