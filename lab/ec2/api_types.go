package ec2

import (
	"strings"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"
)

type xmlCard struct {
	Index       int64  `xml:"networkCardIndex"`
	Performance string `xml:"networkPerformance,omitempty"`
	ENIs        int64  `xml:"maximumNetworkInterfaces"`
}

type xmlNetwork struct {
	ENIs        int             `xml:"maximumNetworkInterfaces"`
	Cards       int             `xml:"maximumNetworkCards"`
	DefaultCard int             `xml:"defaultNetworkCardIndex"`
	CardSet     xmlSet[xmlCard] `xml:"networkCards"`
	IPv4        int             `xml:"ipv4AddressesPerInterface"`
	IPv6        int             `xml:"ipv6AddressesPerInterface"`
	HasIPv6     bool            `xml:"ipv6Supported"`
}

type xmlVCPU struct {
	Default int `xml:"defaultVCpus"`
}

type xmlType struct {
	Name       string     `xml:"instanceType"`
	BareMetal  bool       `xml:"bareMetal"`
	Hypervisor string     `xml:"hypervisor,omitempty"`
	VCPU       *xmlVCPU   `xml:"vCpuInfo"`
	Network    xmlNetwork `xml:"networkInfo"`
}

type describeTypesReply struct {
	reply
	Types xmlSet[xmlType] `xml:"instanceTypeSet"`
	Next  string          `xml:"nextToken,omitempty"`
}

func typeOf(name string) xmlType {
	l, _ := limitsOf(name)
	x := xmlType{Name: name, BareMetal: l.IsBareMetal, Hypervisor: l.Hypervisor, Network: xmlNetwork{
		ENIs: l.Interface, Cards: len(l.NetworkCards), DefaultCard: l.DefaultNetworkCardIndex,
		IPv4: l.IPv4PerInterface, IPv6: l.IPv4PerInterface, HasIPv6: true,
		CardSet: setOf(l.NetworkCards, func(c vpc.NetworkCard) xmlCard {
			return xmlCard{c.NetworkCardIndex, c.NetworkPerformance, c.MaximumNetworkInterfaces}
		}),
	}}
	if n := vcpus(name); n > 0 {
		x.VCPU = &xmlVCPU{n}
	}
	return x
}

// maxTypes is how many types DescribeInstanceTypes shows in one page at most.
const maxTypes = 100

var typeFields = fields[string]{
	"instance-type": one(func(t string) string { return t }),
	"bare-metal":    one(func(t string) string { return boolText(vpc.Limits[t].IsBareMetal) }),
	"hypervisor":    one(func(t string) string { return vpc.Limits[t].Hypervisor }),
	"network-info.maximum-network-interfaces":   one(func(t string) string { return decimal(vpc.Limits[t].Interface) }),
	"network-info.ipv4-addresses-per-interface": one(func(t string) string { return decimal(vpc.Limits[t].IPv4PerInterface) }),
}

func (c *Cloud) describeInstanceTypes(q *call) (response, error) {
	names, filters, pg := q.list("InstanceType"), q.filters(), q.paging("InstanceType", maxTypes)
	if !q.has("MaxResults") {
		pg.max = maxTypes
	}
	if err := q.ready(); err != nil {
		return nil, err
	}
	if err := checkFilters(filters, typeFields); err != nil {
		return nil, err
	}
	var unknown []string
	wanted := map[string]bool{}
	for _, name := range names {
		if _, ok := limitsOf(name); !ok {
			unknown = append(unknown, name)
		}
		wanted[name] = true
	}
	if len(unknown) > 0 {
		return nil, errorf("InvalidInstanceType", "The following supplied instance types do not exist: [%s]", strings.Join(unknown, ", "))
	}
	var found []string
	for _, name := range instanceTypes() {
		if len(names) > 0 && !wanted[name] {
			continue
		}
		if ok, _ := match(name, nil, filters, typeFields); ok {
			found = append(found, name)
		}
	}
	shown, next := cut(pg, found, func(name string) string { return name })
	return &describeTypesReply{Types: setOf(shown, typeOf), Next: next}, nil
}
