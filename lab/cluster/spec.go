package cluster

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/jonboulle/clockwork"
	"go.yaml.in/yaml/v3"

	"vpccni/lab/fabric"
)

// Spec describes a lab. The zero value is three t3.medium in two subnets, once Complete has filled it in.
type Spec struct {
	Name    string         `json:"name" yaml:"name"`
	CIDRs   []netip.Prefix `json:"cidrs" yaml:"cidrs"`
	Subnets []Subnet       `json:"subnets" yaml:"subnets"`
	Nodes   []NodeSpec     `json:"nodes" yaml:"nodes"`
	// AttachDelay and DetachDelay are how long an ENI stays attaching and detaching.
	AttachDelay time.Duration `json:"attachDelay" yaml:"attachDelay"`
	DetachDelay time.Duration `json:"detachDelay" yaml:"detachDelay"`
	// APILatency is added to every EC2 call.
	APILatency time.Duration `json:"apiLatency" yaml:"apiLatency"`
	// Env is for the ipamd of every node; a node's own goes before it.
	Env map[string]string `json:"env" yaml:"env"`
	// NoIPAMD leaves nodes bare: no plugin, no daemon, no CNI configuration.
	NoIPAMD bool `json:"noIPAMD" yaml:"noIPAMD"`
	// BinDir has aws-k8s-agent, aws-cni and, if pods are to have host ports, portmap, and if they are to reach IPv6
	// destinations, egress-cni.
	BinDir string `json:"binDir" yaml:"binDir"`
	// Seed of EC2's ids and choice of addresses; 0 hands out the lowest free address.
	Seed uint64 `json:"seed" yaml:"seed"`
	// MoreHosts are further hosts that see private addresses, as the one on premises does.
	MoreHosts []fabric.PeeredHost `json:"-" yaml:"-"`
	// Clock is EC2's and IMDS's; nil is the real one.
	Clock clockwork.Clock `json:"-" yaml:"-"`
}

// Subnet is a subnet of the lab's VPC.
type Subnet struct {
	Name string       `json:"name" yaml:"name"`
	CIDR netip.Prefix `json:"cidr" yaml:"cidr"`
	// IPv6 is the subnet's /64, if any; its nodes then have an IPv6 address.
	IPv6 netip.Prefix `json:"ipv6" yaml:"ipv6"`
	Zone string       `json:"zone" yaml:"zone"`
	// Private subnets reach the internet through a NAT gateway; the others through the internet gateway, and their
	// nodes have a public address.
	Private bool              `json:"private" yaml:"private"`
	Tags    map[string]string `json:"tags" yaml:"tags"`
}

// NodeSpec is a node.
type NodeSpec struct {
	Name   string `json:"name" yaml:"name"`
	Type   string `json:"type" yaml:"type"`
	Subnet string `json:"subnet" yaml:"subnet"` // a subnet's name
	// Address is the node's primary private address; the zero Addr is any.
	Address netip.Addr        `json:"address" yaml:"address"`
	Env     map[string]string `json:"env" yaml:"env"`
	// RPFilter is the distribution's net.ipv4.conf.default.rp_filter; nil is 2, as systemd sets it.
	RPFilter *int `json:"rpFilter" yaml:"rpFilter"`
	// Sysctls are further settings of the node; keys are paths below /proc/sys with slashes.
	Sysctls map[string]string `json:"sysctls" yaml:"sysctls"`
}

// DefaultType is the instance type of nodes that say none.
const DefaultType = "t3.medium"

// DefaultNodes is the number of nodes of a lab that says none.
const DefaultNodes = 3

// ParseSpec reads a Spec in YAML or JSON. Unknown keys are errors.
func ParseSpec(text []byte) (Spec, error) {
	var s Spec
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil && !errors.Is(err, io.EOF) {
		return Spec{}, fmt.Errorf("description of the lab: %w", err)
	}
	return s, nil
}

// DefaultSubnets gives n subnets of 10.0.0.0/16, one per zone.
func DefaultSubnets(n int) []Subnet {
	subnets := make([]Subnet, n)
	for i := range subnets {
		subnets[i] = Subnet{
			Name: "subnet-" + string(rune('a'+i)),
			CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i + 1), 0}), 24),
			Zone: "us-west-2" + string(rune('a'+i)),
		}
	}
	return subnets
}

// Complete fills in what is not said, and reports everything that is wrong.
func (s *Spec) Complete() error {
	s.Name = cmp.Or(s.Name, "lab")
	if len(s.CIDRs) == 0 {
		s.CIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
	}
	if len(s.Subnets) == 0 {
		s.Subnets = DefaultSubnets(2)
	}
	if len(s.Nodes) == 0 {
		s.Nodes = make([]NodeSpec, DefaultNodes)
	}
	var errs []error
	used := map[string]int{}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		n.Name = cmp.Or(n.Name, fmt.Sprintf("n%d", i+1))
		n.Type = cmp.Or(n.Type, DefaultType)
		n.Subnet = cmp.Or(n.Subnet, s.Subnets[i%len(s.Subnets)].Name)
		if n.RPFilter == nil {
			n.RPFilter = new(int)
			*n.RPFilter = 2
		}
		at := slices.IndexFunc(s.Subnets, func(sub Subnet) bool { return sub.Name == n.Subnet })
		if at < 0 {
			errs = append(errs, fmt.Errorf("node %s: there is no subnet %q", n.Name, n.Subnet))
			continue
		}
		if !n.Address.IsValid() && s.Subnets[at].CIDR.Bits() <= 24 {
			// .10, .11, … of the subnet: easy to tell from pods' addresses.
			n.Address = nth(s.Subnets[at].CIDR, 10+used[n.Subnet])
			used[n.Subnet]++
		}
		if slices.ContainsFunc(s.Nodes[:i], func(o NodeSpec) bool { return o.Name == n.Name }) {
			errs = append(errs, fmt.Errorf("node %s is there twice", n.Name))
		}
	}
	for i, sub := range s.Subnets {
		switch {
		case sub.Name == "" || !sub.CIDR.IsValid():
			errs = append(errs, fmt.Errorf("subnet %d: name and cidr are needed", i+1))
		case slices.ContainsFunc(s.Subnets[:i], func(o Subnet) bool { return o.Name == sub.Name }):
			errs = append(errs, fmt.Errorf("subnet %s is there twice", sub.Name))
		}
	}
	return errors.Join(errs...)
}

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}
