package ec2_test

import (
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"vpccni/lab/ec2"
)

// TestRefusals are all the ways in which EC2 says no, each in a lab of its own.
func TestRefusals(t *testing.T) {
	t.Parallel()
	const nobody = "eni-00000000000000000"
	tests := []struct {
		name string
		do   func(*lab) error
		code string
		text string // part of the message
	}{
		{"describe an unknown ENI", func(l *lab) error {
			known := *l.create(0).NetworkInterfaceId
			_, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{known, nobody}})
			return err
		}, "InvalidNetworkInterfaceID.NotFound", "'" + nobody + "'"},
		{"describe what is no id", func(l *lab) error {
			_, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{"i-1"}})
			return err
		}, "InvalidNetworkInterfaceId.Malformed", `"i-1"`},
		{"create in an unknown subnet", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.SubnetId = aws.String("subnet-1") })
		},
			"InvalidSubnetID.NotFound", "'subnet-1'"},
		{"create with an unknown group", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.Groups = []string{"sg-1"} })
		}, "InvalidGroup.NotFound", "'sg-1'"},
		{"create with an address that is taken", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.PrivateIpAddress = aws.String("10.0.1.4") })
		}, "InvalidIPAddress.InUse", "Address 10.0.1.4 is in use"},
		{"create with an address of another subnet", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.PrivateIpAddress = aws.String("10.0.2.4") })
		}, "InvalidParameterValue", "range"},
		{"create with a reserved address", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.PrivateIpAddress = aws.String("10.0.1.1") })
		}, "InvalidParameterValue", "reserved"},
		{"create with no address", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.PrivateIpAddress = aws.String("ten") })
		}, "InvalidParameterValue", "ten"},
		{"create with a count and prefixes", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) {
				in.SecondaryPrivateIpAddressCount, in.Ipv4PrefixCount = aws.Int32(1), aws.Int32(1)
			})
		}, "InvalidParameterCombination", "ipv4PrefixCount"},
		{"create with more than the subnet has", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.SecondaryPrivateIpAddressCount = aws.Int32(250) })
		}, "InsufficientFreeAddressesInSubnet", "enough free addresses"},
		{"create with more /28 than the subnet has", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.Ipv4PrefixCount = aws.Int32(15) })
		}, "InvalidParameterValue", "There aren't sufficient free Ipv4 addresses or prefixes"},
		{"create with tags for something else", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) {
				in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeInstance, Tags: tagList("a", "b")}}
			})
		}, "InvalidParameterValue", "taggable"},
		{"create with the same tag twice", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) {
				in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeNetworkInterface, Tags: tagList("a", "b", "a", "c")}}
			})
		}, "InvalidParameterValue", "Duplicate"},
		{"create with AWS's own tag", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) {
				in.TagSpecifications = []types.TagSpecification{{ResourceType: types.ResourceTypeNetworkInterface, Tags: tagList("aws:x", "b")}}
			})
		}, "InvalidParameterValue", "reserved"},
		{"a client token with other parameters", func(l *lab) error {
			must(l.client.CreateNetworkInterface(l.ctx, &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID, ClientToken: aws.String("t")}))(l.t)
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) {
				in.ClientToken, in.Description = aws.String("t"), aws.String("other")
			})
		}, "IdempotentParameterMismatch", ""},
		{"create, but only try", func(l *lab) error {
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.DryRun = aws.Bool(true) })
		},
			"DryRunOperation", ""},

		{"attach an unknown ENI", func(l *lab) error { return l.tryAttach(nobody, l.instance.ID, 1, 0) }, "InvalidNetworkInterfaceID.NotFound", nobody},
		{"attach to an unknown instance", func(l *lab) error { return l.tryAttach(*l.create(0).NetworkInterfaceId, "i-1", 1, 0) },
			"InvalidInstanceID.NotFound", "'i-1'"},
		{"attach where an ENI is", func(l *lab) error { return l.tryAttach(*l.create(0).NetworkInterfaceId, l.instance.ID, 0, 0) },
			"InvalidParameterValue", "already has an interface attached at device index '0'"},
		{"attach to a card that is not there", func(l *lab) error { return l.tryAttach(*l.create(0).NetworkInterfaceId, l.instance.ID, 1, 1) },
			"InvalidParameterValue", "Network card index 1"},
		{"attach one too many", func(l *lab) error {
			l.attach(*l.create(0).NetworkInterfaceId, 1)
			l.attach(*l.create(0).NetworkInterfaceId, 2)
			return l.tryAttach(*l.create(0).NetworkInterfaceId, l.instance.ID, 3, 0)
		}, "AttachmentLimitExceeded", "Interface count 4 exceeds the limit for t3.medium"},
		{"attach what is attached", func(l *lab) error {
			id := *l.create(0).NetworkInterfaceId
			l.attach(id, 1)
			return l.tryAttach(id, l.instance.ID, 2, 0)
		}, "InvalidNetworkInterface.InUse", id("eni-")},
		{"attach what has more addresses than the type", func(l *lab) error { return l.tryAttach(*l.create(6).NetworkInterfaceId, l.instance.ID, 1, 0) },
			"PrivateIpAddressLimitExceeded", ""},
		{"attach across zones", func(l *lab) error {
			other := l.addSubnet("10.0.2.0/24", "us-west-2b")
			e := must(l.client.CreateNetworkInterface(l.ctx, &sdk.CreateNetworkInterfaceInput{SubnetId: &other.ID}))(l.t)
			return l.tryAttach(*e.NetworkInterface.NetworkInterfaceId, l.instance.ID, 1, 0)
		}, "InvalidParameterCombination", "availability zone"},
		{"attach to what is terminated", func(l *lab) error {
			other := l.run("t3.medium")
			if err := l.TerminateInstance(other.ID); err != nil {
				return err
			}
			return l.tryAttach(*l.create(0).NetworkInterfaceId, other.ID, 1, 0)
		}, "IncorrectState", "terminated"},

		{"detach what is not there", func(l *lab) error { return l.tryDetach("eni-attach-1", false) }, "InvalidAttachmentID.NotFound", "'eni-attach-1'"},
		{"detach the primary ENI", func(l *lab) error { return l.tryDetach(l.ENIsOf(l.instance.ID)[0].Attachment.ID, false) },
			"OperationNotPermitted", "device index 0 and networkCard index 0 cannot be detached"},
		{"detach what is attaching", func(l *lab) error { return l.tryDetach(l.attach(*l.create(0).NetworkInterfaceId, 1), false) },
			"IncorrectState", "attaching"},
		{"detach what is attaching, by force", func(l *lab) error { return l.tryDetach(l.attach(*l.create(0).NetworkInterfaceId, 1), true) }, "ok", ""},

		{"assign nothing", func(l *lab) error { return l.tryAssign(func(*sdk.AssignPrivateIpAddressesInput) {}) }, "MissingParameter", ""},
		{"assign more than the type has", func(l *lab) error {
			return l.tryAssign(func(in *sdk.AssignPrivateIpAddressesInput) { in.SecondaryPrivateIpAddressCount = aws.Int32(6) })
		}, "PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit."},
		{"assign more prefixes than the type has", func(l *lab) error {
			return l.tryAssign(func(in *sdk.AssignPrivateIpAddressesInput) { in.Ipv4PrefixCount = aws.Int32(6) })
		}, "PrivateIpAddressLimitExceeded", ""},
		{"assign a count and addresses", func(l *lab) error {
			return l.tryAssign(func(in *sdk.AssignPrivateIpAddressesInput) {
				in.SecondaryPrivateIpAddressCount, in.PrivateIpAddresses = aws.Int32(1), []string{"10.0.1.9"}
			})
		}, "InvalidParameterCombination", ""},
		{"assign another's address", func(l *lab) error {
			other := l.create(1)
			return l.tryAssign(func(in *sdk.AssignPrivateIpAddressesInput) {
				in.PrivateIpAddresses = []string{*other.PrivateIpAddresses[1].PrivateIpAddress}
			})
		}, "InvalidIPAddress.InUse", ""},
		{"reassign another's primary address", func(l *lab) error {
			other := l.create(1)
			return l.tryAssign(func(in *sdk.AssignPrivateIpAddressesInput) {
				in.PrivateIpAddresses, in.AllowReassignment = []string{*other.PrivateIpAddress}, aws.Bool(true)
			})
		}, "InvalidIPAddress.InUse", ""},
		{"assign /28s of a subnet in pieces", func(l *lab) error {
			l.splinter()
			return l.tryAssign(func(in *sdk.AssignPrivateIpAddressesInput) { in.Ipv4PrefixCount = aws.Int32(1) })
		}, "InsufficientCidrBlocks", "cidr blocks"},
		{"create with /28s of a subnet in pieces", func(l *lab) error {
			l.splinter()
			return l.tryCreate(func(in *sdk.CreateNetworkInterfaceInput) { in.Ipv4PrefixCount = aws.Int32(1) })
		}, "InvalidParameterValue", "There aren't sufficient free Ipv4 addresses or prefixes"},
		{"assign a crooked prefix", func(l *lab) error {
			return l.tryAssign(func(in *sdk.AssignPrivateIpAddressesInput) { in.Ipv4Prefixes = []string{"10.0.1.8/28"} })
		}, "InvalidParameterValue", "/28"},
		{"unassign what is not assigned", func(l *lab) error {
			_, err := l.client.UnassignPrivateIpAddresses(l.ctx, &sdk.UnassignPrivateIpAddressesInput{NetworkInterfaceId: l.primary(), PrivateIpAddresses: []string{"10.0.1.77"}})
			return err
		}, "InvalidParameterValue", "10.0.1.77"},
		{"unassign the primary address", func(l *lab) error {
			_, err := l.client.UnassignPrivateIpAddresses(l.ctx, &sdk.UnassignPrivateIpAddressesInput{NetworkInterfaceId: l.primary(), PrivateIpAddresses: []string{"10.0.1.4"}})
			return err
		}, "InvalidParameterValue", "10.0.1.4"},

		{"modify two things at once", func(l *lab) error {
			_, err := l.client.ModifyNetworkInterfaceAttribute(l.ctx, &sdk.ModifyNetworkInterfaceAttributeInput{
				NetworkInterfaceId: l.primary(), Description: &types.AttributeValue{Value: aws.String("x")}, SourceDestCheck: &types.AttributeBooleanValue{Value: aws.Bool(false)},
			})
			return err
		}, "InvalidParameterCombination", ""},
		{"filter by nonsense", func(l *lab) error {
			_, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{Filters: filterList("colour", "red")})
			return err
		}, "InvalidParameterValue", "'colour'"},
		{"pages too small", func(l *lab) error {
			_, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{MaxResults: aws.Int32(4)})
			return err
		}, "InvalidParameterValue", "maxResults"},
		{"pages of explicit ids", func(l *lab) error {
			_, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{MaxResults: aws.Int32(5), NetworkInterfaceIds: []string{*l.primary()}})
			return err
		}, "InvalidParameterCombination", "networkInterfaceIds"},
		{"a token that EC2 did not give", func(l *lab) error {
			_, err := l.client.DescribeNetworkInterfaces(l.ctx, &sdk.DescribeNetworkInterfacesInput{MaxResults: aws.Int32(5), NextToken: aws.String("mine")})
			return err
		}, "InvalidNextToken", "mine"},
		{"an unknown type", func(l *lab) error {
			_, err := l.client.DescribeInstanceTypes(l.ctx, &sdk.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{"t3.enormous"}})
			return err
		}, "InvalidInstanceType", "[t3.enormous]"},
		{"an action that the lab does not have", func(l *lab) error {
			_, err := l.client.DescribeVolumes(l.ctx, &sdk.DescribeVolumesInput{})
			return err
		}, "InvalidAction", "DescribeVolumes"},
		{"a parameter that the lab does not have", func(l *lab) error {
			_, err := l.client.AttachNetworkInterface(l.ctx, &sdk.AttachNetworkInterfaceInput{
				NetworkInterfaceId: l.create(0).NetworkInterfaceId, InstanceId: &l.instance.ID, DeviceIndex: aws.Int32(1), EnaQueueCount: aws.Int32(2),
			})
			return err
		}, "UnknownParameter", "The parameter EnaQueueCount is not recognized"},
		{"tags for nobody", func(l *lab) error {
			_, err := l.client.CreateTags(l.ctx, &sdk.CreateTagsInput{Resources: []string{nobody}, Tags: tagList("a", "b")})
			return err
		}, "InvalidNetworkInterfaceID.NotFound", nobody},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			free := l.FreeAddresses(l.subnet.ID)
			err := tc.do(l)
			wantCode(t, err, tc.code)
			if err != nil && !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%q does not say %q", err, tc.text)
			}
			if held := heldIn(l.ENIs(), l.subnet.ID); free+1 != l.FreeAddresses(l.subnet.ID)+held {
				t.Errorf("a refusal changed the pool: %d were free and 1 held, now %d and %d", free, l.FreeAddresses(l.subnet.ID), held)
			}
		})
	}
}

// id is text that any id of the kind has.
func id(prefix string) string { return prefix + "0" }

func heldIn(enis []ec2.ENI, subnetID string) int {
	n := 0
	for _, e := range enis {
		if e.SubnetID == subnetID {
			n += 1 + len(e.Secondary) + 16*len(e.Prefixes)
		}
	}
	return n
}

// splinter leaves plenty of addresses in the subnet but no /28: one address in each is taken.
func (l *lab) splinter() {
	l.t.Helper()
	in := &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID}
	for n := 0; n < 256; n += 16 {
		in.PrivateIpAddresses = append(in.PrivateIpAddresses, types.PrivateIpAddressSpecification{
			PrivateIpAddress: aws.String("10.0.1." + itoa(n+8)), Primary: aws.Bool(n == 0),
		})
	}
	must(l.client.CreateNetworkInterface(l.ctx, in))(l.t)
}

func (l *lab) primary() *string { return &l.ENIsOf(l.instance.ID)[0].ID }

func (l *lab) tryCreate(tweak func(*sdk.CreateNetworkInterfaceInput)) error {
	in := &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID}
	tweak(in)
	_, err := l.client.CreateNetworkInterface(l.ctx, in)
	return err
}

func (l *lab) tryAttach(eniID, instanceID string, device, card int32) error {
	_, err := l.client.AttachNetworkInterface(l.ctx, &sdk.AttachNetworkInterfaceInput{
		NetworkInterfaceId: &eniID, InstanceId: &instanceID, DeviceIndex: &device, NetworkCardIndex: &card,
	})
	return err
}

func (l *lab) tryDetach(attachment string, force bool) error {
	_, err := l.client.DetachNetworkInterface(l.ctx, &sdk.DetachNetworkInterfaceInput{AttachmentId: &attachment, Force: &force})
	return err
}

func (l *lab) tryAssign(tweak func(*sdk.AssignPrivateIpAddressesInput)) error {
	in := &sdk.AssignPrivateIpAddressesInput{NetworkInterfaceId: l.primary()}
	tweak(in)
	_, err := l.client.AssignPrivateIpAddresses(l.ctx, in)
	return err
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.SetThrottle("DescribeSubnets", 2, 0.5)
	call := func() error {
		_, err := l.client.DescribeSubnets(l.ctx, &sdk.DescribeSubnetsInput{})
		return err
	}
	for n, want := range []string{"ok", "ok", "RequestLimitExceeded", "RequestLimitExceeded"} {
		if n == 3 {
			l.clock.Advance(2*time.Second - time.Nanosecond)
		}
		wantCode(t, call(), want)
	}
	l.clock.Advance(time.Nanosecond)
	wantCode(t, call(), "ok")
	_, err := l.client.DescribeVpcs(l.ctx, &sdk.DescribeVpcsInput{})
	wantCode(t, err, "ok") // a bucket of its own
	counts := l.Counts()
	wantEqual(t, "counted", counts[ec2.CountKey{Action: "DescribeSubnets", Caller: l.instance.ID, Outcome: "RequestLimitExceeded"}], 2)
}
