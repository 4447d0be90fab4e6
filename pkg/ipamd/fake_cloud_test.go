package ipamd

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/aws/smithy-go"

	"vpccni/pkg/awsutils"
)

const (
	testInstance = "i-0123456789abcdef0"
	testPrimary  = "eni-primary"
	testSubnet   = "subnet-a"
)

var testCIDR = netip.MustParsePrefix("10.0.0.0/24")

func awsError(code string) error { return &smithy.GenericAPIError{Code: code, Message: code} }

// fault is what goes wrong with a call. lost lets the effect happen.
type fault struct {
	err  error
	lost bool
}

// cloud is a small EC2 with one instance: stateful, with limits, delays and faults. Time is a parameter.
type cloud struct {
	mu          sync.Mutex
	enis        map[string]*awsutils.ENI
	groupsOf    map[string]string // client token → ENI
	linkAt      map[string]time.Time
	goneAt      map[string]time.Time // detaching until
	used        map[netip.Addr]bool
	next        netip.Addr
	made        int
	maxENIs     int
	maxIPs      int // per ENI, its own included
	attachDelay time.Duration
	detachDelay time.Duration
	log         []string
	counts      map[string]int
	faults      func(call string, n int) fault
	// fragmented has no free /28, whatever is free.
	fragmented bool
	// others are the subnets of the zone beside the primary ENI's; tags are those of all of them.
	others map[string]netip.Prefix
	tags   map[string]map[string]string
	// reuse hands out the lowest free address instead of the longest unused one; scatter, one of the emptiest /28.
	reuse, scatter bool
}

func newCloud(maxENIs, maxIPs int) *cloud {
	c := &cloud{enis: map[string]*awsutils.ENI{}, groupsOf: map[string]string{}, linkAt: map[string]time.Time{},
		goneAt: map[string]time.Time{}, used: map[netip.Addr]bool{}, next: testCIDR.Addr(), maxENIs: maxENIs, maxIPs: maxIPs,
		counts: map[string]int{}, others: map[string]netip.Prefix{}, tags: map[string]map[string]string{}}
	for range 4 { // the reserved ones
		c.used[c.next] = true
		c.next = c.next.Next()
	}
	c.used[netip.MustParseAddr("10.0.0.255")] = true
	ip, _ := c.takeIP()
	c.enis[testPrimary] = &awsutils.ENI{ID: testPrimary, MAC: macOf(0), SubnetID: testSubnet, Primary: ip,
		Type: "interface", Status: "in-use", AttachmentID: "att-primary", InstanceID: testInstance, DeleteOnTermination: true}
	return c
}

func macOf(n int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, byte(n >> 8), byte(n)} }

func (c *cloud) takeIP() (netip.Addr, error) {
	if c.reuse {
		c.next = testCIDR.Addr()
	}
	if c.scatter {
		c.next = c.emptiest()
	}
	for range 1 << (32 - testCIDR.Bits()) {
		ip := c.next
		if c.next = c.next.Next(); !testCIDR.Contains(c.next) {
			c.next = testCIDR.Addr()
		}
		if !c.used[ip] {
			c.used[ip] = true
			return ip, nil
		}
	}
	return netip.Addr{}, awsError("InsufficientFreeAddressesInSubnet")
}

// emptiest is an address of the emptiest /28.
func (c *cloud) emptiest() netip.Addr {
	used := map[netip.Prefix]int{}
	for ip := range c.used {
		used[blockOf(ip)]++
	}
	best := blockOf(testCIDR.Addr())
	for b := best; testCIDR.Contains(b.Addr()); b = after(b) {
		if used[b] < used[best] {
			best = b
		}
	}
	return best.Addr()
}

// addSubnet adds a subnet of the zone. Its addresses are handed out lowest first.
func (c *cloud) addSubnet(id, cidr string, tags map[string]string) {
	c.others[id], c.tags[id] = netip.MustParsePrefix(cidr), tags
	ip := c.others[id].Addr()
	for range 4 {
		c.used[ip] = true
		ip = ip.Next()
	}
}

// tiny tells whether a subnet is too small for a free /28.
func (c *cloud) tiny() bool {
	for _, p := range c.others {
		if p.Bits() >= prefixBits {
			return true
		}
	}
	return false
}

func (c *cloud) rangeOf(subnet string) netip.Prefix {
	if p, ok := c.others[subnet]; ok {
		return p
	}
	return testCIDR
}

func (c *cloud) takeIPIn(subnet string) (netip.Addr, error) {
	in, other := c.others[subnet]
	if !other {
		return c.takeIP()
	}
	for ip := in.Addr(); in.Contains(ip); ip = ip.Next() {
		if !c.used[ip] {
			c.used[ip] = true
			return ip, nil
		}
	}
	return netip.Addr{}, awsError("InsufficientFreeAddressesInSubnet")
}

// takePrefix takes the lowest aligned /28 of a subnet of which nothing is used.
func (c *cloud) takePrefix(subnet string) (netip.Prefix, bool) {
	in := c.rangeOf(subnet)
	for at := netip.PrefixFrom(in.Addr(), 28); !c.fragmented && in.Contains(at.Addr()); at = after(at) {
		taken := false
		for ip := at.Addr(); at.Contains(ip); ip = ip.Next() {
			taken = taken || c.used[ip]
		}
		if !taken {
			c.mark(at, true)
			return at, true
		}
	}
	return netip.Prefix{}, false
}

func after(at netip.Prefix) netip.Prefix {
	ip := at.Addr().As4()
	ip[3] += 16
	if ip[3] == 0 {
		ip[2]++
	}
	return netip.PrefixFrom(netip.AddrFrom4(ip), 28)
}

func (c *cloud) mark(at netip.Prefix, used bool) {
	for ip := at.Addr(); at.Contains(ip); ip = ip.Next() {
		if used {
			c.used[ip] = true
		} else {
			delete(c.used, ip)
		}
	}
}

// takePrefixes takes n of them or none.
func (c *cloud) takePrefixes(subnet string, n int) (out []netip.Prefix, ok bool) {
	for range n {
		p, ok := c.takePrefix(subnet)
		if !ok {
			for _, p := range out {
				c.mark(p, false)
			}
			return nil, false
		}
		out = append(out, p)
	}
	return out, true
}

func (c *cloud) free() int { return c.freeIn(testSubnet) }

func (c *cloud) freeIn(subnet string) int {
	in := c.rangeOf(subnet)
	n := 1 << (32 - in.Bits())
	for ip := range c.used {
		if in.Contains(ip) {
			n--
		}
	}
	return n
}

// do runs a call: it is counted, may fail before its effect, and its answer may get lost after it.
func (c *cloud) do(name string, now time.Time, effect func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick(now)
	c.counts[name]++
	c.log = append(c.log, name)
	var f fault
	if c.faults != nil {
		f = c.faults(name, c.counts[name])
	}
	if f.err != nil && !f.lost {
		return f.err
	}
	if err := effect(); err != nil {
		return err
	}
	if f.lost {
		if f.err == nil {
			f.err = context.DeadlineExceeded
		}
		return f.err
	}
	return nil
}

func (c *cloud) tick(now time.Time) {
	for id, at := range c.linkAt {
		if e := c.enis[id]; e != nil && !now.Before(at) && e.Status == "attaching" {
			e.Status = "in-use"
		}
	}
	for id, at := range c.goneAt {
		if !now.Before(at) {
			delete(c.goneAt, id)
			delete(c.linkAt, id)
			if e := c.enis[id]; e != nil {
				e.Status, e.AttachmentID, e.InstanceID, e.Device, e.DeleteOnTermination = "available", "", "", -1, false
			}
		}
	}
}

// hasLink tells whether the interface is on the node.
func (c *cloud) hasLink(mac net.HardwareAddr, now time.Time) (bool, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, e := range c.enis {
		if e.MAC.String() == mac.String() {
			if id == testPrimary {
				return true, time.Time{}
			}
			at, ok := c.linkAt[id]
			_, leaving := c.goneAt[id]
			return ok && !now.Before(at) && !leaving, at
		}
	}
	return false, time.Time{}
}

func (c *cloud) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.counts {
		n += k
	}
	return n
}

func (c *cloud) count(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[name]
}

func clone(e *awsutils.ENI) awsutils.ENI {
	out := *e
	out.Secondary = slices.Clone(e.Secondary)
	slices.SortFunc(out.Secondary, netip.Addr.Compare)
	out.Prefixes = slices.Clone(e.Prefixes)
	slices.SortFunc(out.Prefixes, netip.Prefix.Compare)
	out.Tags = maps.Clone(e.Tags)
	return out
}

func (c *cloud) describe(name string, now time.Time, want func(*awsutils.ENI) bool) (out []awsutils.ENI, err error) {
	err = c.do(name, now, func() error {
		for _, id := range slices.Sorted(maps.Keys(c.enis)) {
			if want(c.enis[id]) {
				out = append(out, clone(c.enis[id]))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c *cloud) create(n awsutils.NewENI, now time.Time) (out awsutils.ENI, err error) {
	err = c.do("CreateENI", now, func() error {
		if id := c.groupsOf[n.Token]; id != "" {
			if c.enis[id] == nil {
				return awsError("InvalidNetworkInterfaceID.NotFound")
			}
			out = clone(c.enis[id])
			return nil
		}
		if n.IPs+n.Prefixes+1 > c.maxIPs {
			return awsError("InvalidParameterValue")
		}
		if c.freeIn(n.SubnetID) < n.IPs+1 {
			return awsError("InsufficientFreeAddressesInSubnet")
		}
		c.made++
		e := &awsutils.ENI{ID: fmt.Sprintf("eni-%03d", c.made), MAC: macOf(c.made), Device: -1, SubnetID: n.SubnetID,
			Description: n.Description, Tags: maps.Clone(n.Tags), Type: "interface", Status: "available"}
		var ok bool
		if e.Prefixes, ok = c.takePrefixes(n.SubnetID, n.Prefixes); !ok {
			return &smithy.GenericAPIError{Code: "InvalidParameterValue", Message: "There aren't sufficient free Ipv4 addresses or prefixes"}
		}
		var err error
		if e.Primary, err = c.takeIPIn(n.SubnetID); err != nil {
			for _, p := range e.Prefixes {
				c.mark(p, false)
			}
			return err
		}
		for range n.IPs {
			ip, _ := c.takeIPIn(n.SubnetID)
			e.Secondary = append(e.Secondary, ip)
		}
		c.enis[e.ID] = e
		c.groupsOf[n.Token] = e.ID
		out = clone(e)
		return nil
	})
	return out, err
}

func (c *cloud) attach(eni, instance string, device int, now time.Time) (att string, err error) {
	err = c.do("AttachENI", now, func() error {
		e := c.enis[eni]
		if e == nil {
			return awsError("InvalidNetworkInterfaceID.NotFound")
		}
		if e.AttachmentID != "" {
			return awsError("InvalidNetworkInterface.InUse")
		}
		n := 0
		for _, x := range c.enis {
			if x.InstanceID == instance {
				if x.Device == device {
					return awsError("InvalidParameterValue")
				}
				n++
			}
		}
		if n >= c.maxENIs {
			return awsError("AttachmentLimitExceeded")
		}
		e.AttachmentID, e.InstanceID, e.Device, e.Status = "att-"+eni, instance, device, "attaching"
		c.linkAt[eni] = now.Add(c.attachDelay)
		att = e.AttachmentID
		return nil
	})
	return att, err
}

func (c *cloud) byAttachment(att string) *awsutils.ENI {
	for _, e := range c.enis {
		if e.AttachmentID == att && att != "" {
			return e
		}
	}
	return nil
}

func (c *cloud) protect(eni, att string, now time.Time) error {
	return c.do("DeleteOnTermination", now, func() error {
		e := c.enis[eni]
		if e == nil || e.AttachmentID != att {
			return awsError("InvalidAttachmentID.NotFound")
		}
		e.DeleteOnTermination = true
		return nil
	})
}

func (c *cloud) detach(att string, now time.Time) error {
	return c.do("DetachENI", now, func() error {
		e := c.byAttachment(att)
		if e == nil {
			return awsError("InvalidAttachmentID.NotFound")
		}
		if e.Status == "detaching" {
			return awsError("IncorrectState")
		}
		e.Status = "detaching"
		c.goneAt[e.ID] = now.Add(c.detachDelay)
		c.tick(now)
		return nil
	})
}

func (c *cloud) remove(eni string, now time.Time) error {
	return c.do("DeleteENI", now, func() error {
		e := c.enis[eni]
		if e == nil {
			return awsError("InvalidNetworkInterfaceID.NotFound")
		}
		if e.Status != "available" {
			return awsError("InvalidNetworkInterface.InUse")
		}
		delete(c.used, e.Primary)
		for _, ip := range e.Secondary {
			delete(c.used, ip)
		}
		for _, p := range e.Prefixes {
			c.mark(p, false)
		}
		delete(c.enis, eni)
		return nil
	})
}

func (c *cloud) assign(eni string, n int, now time.Time) (out []netip.Addr, err error) {
	err = c.do("AssignIPs", now, func() error {
		e := c.enis[eni]
		if e == nil {
			return awsError("InvalidNetworkInterfaceID.NotFound")
		}
		if len(e.Secondary)+len(e.Prefixes)+1+n > c.maxIPs {
			return awsError("PrivateIpAddressLimitExceeded")
		}
		if c.freeIn(e.SubnetID) < n {
			return awsError("InsufficientFreeAddressesInSubnet")
		}
		for range n {
			ip, _ := c.takeIPIn(e.SubnetID)
			e.Secondary = append(e.Secondary, ip)
			out = append(out, ip)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// assignAddresses assigns these addresses or none.
func (c *cloud) assignAddresses(eni string, addrs []netip.Addr, now time.Time) (out []netip.Addr, err error) {
	err = c.do("AssignAddresses", now, func() error {
		e := c.enis[eni]
		if e == nil {
			return awsError("InvalidNetworkInterfaceID.NotFound")
		}
		if len(e.Secondary)+len(e.Prefixes)+1+len(addrs) > c.maxIPs {
			return awsError("PrivateIpAddressLimitExceeded")
		}
		for _, ip := range addrs {
			if c.used[ip] || !c.rangeOf(e.SubnetID).Contains(ip) {
				return awsError("InvalidIPAddress.InUse")
			}
		}
		for _, ip := range addrs {
			c.used[ip] = true
		}
		e.Secondary = append(e.Secondary, addrs...)
		out = slices.Clone(addrs)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c *cloud) describeSubnets(now time.Time) (out []awsutils.Subnet, err error) {
	err = c.do("DescribeSubnets", now, func() error {
		for _, id := range append(slices.Sorted(maps.Keys(c.others)), testSubnet) {
			out = append(out, awsutils.Subnet{ID: id, CIDR: c.rangeOf(id), Free: c.freeIn(id), Tags: c.tags[id]})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c *cloud) unassign(eni string, addrs []netip.Addr, now time.Time) error {
	return c.do("UnassignIPs", now, func() error {
		e := c.enis[eni]
		if e == nil {
			return awsError("InvalidNetworkInterfaceID.NotFound")
		}
		for _, ip := range addrs {
			if !slices.Contains(e.Secondary, ip) {
				return awsError("InvalidParameterValue")
			}
		}
		for _, ip := range addrs {
			e.Secondary = slices.DeleteFunc(e.Secondary, func(x netip.Addr) bool { return x == ip })
			delete(c.used, ip)
		}
		return nil
	})
}

func (c *cloud) assignPrefixes(eni string, n int, now time.Time) (out []netip.Prefix, err error) {
	err = c.do("AssignPrefixes", now, func() error {
		e := c.enis[eni]
		if e == nil {
			return awsError("InvalidNetworkInterfaceID.NotFound")
		}
		if len(e.Secondary)+len(e.Prefixes)+1+n > c.maxIPs {
			return awsError("PrivateIpAddressLimitExceeded")
		}
		got, ok := c.takePrefixes(e.SubnetID, n)
		if !ok {
			return awsError("InsufficientCidrBlocks")
		}
		e.Prefixes = append(e.Prefixes, got...)
		out = got
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c *cloud) unassignPrefixes(eni string, prefixes []netip.Prefix, now time.Time) error {
	return c.do("UnassignPrefixes", now, func() error {
		e := c.enis[eni]
		if e == nil {
			return awsError("InvalidNetworkInterfaceID.NotFound")
		}
		for _, p := range prefixes {
			if !slices.Contains(e.Prefixes, p) {
				return awsError("InvalidParameterValue")
			}
		}
		for _, p := range prefixes {
			e.Prefixes = slices.DeleteFunc(e.Prefixes, func(x netip.Prefix) bool { return x == p })
			c.mark(p, false)
		}
		return nil
	})
}

// fail makes calls fail: f is asked for each, with how many of its kind there were.
func (c *cloud) fail(f func(call string, n int) fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = f
}

func (c *cloud) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.enis)
}

func (c *cloud) has(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enis[id] != nil
}
