package awsutils

import (
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

const eniXML = `<networkInterfaceId>eni-1</networkInterfaceId><subnetId>subnet-1</subnetId><description>d</description>
<macAddress>02:00:00:00:00:01</macAddress><interfaceType>interface</interfaceType><status>in-use</status>
<privateIpAddress>10.0.0.9</privateIpAddress>
<privateIpAddressesSet>
 <item><privateIpAddress>10.0.0.9</privateIpAddress><primary>true</primary></item>
 <item><privateIpAddress>10.0.0.20</privateIpAddress></item>
 <item><privateIpAddress>10.0.0.3</privateIpAddress></item>
</privateIpAddressesSet>
<ipv4PrefixSet><item><ipv4Prefix>10.0.0.64/28</ipv4Prefix></item><item><ipv4Prefix>10.0.0.48/28</ipv4Prefix></item></ipv4PrefixSet>
<tagSet><item><key>k</key><value>v</value></item></tagSet>`

func attachmentXML(card, device int, status string) string {
	return fmt.Sprintf(`<attachment><attachmentId>eni-attach-1</attachmentId><instanceId>i-1</instanceId><deviceIndex>%d</deviceIndex>
<networkCardIndex>%d</networkCardIndex><status>%s</status><deleteOnTermination>true</deleteOnTermination></attachment>`,
		device, card, status)
}

func describeXML(next string, items ...string) string {
	return "<DescribeNetworkInterfacesResponse><networkInterfaceSet><item>" + strings.Join(items, "</item><item>") +
		"</item></networkInterfaceSet><nextToken>" + next + "</nextToken></DescribeNetworkInterfacesResponse>"
}

var createdXML = "<CreateNetworkInterfaceResponse><networkInterface>" + eniXML + "</networkInterface></CreateNetworkInterfaceResponse>"

func wantENI() ENI {
	return ENI{
		ID: "eni-1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Device: -1, SubnetID: "subnet-1",
		Primary:     netip.MustParseAddr("10.0.0.9"),
		Secondary:   []netip.Addr{netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.0.20")},
		Prefixes:    []netip.Prefix{netip.MustParsePrefix("10.0.0.48/28"), netip.MustParsePrefix("10.0.0.64/28")},
		Description: "d", Tags: map[string]string{"k": "v"}, Type: "interface", Status: "in-use",
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	w := &wire{answers: []answer{
		ok(describeXML("more", eniXML+attachmentXML(1, 2, "attached"))),
		ok(describeXML("", eniXML+attachmentXML(0, 1, "attaching"), "<networkInterfaceId>eni-2</networkInterfaceId>"+attachmentXML(0, 0, "attached"))),
	}}
	e, _ := client(t, w)
	enis, err := e.DescribeENIs(t.Context(), "i-1")
	if err != nil {
		t.Fatal(err)
	}
	if len(enis) != 3 || enis[0].ID != "eni-2" || enis[1].Device != 1 || enis[2].Card != 1 {
		t.Fatalf("not in the order of cards and devices: %+v", enis)
	}
	want := wantENI()
	want.AttachmentID, want.InstanceID, want.DeleteOnTermination = "eni-attach-1", "i-1", true
	want.Device, want.Status = 1, "attaching"
	if !reflect.DeepEqual(enis[1], want) {
		t.Errorf("got  %+v\nwant %+v", enis[1], want)
	}
	if enis[0].Primary.IsValid() || enis[0].MAC != nil {
		t.Errorf("an eni without an address: %+v", enis[0])
	}
	const form = "Action=DescribeNetworkInterfaces\nFilter.1.Name=attachment.instance-id\nFilter.1.Value.1=i-1\nMaxResults=1000"
	if got := w.form(0); got != form {
		t.Errorf("first request:\n%s\nwant:\n%s", got, form)
	}
	if got := w.form(1); got != form+"\nNextToken=more" {
		t.Errorf("second request:\n%s", got)
	}
}

func TestDescribeByIDAndTag(t *testing.T) {
	t.Parallel()
	w := &wire{answers: []answer{ok(describeXML("", eniXML))}}
	e, _ := client(t, w)
	ids := make([]string, filterSize+1)
	for i := range ids {
		ids[i] = fmt.Sprintf("eni-%d", i)
	}
	if enis, err := e.DescribeENIsByID(t.Context(), ids...); err != nil || len(enis) != 2 {
		t.Fatalf("got %d enis, %v", len(enis), err)
	}
	if got := w.form(1); got != "Action=DescribeNetworkInterfaces\nFilter.1.Name=network-interface-id\nFilter.1.Value.1=eni-200\nMaxResults=1000" {
		t.Errorf("second request:\n%s", got)
	}
	if enis, err := e.DescribeENIsByID(t.Context()); err != nil || len(enis) != 0 || w.sent() != 2 {
		t.Errorf("no ids: %v, %v, %d requests", enis, err, w.sent())
	}
	if _, err := e.DescribeENIsByTag(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	if got := w.form(2); !strings.Contains(got, "Filter.1.Name=tag:k\nFilter.1.Value.1=v") {
		t.Errorf("by tag:\n%s", got)
	}
}

func TestCreateENI(t *testing.T) {
	t.Parallel()
	w := &wire{answers: []answer{ok(createdXML)}}
	e, _ := client(t, w)
	eni, err := e.CreateENI(t.Context(), NewENI{
		SubnetID: "subnet-1", Groups: []string{"sg-1", "sg-2"}, Description: "d", Token: "token", IPs: 5,
		Tags: map[string]string{"b": "2", "a": "1"},
	})
	if err != nil || !reflect.DeepEqual(eni, wantENI()) {
		t.Fatalf("got %+v, %v", eni, err)
	}
	const form = `Action=CreateNetworkInterface
ClientToken=token
Description=d
SecondaryPrivateIpAddressCount=5
SecurityGroupId.1=sg-1
SecurityGroupId.2=sg-2
SubnetId=subnet-1
TagSpecification.1.ResourceType=network-interface
TagSpecification.1.Tag.1.Key=a
TagSpecification.1.Tag.1.Value=1
TagSpecification.1.Tag.2.Key=b
TagSpecification.1.Tag.2.Value=2`
	if got := w.form(0); got != form {
		t.Errorf("request:\n%s\nwant:\n%s", got, form)
	}
	if _, err := e.CreateENI(t.Context(), NewENI{SubnetID: "subnet-1", Prefixes: 2, Token: "token"}); err != nil {
		t.Fatal(err)
	}
	if got := w.form(1); got != "Action=CreateNetworkInterface\nClientToken=token\nIpv4PrefixCount=2\nSubnetId=subnet-1" {
		t.Errorf("with prefixes:\n%s", got)
	}
	if _, err := e.CreateENI(t.Context(), NewENI{IPs: 1, Prefixes: 1}); err == nil || w.sent() != 2 {
		t.Errorf("addresses and prefixes: %v, %d requests", err, w.sent())
	}
	if !strings.Contains(w.agents[0], "amazon-vpc-cni-k8s/v1.2.3") {
		t.Errorf("user agent %q", w.agents[0])
	}
}

func TestMutations(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		answer string
		call   func(*EC2) (string, error)
		form   string
		result string
	}{
		{
			"attach", "<AttachNetworkInterfaceResponse><attachmentId>eni-attach-1</attachmentId></AttachNetworkInterfaceResponse>",
			func(e *EC2) (string, error) { return e.AttachENI(t.Context(), "eni-1", "i-1", 3, 0) },
			"Action=AttachNetworkInterface\nDeviceIndex=3\nInstanceId=i-1\nNetworkCardIndex=0\nNetworkInterfaceId=eni-1",
			"eni-attach-1",
		},
		{
			"delete on termination", "<ModifyNetworkInterfaceAttributeResponse/>",
			func(e *EC2) (string, error) { return "", e.DeleteOnTermination(t.Context(), "eni-1", "eni-attach-1") },
			"Action=ModifyNetworkInterfaceAttribute\nAttachment.AttachmentId=eni-attach-1\nAttachment.DeleteOnTermination=true\nNetworkInterfaceId=eni-1",
			"",
		},
		{
			"assign addresses", `<AssignPrivateIpAddressesResponse><assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.0.9</privateIpAddress></item>
<item><privateIpAddress>10.0.0.8</privateIpAddress></item></assignedPrivateIpAddressesSet></AssignPrivateIpAddressesResponse>`,
			func(e *EC2) (string, error) {
				addrs, err := e.AssignIPs(t.Context(), "eni-1", 2)
				return fmt.Sprint(addrs), err
			},
			"Action=AssignPrivateIpAddresses\nNetworkInterfaceId=eni-1\nSecondaryPrivateIpAddressCount=2",
			"[10.0.0.8 10.0.0.9]",
		},
		{
			"assign these addresses", `<AssignPrivateIpAddressesResponse><assignedPrivateIpAddressesSet><item><privateIpAddress>10.0.0.9</privateIpAddress></item>
</assignedPrivateIpAddressesSet></AssignPrivateIpAddressesResponse>`,
			func(e *EC2) (string, error) {
				addrs, err := e.AssignAddresses(t.Context(), "eni-1", []netip.Addr{netip.MustParseAddr("10.0.0.9")})
				return fmt.Sprint(addrs), err
			},
			"Action=AssignPrivateIpAddresses\nNetworkInterfaceId=eni-1\nPrivateIpAddress.1=10.0.0.9",
			"[10.0.0.9]",
		},
		{
			"subnets", `<DescribeSubnetsResponse><subnetSet><item><subnetId>subnet-b</subnetId><cidrBlock>10.0.2.0/24</cidrBlock>
<availableIpAddressCount>7</availableIpAddressCount><tagSet><item><key>kubernetes.io/role/cni</key><value>1</value></item></tagSet></item>
<item><subnetId>subnet-a</subnetId></item></subnetSet></DescribeSubnetsResponse>`,
			func(e *EC2) (string, error) {
				subnets, err := e.DescribeSubnets(t.Context(), "vpc-1", "us-west-2a")
				return fmt.Sprint(subnets), err
			},
			"Action=DescribeSubnets\nFilter.1.Name=vpc-id\nFilter.1.Value.1=vpc-1\nFilter.2.Name=availability-zone\nFilter.2.Value.1=us-west-2a\nMaxResults=1000",
			"[{subnet-a invalid Prefix 0 map[]} {subnet-b 10.0.2.0/24 7 map[kubernetes.io/role/cni:1]}]",
		},
		{
			"assign prefixes", `<AssignPrivateIpAddressesResponse><assignedIpv4PrefixSet><item><ipv4Prefix>10.0.0.32/28</ipv4Prefix></item>
</assignedIpv4PrefixSet></AssignPrivateIpAddressesResponse>`,
			func(e *EC2) (string, error) {
				prefixes, err := e.AssignPrefixes(t.Context(), "eni-1", 1)
				return fmt.Sprint(prefixes), err
			},
			"Action=AssignPrivateIpAddresses\nIpv4PrefixCount=1\nNetworkInterfaceId=eni-1",
			"[10.0.0.32/28]",
		},
		{
			"unassign addresses", "<UnassignPrivateIpAddressesResponse/>",
			func(e *EC2) (string, error) {
				return "", e.UnassignIPs(t.Context(), "eni-1", []netip.Addr{netip.MustParseAddr("10.0.0.9")})
			},
			"Action=UnassignPrivateIpAddresses\nNetworkInterfaceId=eni-1\nPrivateIpAddress.1=10.0.0.9",
			"",
		},
		{
			"unassign prefixes", "<UnassignPrivateIpAddressesResponse/>",
			func(e *EC2) (string, error) {
				return "", e.UnassignPrefixes(t.Context(), "eni-1", []netip.Prefix{netip.MustParsePrefix("10.0.0.32/28")})
			},
			"Action=UnassignPrivateIpAddresses\nIpv4Prefix.1=10.0.0.32/28\nNetworkInterfaceId=eni-1",
			"",
		},
		{
			"detach", "<DetachNetworkInterfaceResponse/>",
			func(e *EC2) (string, error) { return "", e.DetachENI(t.Context(), "eni-attach-1") },
			"Action=DetachNetworkInterface\nAttachmentId=eni-attach-1",
			"",
		},
		{
			"delete", "<DeleteNetworkInterfaceResponse/>",
			func(e *EC2) (string, error) { return "", e.DeleteENI(t.Context(), "eni-1") },
			"Action=DeleteNetworkInterface\nNetworkInterfaceId=eni-1",
			"",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := &wire{answers: []answer{ok(tc.answer)}}
			e, calls := client(t, w)
			result, err := tc.call(e)
			if err != nil || result != tc.result {
				t.Errorf("got %q, %v; want %q", result, err, tc.result)
			}
			if got := w.form(0); got != tc.form {
				t.Errorf("request:\n%s\nwant:\n%s", got, tc.form)
			}
			if c := calls(); len(c) != 1 || c[0].Attempts != 1 || c[0].Status != 200 || c[0].Err != nil ||
				!strings.HasPrefix(tc.form, "Action="+c[0].Operation) {
				t.Errorf("observed %+v", c)
			}
		})
	}
}

// Deleting what is gone is success.
func TestGone(t *testing.T) {
	t.Parallel()
	e, _ := client(t, &wire{answers: []answer{
		failed(400, "InvalidAttachmentID.NotFound", ""), failed(400, "InvalidNetworkInterfaceID.NotFound", ""),
		failed(400, "IncorrectState", ""), failed(400, "InvalidParameterValue", "Network interface &apos;eni-1&apos; is currently in use."),
	}})
	if err := e.DetachENI(t.Context(), "eni-attach-1"); err != nil {
		t.Error(err)
	}
	if err := e.DeleteENI(t.Context(), "eni-1"); err != nil {
		t.Error(err)
	}
	if err := e.DetachENI(t.Context(), "eni-attach-1"); Classify(err) != IncorrectState {
		t.Error(err)
	}
	if err := e.DeleteENI(t.Context(), "eni-1"); Classify(err) != InUse {
		t.Error(err)
	}
}
