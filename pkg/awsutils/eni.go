package awsutils

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

const (
	// pageSize is the largest page that DescribeNetworkInterfaces gives.
	pageSize = 1000
	// filterSize is the largest number of values in one filter.
	filterSize = 200
)

// DescribeENIs returns the ENIs that are attached (or attaching, or detaching) to an instance, ordered by card and
// device.
func (e *EC2) DescribeENIs(ctx context.Context, instanceID string) ([]ENI, error) {
	enis, err := e.describe(ctx, "attachment.instance-id", instanceID)
	if err != nil {
		return nil, fmt.Errorf("describe enis of %s: %w", instanceID, err)
	}
	return enis, nil
}

// DescribeENIsByID returns the ENIs with these ids. An id that EC2 does not know is missing from the answer; it is not
// an error.
func (e *EC2) DescribeENIsByID(ctx context.Context, ids ...string) ([]ENI, error) {
	var enis []ENI
	// By filter and not by id: one unknown id among the ids would fail the call for all of them.
	for chunk := range slices.Chunk(ids, filterSize) {
		found, err := e.describe(ctx, "network-interface-id", chunk...)
		if err != nil {
			return nil, fmt.Errorf("describe enis %v: %w", chunk, err)
		}
		enis = append(enis, found...)
	}
	return enis, nil
}

// DescribeENIsByTag returns the ENIs that carry a tag with this value, attached or not.
func (e *EC2) DescribeENIsByTag(ctx context.Context, key, value string) ([]ENI, error) {
	enis, err := e.describe(ctx, "tag:"+key, value)
	if err != nil {
		return nil, fmt.Errorf("describe enis with tag %s=%s: %w", key, value, err)
	}
	return enis, nil
}

func (e *EC2) describe(ctx context.Context, filter string, values ...string) ([]ENI, error) {
	return e.describeFiltered(ctx, []types.Filter{{Name: aws.String(filter), Values: values}})
}

func (e *EC2) describeFiltered(ctx context.Context, filters []types.Filter) ([]ENI, error) {
	pages := ec2.NewDescribeNetworkInterfacesPaginator(e.api, &ec2.DescribeNetworkInterfacesInput{
		Filters:    filters,
		MaxResults: aws.Int32(pageSize),
	})
	var enis []ENI
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for i := range page.NetworkInterfaces {
			eni, err := fromEC2(&page.NetworkInterfaces[i])
			if err != nil {
				return nil, err
			}
			enis = append(enis, eni)
		}
	}
	sortENIs(enis)
	return enis, nil
}

// CreateENI creates an ENI with its tags and addresses in one call, so that a policy can insist on the tags and a
// failure leaves nothing half made. It is repeated as often as the SDK likes, even without NewENI.Token: each call has
// a token of its own then.
func (e *EC2) CreateENI(ctx context.Context, n NewENI) (ENI, error) {
	if n.IPs > 0 && n.Prefixes > 0 {
		return ENI{}, errors.New("create eni: both addresses and prefixes asked for")
	}
	in := &ec2.CreateNetworkInterfaceInput{
		SubnetId:    aws.String(n.SubnetID),
		Groups:      n.Groups,
		Description: optional(n.Description),
		ClientToken: optional(n.Token),
	}
	if n.IPs > 0 {
		in.SecondaryPrivateIpAddressCount = aws.Int32(int32(n.IPs))
	}
	if n.Prefixes > 0 {
		in.Ipv4PrefixCount = aws.Int32(int32(n.Prefixes))
	}
	if len(n.Tags) > 0 {
		spec := types.TagSpecification{ResourceType: types.ResourceTypeNetworkInterface}
		// Sorted: a repetition with the same token must be the same request.
		for _, key := range slices.Sorted(maps.Keys(n.Tags)) {
			spec.Tags = append(spec.Tags, types.Tag{Key: aws.String(key), Value: aws.String(n.Tags[key])})
		}
		in.TagSpecifications = []types.TagSpecification{spec}
	}
	out, err := e.api.CreateNetworkInterface(ctx, in)
	if err != nil {
		return ENI{}, fmt.Errorf("create eni in %s: %w", n.SubnetID, err)
	}
	if out.NetworkInterface == nil {
		return ENI{}, fmt.Errorf("create eni in %s: ec2 answered without an eni", n.SubnetID)
	}
	eni, err := fromEC2(out.NetworkInterface)
	if err != nil {
		return ENI{}, fmt.Errorf("create eni in %s: %w", n.SubnetID, err)
	}
	return eni, nil
}

// AttachENI attaches an ENI at a device index of a network card. It returns when EC2 has accepted the call; the
// interface appears on the node later, within AttachTimeout.
func (e *EC2) AttachENI(ctx context.Context, eniID, instanceID string, device, card int) (attachmentID string, err error) {
	out, err := e.api.AttachNetworkInterface(ctx, &ec2.AttachNetworkInterfaceInput{
		NetworkInterfaceId: aws.String(eniID),
		InstanceId:         aws.String(instanceID),
		DeviceIndex:        aws.Int32(int32(device)),
		NetworkCardIndex:   aws.Int32(int32(card)),
	}, once)
	if err != nil {
		return "", fmt.Errorf("attach %s to %s at card %d device %d: %w", eniID, instanceID, card, device, err)
	}
	return aws.ToString(out.AttachmentId), nil
}

// DeleteOnTermination makes EC2 delete an attached ENI with its instance.
func (e *EC2) DeleteOnTermination(ctx context.Context, eniID, attachmentID string) error {
	_, err := e.api.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: aws.String(eniID),
		Attachment: &types.NetworkInterfaceAttachmentChanges{
			AttachmentId:        aws.String(attachmentID),
			DeleteOnTermination: aws.Bool(true),
		},
	})
	if err != nil {
		return fmt.Errorf("delete %s on termination: %w", eniID, err)
	}
	return nil
}

// DetachENI begins to detach an ENI. An attachment that does not exist is success.
func (e *EC2) DetachENI(ctx context.Context, attachmentID string) error {
	_, err := e.api.DetachNetworkInterface(ctx, &ec2.DetachNetworkInterfaceInput{
		AttachmentId: aws.String(attachmentID),
	})
	if err != nil && Classify(err) != NotFound {
		return fmt.Errorf("detach %s: %w", attachmentID, err)
	}
	return nil
}

// DeleteENI deletes a detached ENI. One that does not exist is success.
func (e *EC2) DeleteENI(ctx context.Context, eniID string) error {
	_, err := e.api.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{
		NetworkInterfaceId: aws.String(eniID),
	})
	if err != nil && Classify(err) != NotFound {
		return fmt.Errorf("delete %s: %w", eniID, err)
	}
	return nil
}

// AssignIPs gives an ENI n more secondary addresses and returns them, sorted.
func (e *EC2) AssignIPs(ctx context.Context, eniID string, n int) ([]netip.Addr, error) {
	addrs, err := e.assign(ctx, &ec2.AssignPrivateIpAddressesInput{
		NetworkInterfaceId:             aws.String(eniID),
		SecondaryPrivateIpAddressCount: aws.Int32(int32(n)),
	})
	if err != nil {
		return nil, fmt.Errorf("assign %d addresses to %s: %w", n, eniID, err)
	}
	return addrs, nil
}

// AssignAddresses gives an ENI these secondary addresses, all of them or none, and returns them, sorted. One that
// somebody has is an error of the class InUse, or Other: EC2 has more than one code for it.
func (e *EC2) AssignAddresses(ctx context.Context, eniID string, addrs []netip.Addr) ([]netip.Addr, error) {
	got, err := e.assign(ctx, &ec2.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: aws.String(eniID),
		PrivateIpAddresses: texts(addrs),
	})
	if err != nil {
		return nil, fmt.Errorf("assign %v to %s: %w", addrs, eniID, err)
	}
	return got, nil
}

func (e *EC2) assign(ctx context.Context, in *ec2.AssignPrivateIpAddressesInput) ([]netip.Addr, error) {
	out, err := e.api.AssignPrivateIpAddresses(ctx, in, once)
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(out.AssignedPrivateIpAddresses))
	for _, a := range out.AssignedPrivateIpAddresses {
		addr, err := netip.ParseAddr(aws.ToString(a.PrivateIpAddress))
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

// AssignPrefixes gives an ENI n more /28 prefixes and returns them, sorted.
func (e *EC2) AssignPrefixes(ctx context.Context, eniID string, n int) ([]netip.Prefix, error) {
	out, err := e.api.AssignPrivateIpAddresses(ctx, &ec2.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: aws.String(eniID),
		Ipv4PrefixCount:    aws.Int32(int32(n)),
	}, once)
	if err != nil {
		return nil, fmt.Errorf("assign %d prefixes to %s: %w", n, eniID, err)
	}
	prefixes, err := prefixesFromEC2(out.AssignedIpv4Prefixes)
	if err != nil {
		return nil, fmt.Errorf("assign %d prefixes to %s: %w", n, eniID, err)
	}
	return prefixes, nil
}

// UnassignIPs takes secondary addresses from an ENI. It is not repeated when its outcome is unknown: by then EC2 may
// have given the same address to the same ENI again.
func (e *EC2) UnassignIPs(ctx context.Context, eniID string, addrs []netip.Addr) error {
	return e.unassign(ctx, &ec2.UnassignPrivateIpAddressesInput{
		NetworkInterfaceId: aws.String(eniID),
		PrivateIpAddresses: texts(addrs),
	})
}

// UnassignPrefixes takes prefixes from an ENI; what UnassignIPs says about repeating holds here too.
func (e *EC2) UnassignPrefixes(ctx context.Context, eniID string, prefixes []netip.Prefix) error {
	return e.unassign(ctx, &ec2.UnassignPrivateIpAddressesInput{
		NetworkInterfaceId: aws.String(eniID),
		Ipv4Prefixes:       texts(prefixes),
	})
}

func (e *EC2) unassign(ctx context.Context, in *ec2.UnassignPrivateIpAddressesInput) error {
	if _, err := e.api.UnassignPrivateIpAddresses(ctx, in, once); err != nil {
		return fmt.Errorf("unassign %v from %s: %w", append(in.PrivateIpAddresses, in.Ipv4Prefixes...),
			aws.ToString(in.NetworkInterfaceId), err)
	}
	return nil
}

// fromEC2 translates EC2's description of an ENI.
func fromEC2(in *types.NetworkInterface) (ENI, error) {
	eni := ENI{
		ID:          aws.ToString(in.NetworkInterfaceId),
		Device:      -1,
		SubnetID:    aws.ToString(in.SubnetId),
		Description: aws.ToString(in.Description),
		Tags:        make(map[string]string, len(in.TagSet)),
		Type:        string(in.InterfaceType),
		Status:      string(in.Status),
	}
	for _, tag := range in.TagSet {
		eni.Tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
	}
	var err error
	if mac := aws.ToString(in.MacAddress); mac != "" {
		if eni.MAC, err = net.ParseMAC(mac); err != nil {
			return ENI{}, fmt.Errorf("%s: %w", eni.ID, err)
		}
	}
	// An ENI without IPv4 (efa-only, or of an IPv6-only subnet) has no primary address.
	if primary := aws.ToString(in.PrivateIpAddress); primary != "" {
		if eni.Primary, err = netip.ParseAddr(primary); err != nil {
			return ENI{}, fmt.Errorf("%s: %w", eni.ID, err)
		}
	}
	for _, a := range in.PrivateIpAddresses {
		addr, err := netip.ParseAddr(aws.ToString(a.PrivateIpAddress))
		if err != nil {
			return ENI{}, fmt.Errorf("%s: %w", eni.ID, err)
		}
		if addr != eni.Primary {
			eni.Secondary = append(eni.Secondary, addr)
		}
	}
	slices.SortFunc(eni.Secondary, netip.Addr.Compare)
	if eni.Prefixes, err = prefixesFromEC2(in.Ipv4Prefixes); err != nil {
		return ENI{}, fmt.Errorf("%s: %w", eni.ID, err)
	}
	if a := in.Attachment; a != nil {
		eni.AttachmentID = aws.ToString(a.AttachmentId)
		eni.InstanceID = aws.ToString(a.InstanceId)
		eni.Device = int(aws.ToInt32(a.DeviceIndex))
		eni.Card = int(aws.ToInt32(a.NetworkCardIndex))
		eni.DeleteOnTermination = aws.ToBool(a.DeleteOnTermination)
		// EC2 calls an ENI in-use from the start of its attachment to the end of its detachment; only the
		// attachment knows that it is on its way.
		if a.Status == types.AttachmentStatusAttaching || a.Status == types.AttachmentStatusDetaching {
			eni.Status = string(a.Status)
		}
	}
	return eni, nil
}

func prefixesFromEC2(in []types.Ipv4PrefixSpecification) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, p := range in {
		prefix, err := netip.ParsePrefix(aws.ToString(p.Ipv4Prefix))
		if err != nil {
			return nil, err
		}
		prefixes = append(prefixes, prefix)
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, nil
}

// sortENIs orders ENIs by card, device and id.
func sortENIs(enis []ENI) {
	slices.SortFunc(enis, func(a, b ENI) int {
		return cmp.Or(a.Card-b.Card, a.Device-b.Device, cmp.Compare(a.ID, b.ID))
	})
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}
