package ec2

import (
	"net/netip"
	"slices"
)

type describeENIsReply struct {
	reply
	ENIs xmlSet[xmlENI] `xml:"networkInterfaceSet"`
	Next string         `xml:"nextToken,omitempty"`
}

// attached gives a field of the attachment; nothing while there is none.
func attached(get func(*Attachment) string) func(*ENI) []string {
	return func(e *ENI) []string {
		if e.Attachment == nil {
			return nil
		}
		return []string{get(e.Attachment)}
	}
}

var eniFields = fields[*ENI]{
	"network-interface-id": one(func(e *ENI) string { return e.ID }),
	"vpc-id":               one(func(e *ENI) string { return e.VPCID }),
	"subnet-id":            one(func(e *ENI) string { return e.SubnetID }),
	"availability-zone":    one(func(e *ENI) string { return e.Zone }),
	"status":               one(func(e *ENI) string { return e.Status }),
	"description":          one(func(e *ENI) string { return e.Description }),
	"interface-type":       one(func(e *ENI) string { return e.Type }),
	"mac-address":          one(func(e *ENI) string { return e.MAC.String() }),
	"requester-managed":    one(func(e *ENI) string { return boolText(e.RequesterManaged) }),
	"source-dest-check":    one(func(e *ENI) string { return boolText(e.SourceDestCheck) }),
	"private-ip-address":   one(func(e *ENI) string { return e.Primary.String() }),
	"group-id":             func(e *ENI) []string { return e.Groups },
	"addresses.private-ip-address": func(e *ENI) []string {
		return append([]string{e.Primary.String()}, texts(e.Secondary)...)
	},
	"addresses.primary":               func(e *ENI) []string { return []string{"true", boolText(len(e.Secondary) == 0)} },
	"addresses.association.public-ip": publicIP,
	"association.public-ip":           publicIP,
	"ipv6-addresses.ipv6-address":     func(e *ENI) []string { return texts(e.IPv6) },

	"attachment.attachment-id":         attached(func(a *Attachment) string { return a.ID }),
	"attachment.instance-id":           attached(func(a *Attachment) string { return a.InstanceID }),
	"attachment.status":                attached(func(a *Attachment) string { return a.State }),
	"attachment.device-index":          attached(func(a *Attachment) string { return decimal(a.Device) }),
	"attachment.network-card-index":    attached(func(a *Attachment) string { return decimal(a.Card) }),
	"attachment.delete-on-termination": attached(func(a *Attachment) string { return boolText(a.DeleteOnTermination) }),
	"attachment.attach-time":           attached(func(a *Attachment) string { return timestamp(a.Since) }),
}

func publicIP(e *ENI) []string {
	if !e.PublicIP.IsValid() {
		return nil
	}
	return []string{e.PublicIP.String()}
}

// described is a kind of thing that a Describe call shows.
type described[T any] struct {
	kind   kind
	from   map[string]*T
	tags   func(*T) map[string]string
	fields fields[*T]
}

// find gives the things with the ids, or all, that pass the filters, sorted by id; state must be held.
func (d described[T]) find(ids []string, filters []filter) ([]*T, error) {
	wanted := slices.Compact(slices.Sorted(slices.Values(ids)))
	var unknown []string
	for _, id := range wanted {
		if err := d.kind.check(id); err != nil {
			return nil, err
		}
		if _, ok := d.from[id]; !ok {
			unknown = append(unknown, id)
		}
	}
	if len(unknown) > 0 {
		return nil, d.kind.notFound(unknown...)
	}
	if len(wanted) == 0 {
		wanted = sortedKeys(d.from)
	}
	found := make([]*T, 0, len(wanted))
	for _, id := range wanted {
		ok, err := match(d.from[id], d.tags(d.from[id]), filters, d.fields)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, d.from[id])
		}
	}
	return found, checkFilters(filters, d.fields)
}

// checkFilters refuses unknown filters also where there is nothing to filter.
func checkFilters[T any](filters []filter, by fields[T]) error {
	for _, f := range filters {
		if _, ok := by[f.name]; !ok {
			if _, ok := tagValues(f.name, nil); !ok {
				return invalidValue("The filter '%s' is invalid", f.name)
			}
		}
	}
	return nil
}

func (c *Cloud) describeNetworkInterfaces(q *call) (response, error) {
	ids, filters, pg := q.list("NetworkInterfaceId"), q.filters(), q.paging("NetworkInterfaceId", maxResults)
	_ = q.boolean("IncludeManagedResources")
	if err := q.ready(); err != nil {
		return nil, err
	}
	c.state.RLock()
	defer c.state.RUnlock()
	found, err := described[ENI]{kindENI, c.enis, func(e *ENI) map[string]string { return e.Tags }, eniFields}.find(ids, filters)
	if err != nil {
		return nil, err
	}
	shown, next := cut(pg, found, func(e *ENI) string { return e.ID })
	return &describeENIsReply{ENIs: setOf(shown, c.xmlENI), Next: next}, nil
}

type createENIReply struct {
	reply
	ENI         xmlENI `xml:"networkInterface"`
	ClientToken string `xml:"clientToken,omitempty"`
}

var interfaceTypes = []string{"", "interface", "efa", "efa-only", "trunk", "branch"}

func (c *Cloud) createNetworkInterface(q *call) (response, error) {
	n := newENI{
		subnetID: q.id("SubnetId", kindSubnet), description: q.text("Description"), kind: q.text("InterfaceType"),
		groups: q.list("SecurityGroupId"), v4: q.want4(), v6: q.want6(),
		tags: q.tagSpecification("network-interface"), conntrack: q.connTrack(),
	}
	n.primary, n.v4.addrs = q.privateAddresses()
	if n.v4.count > 0 && len(n.v4.addrs) > 0 {
		q.fail(invalidCombination("The parameter secondaryPrivateIpAddressCount cannot be used with the parameter privateIpAddresses"))
	}
	if len(n.description) > 255 || !slices.Contains(interfaceTypes, n.kind) {
		q.fail(invalidValue("Value (%s) for parameter interfaceType or description is invalid", n.kind))
	}
	token := q.text("ClientToken")
	if err := q.ready(); err != nil {
		return nil, err
	}
	var made *ENI
	err := c.change(func(ch *change) error {
		id, err := ch.once(token, q, func() (string, error) {
			e, err := ch.createENI(n)
			if err != nil {
				return "", err
			}
			return e.ID, nil
		})
		if err != nil {
			return err
		}
		e, ok := ch.eni(id)
		if !ok {
			return kindENI.notFound(id)
		}
		made = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.state.RLock()
	defer c.state.RUnlock()
	return &createENIReply{ENI: c.xmlENI(made), ClientToken: token}, nil
}

// privateAddresses reads PrivateIpAddress, or PrivateIpAddresses with the primary one marked.
func (p *params) privateAddresses() (primary netip.Addr, secondary []netip.Addr) {
	primary = p.addr("PrivateIpAddress", p.text("PrivateIpAddress"), netip.Addr.Is4)
	for _, g := range p.groups("PrivateIpAddresses") {
		a := g.addr("PrivateIpAddress", g.required("PrivateIpAddress"), netip.Addr.Is4)
		switch isPrimary := g.boolean("Primary"); {
		case isPrimary && primary.IsValid():
			p.fail(invalidCombination("Only one primary private IP address can be specified"))
		case isPrimary:
			primary = a
		default:
			secondary = append(secondary, a)
		}
	}
	return primary, secondary
}

// want4 reads what CreateNetworkInterface and AssignPrivateIpAddresses call alike.
func (p *params) want4() want {
	w := want{
		count:       p.integer("SecondaryPrivateIpAddressCount", 0, 1<<16),
		prefixCount: p.integer("Ipv4PrefixCount", 0, 1<<12),
	}
	// The one takes a list of prefixes, the other a list of structures with a prefix.
	for _, g := range p.groups("Ipv4Prefix") {
		if v, ok := g.get("Ipv4Prefix"); ok {
			w.prefixes = append(w.prefixes, p.prefix(v, netip.Addr.Is4))
		}
	}
	w.prefixes = append(w.prefixes, p.prefixes("Ipv4Prefix", netip.Addr.Is4)...)
	if w.prefixCount > 0 && (w.count > 0 || len(w.prefixes) > 0) {
		p.fail(invalidCombination("The parameter ipv4PrefixCount cannot be used with ipv4Prefixes or secondaryPrivateIpAddressCount"))
	}
	return w
}

// want6 is want4 for IPv6.
func (p *params) want6() want {
	w := want{
		count:       p.integer("Ipv6AddressCount", 0, 1<<12),
		prefixCount: p.integer("Ipv6PrefixCount", 0, 1<<12),
	}
	for _, g := range p.groups("Ipv6Addresses") {
		if v, ok := g.get("Ipv6Address"); ok {
			w.addrs = append(w.addrs, p.addr("Ipv6Address", v, netip.Addr.Is6))
		}
	}
	w.addrs = append(w.addrs, p.addrs("Ipv6Addresses", netip.Addr.Is6)...)
	for _, g := range p.groups("Ipv6Prefix") {
		if v, ok := g.get("Ipv6Prefix"); ok {
			w.prefixes = append(w.prefixes, p.prefix(v, netip.Addr.Is6))
		}
	}
	w.prefixes = append(w.prefixes, p.prefixes("Ipv6Prefix", netip.Addr.Is6)...)
	if w.count > 0 && len(w.addrs) > 0 || w.prefixCount > 0 && len(w.prefixes) > 0 {
		p.fail(invalidCombination("A count of IPv6 addresses or prefixes cannot be used with explicit ones"))
	}
	return w
}

func (p *params) connTrack() ConnectionTracking {
	g := p.group("ConnectionTrackingSpecification")
	return ConnectionTracking{
		TCPEstablished: int32(g.integer("TcpEstablishedTimeout", 60, 432000)),
		UDPStream:      int32(g.integer("UdpStreamTimeout", 60, 180)),
		UDP:            int32(g.integer("UdpTimeout", 30, 60)),
	}
}

func (c *Cloud) deleteNetworkInterface(q *call) (response, error) {
	id := q.id("NetworkInterfaceId", kindENI)
	if err := q.ready(); err != nil {
		return nil, err
	}
	return &done{Return: true}, c.change(func(ch *change) error { return ch.deleteENI(id) })
}

func (c *Cloud) modifyNetworkInterfaceAttribute(q *call) (response, error) {
	id := q.id("NetworkInterfaceId", kindENI)
	var edits []func(*change, *ENI) error
	if q.has("Description") {
		description := q.group("Description").text("Value")
		edits = append(edits, func(_ *change, e *ENI) error { e.Description = description; return nil })
	}
	if q.has("SourceDestCheck") {
		check := q.group("SourceDestCheck").boolean("Value")
		edits = append(edits, func(_ *change, e *ENI) error { e.SourceDestCheck = check; return nil })
	}
	if q.has("SecurityGroupId") {
		ids := q.list("SecurityGroupId")
		edits = append(edits, func(ch *change, e *ENI) (err error) { e.Groups, err = ch.groupsFor(e.VPCID, ids); return err })
	}
	if q.has("ConnectionTrackingSpecification") {
		ct := q.connTrack()
		edits = append(edits, func(_ *change, e *ENI) error { e.ConnTrack = ct; return nil })
	}
	if q.has("Attachment") {
		g := q.group("Attachment")
		attachment, keep := g.id("AttachmentId", kindAttachment), g.boolean("DeleteOnTermination")
		edits = append(edits, func(_ *change, e *ENI) error {
			if e.Attachment == nil || e.Attachment.ID != attachment {
				return kindAttachment.notFound(attachment)
			}
			e.Attachment.DeleteOnTermination = keep
			return nil
		})
	}
	if err := q.ready(); err != nil {
		return nil, err
	}
	if len(edits) != 1 {
		return nil, invalidCombination("Exactly one attribute must be specified, not %d", len(edits))
	}
	return &done{Return: true}, c.change(func(ch *change) error {
		if _, ok := ch.eni(id); !ok {
			return kindENI.notFound(id)
		}
		return edits[0](ch, ch.edit(id))
	})
}
