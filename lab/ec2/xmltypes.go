package ec2

import (
	"net/netip"
	"strings"
	"time"
)

// The shapes of EC2's answers. Lists are always there, even when they are empty, because EC2 sends them so and its
// command line shows the difference.

type xmlSet[T any] struct {
	Items []T `xml:"item"`
}

func setOf[A, B any](list []A, as func(A) B) xmlSet[B] {
	s := xmlSet[B]{Items: make([]B, 0, len(list))}
	for _, a := range list {
		s.Items = append(s.Items, as(a))
	}
	return s
}

type xmlTag struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func xmlTags(tags map[string]string) xmlSet[xmlTag] {
	return setOf(sortedKeys(tags), func(k string) xmlTag { return xmlTag{k, tags[k]} })
}

type xmlGroupRef struct {
	ID   string `xml:"groupId"`
	Name string `xml:"groupName"`
}

type xmlAssociation struct {
	IPOwnerID     string `xml:"ipOwnerId"`
	PublicDNSName string `xml:"publicDnsName"`
	PublicIP      string `xml:"publicIp"`
}

type xmlPrivateIP struct {
	Addr        string          `xml:"privateIpAddress"`
	Primary     bool            `xml:"primary"`
	Association *xmlAssociation `xml:"association"`
}

type xmlIPv4Prefix struct {
	Prefix string `xml:"ipv4Prefix"`
}

type xmlIPv6 struct {
	Addr    string `xml:"ipv6Address"`
	Primary bool   `xml:"isPrimaryIpv6"`
}

type xmlIPv6Prefix struct {
	Prefix string `xml:"ipv6Prefix"`
}

type xmlConnTrack struct {
	TCPEstablished int32 `xml:"tcpEstablishedTimeout,omitempty"`
	UDPStream      int32 `xml:"udpStreamTimeout,omitempty"`
	UDP            int32 `xml:"udpTimeout,omitempty"`
}

// xmlAttachment is an attachment, as DescribeNetworkInterfaces and, without the instance, DescribeInstances show it.
type xmlAttachment struct {
	ID                  string `xml:"attachmentId"`
	InstanceID          string `xml:"instanceId,omitempty"`
	InstanceOwnerID     string `xml:"instanceOwnerId,omitempty"`
	Device              int    `xml:"deviceIndex"`
	Card                int    `xml:"networkCardIndex"`
	Status              string `xml:"status"`
	Since               string `xml:"attachTime"`
	DeleteOnTermination bool   `xml:"deleteOnTermination"`
}

// xmlInterface is what both ways to look at an ENI have in common.
type xmlInterface struct {
	ID              string                `xml:"networkInterfaceId"`
	SubnetID        string                `xml:"subnetId"`
	VPCID           string                `xml:"vpcId"`
	Description     string                `xml:"description"`
	OwnerID         string                `xml:"ownerId"`
	Status          string                `xml:"status"`
	Type            string                `xml:"interfaceType"`
	MAC             string                `xml:"macAddress"`
	PrivateIP       string                `xml:"privateIpAddress"`
	SourceDestCheck bool                  `xml:"sourceDestCheck"`
	Groups          xmlSet[xmlGroupRef]   `xml:"groupSet"`
	Attachment      *xmlAttachment        `xml:"attachment"`
	Association     *xmlAssociation       `xml:"association"`
	ConnTrack       *xmlConnTrack         `xml:"connectionTrackingConfiguration"`
	PrivateIPs      xmlSet[xmlPrivateIP]  `xml:"privateIpAddressesSet"`
	Prefixes        xmlSet[xmlIPv4Prefix] `xml:"ipv4PrefixSet"`
	IPv6            xmlSet[xmlIPv6]       `xml:"ipv6AddressesSet"`
	IPv6Prefixes    xmlSet[xmlIPv6Prefix] `xml:"ipv6PrefixSet"`
}

// xmlENI is an ENI.
type xmlENI struct {
	xmlInterface
	Zone             string         `xml:"availabilityZone"`
	RequesterManaged bool           `xml:"requesterManaged"`
	Tags             xmlSet[xmlTag] `xml:"tagSet"`
}

func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// xmlInterface shows an ENI; changing or state must be held.
func (c *Cloud) xmlInterface(e *ENI) xmlInterface {
	x := xmlInterface{
		ID: e.ID, SubnetID: e.SubnetID, VPCID: e.VPCID, Description: e.Description, OwnerID: c.opts.AccountID,
		Status: e.shownStatus(), Type: e.Type, MAC: e.MAC.String(), PrivateIP: e.Primary.String(), SourceDestCheck: e.SourceDestCheck,
		Groups:       setOf(e.Groups, c.xmlGroupRef),
		Prefixes:     setOf(e.Prefixes, func(p netip.Prefix) xmlIPv4Prefix { return xmlIPv4Prefix{p.String()} }),
		IPv6:         setOf(e.IPv6, func(a netip.Addr) xmlIPv6 { return xmlIPv6{Addr: a.String()} }),
		IPv6Prefixes: setOf(e.IPv6Prefixes, func(p netip.Prefix) xmlIPv6Prefix { return xmlIPv6Prefix{p.String()} }),
	}
	if e.PublicIP.IsValid() {
		x.Association = &xmlAssociation{IPOwnerID: "amazon", PublicIP: e.PublicIP.String()}
	}
	x.PrivateIPs.Items = append(x.PrivateIPs.Items, xmlPrivateIP{e.Primary.String(), true, x.Association})
	for _, a := range e.Secondary {
		x.PrivateIPs.Items = append(x.PrivateIPs.Items, xmlPrivateIP{Addr: a.String()})
	}
	if ct := e.ConnTrack; ct != (ConnectionTracking{}) {
		x.ConnTrack = ref(xmlConnTrack(ct))
	}
	if a := e.Attachment; a != nil {
		x.Attachment = &xmlAttachment{
			ID: a.ID, InstanceID: a.InstanceID, InstanceOwnerID: c.opts.AccountID, Device: a.Device, Card: a.Card,
			Status: a.State, Since: timestamp(a.Since), DeleteOnTermination: a.DeleteOnTermination,
		}
	}
	return x
}

// shownStatus is the status that the API shows. Of an ENI on its way in or out it says "in-use"; only its attachment
// tells more.
func (e *ENI) shownStatus() string {
	if e.Attachment != nil {
		return statusInUse
	}
	return e.Status
}

func (c *Cloud) xmlENI(e *ENI) xmlENI {
	return xmlENI{c.xmlInterface(e), e.Zone, e.RequesterManaged, xmlTags(e.Tags)}
}

func (c *Cloud) xmlGroupRef(id string) xmlGroupRef {
	x := xmlGroupRef{ID: id}
	if g, ok := c.groups[id]; ok {
		x.Name = g.Name
	}
	return x
}

// privateName is the name that EC2's DNS has for a private address.
func privateName(addr, region string) string {
	return "ip-" + strings.ReplaceAll(addr, ".", "-") + "." + region + ".compute.internal"
}
