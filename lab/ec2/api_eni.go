package ec2

import "slices"

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
	"status":               one((*ENI).shownStatus),
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
		groups: q.list("SecurityGroupId"), v4: q.want4(q.prefixSpecs), v6: q.want6(q.addrSpecs, q.prefixSpecs),
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
