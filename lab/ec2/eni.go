package ec2

import (
	"maps"
	"net/netip"
)

// newENI is a wish for an ENI.
type newENI struct {
	subnetID    string
	description string
	kind        string // interface unless set
	groups      []string
	primary     netip.Addr
	v4, v6      want
	tags        map[string]string
	conntrack   ConnectionTracking
}

// createENI makes an ENI that is attached to nothing.
func (ch *change) createENI(n newENI) (*ENI, error) {
	s, ok := ch.subnet(n.subnetID)
	if !ok {
		return nil, kindSubnet.notFound(n.subnetID)
	}
	groups, err := ch.groupsFor(s.VPCID, n.groups)
	if err != nil {
		return nil, err
	}
	e := &ENI{
		ID: ch.c.source.id("eni"), MAC: ch.c.source.mac(),
		VPCID: s.VPCID, SubnetID: s.ID, Zone: s.Zone,
		Description: n.description, Type: "interface", Status: statusAvailable, SourceDestCheck: true,
		Groups: groups, ConnTrack: n.conntrack, Tags: maps.Clone(n.tags), Created: ch.now,
	}
	if n.kind != "" {
		e.Type = n.kind
	}
	if e.Tags == nil {
		e.Tags = map[string]string{}
	}
	if e.Primary, err = ch.choose(s.ID, n.primary); err != nil {
		return nil, err
	}
	if _, err := ch.assign4(e, n.v4, false, errNoCIDRCreating); err != nil {
		return nil, err
	}
	if _, err := ch.assign6(e, n.v6); err != nil {
		return nil, err
	}
	ch.put(e)
	return e, nil
}

// attach starts to attach an ENI to an instance.
func (ch *change) attach(eniID, instanceID string, device, card int) (*ENI, error) {
	e, ok := ch.eni(eniID)
	if !ok {
		return nil, kindENI.notFound(eniID)
	}
	i, ok := ch.instance(instanceID)
	if !ok {
		return nil, kindInstance.notFound(instanceID)
	}
	if i.State != stateRunning {
		return nil, errorf("IncorrectState", "Instance '%s' is %s, not running or stopped.", instanceID, i.State)
	}
	if e.Attachment != nil {
		return nil, errorf("InvalidNetworkInterface.InUse", "Interface: [%s] in use.", eniID)
	}
	if i.Zone != e.Zone {
		return nil, invalidCombination("You may not attach a network interface to an instance if they are not in the same availability zone")
	}
	if err := ch.c.checkPlace(i, device, card); err != nil {
		return nil, err
	}
	if err := fits(e, i.Type); err != nil {
		return nil, err
	}
	e = ch.edit(eniID)
	ch.startAttaching(e, Attachment{
		ID: ch.c.source.id("eni-attach"), InstanceID: instanceID, Device: device, Card: card,
	}, ch.c.opts.AttachDelay)
	return e, nil
}

// checkPlace says whether one more ENI fits the instance at the given place. ENIs that are still detaching take theirs.
func (c *Cloud) checkPlace(i *Instance, device, card int) error {
	l, ok := limitsOf(i.Type)
	if !ok {
		return errorf("InvalidInstanceType", "The instance type '%s' does not exist", i.Type)
	}
	onCard := l.enisOn(card)
	if onCard == 0 {
		return invalidValue("Network card index %d is invalid for instance type %s: it has %d network cards", card, i.Type, len(l.NetworkCards))
	}
	present := 0
	attached := c.attachedTo(i.ID)
	for _, o := range attached {
		if o.Attachment.Card != card {
			continue
		}
		present++
		if o.Attachment.Device == device {
			return invalidValue("Instance '%s' already has an interface attached at device index '%d'.", i.ID, device)
		}
	}
	if present >= onCard {
		return errorf("AttachmentLimitExceeded", "Interface count %d exceeds the limit for %s", present+1, i.Type)
	}
	if len(attached) >= l.Interface {
		return errorf("AttachmentLimitExceeded", "Interface count %d exceeds the limit for %s", len(attached)+1, i.Type)
	}
	return nil
}

// attachment finds the ENI of an attachment.
func (ch *change) attachment(id string) (*ENI, bool) {
	return ch.eni(ch.c.index.attachments[id])
}

// detach starts to detach an ENI.
func (ch *change) detach(attachmentID string, force bool) error {
	e, ok := ch.attachment(attachmentID)
	if !ok {
		return kindAttachment.notFound(attachmentID)
	}
	a := e.Attachment
	switch {
	case a.Device == 0 && a.Card == 0:
		return errorf("OperationNotPermitted", "The network interface at device index 0 and networkCard index 0 cannot be detached.")
	case a.State == stateDetaching, a.State == stateAttaching && !force:
		return errorf("IncorrectState", "The attachment '%s' is in the state '%s'", attachmentID, a.State)
	}
	ch.startDetaching(ch.edit(e.ID), ch.c.opts.DetachDelay)
	return nil
}

// deleteENI deletes an ENI that is attached to nothing.
func (ch *change) deleteENI(id string) error {
	e, ok := ch.eni(id)
	if !ok {
		return kindENI.notFound(id)
	}
	if e.Status != statusAvailable {
		// EC2 uses its generic code here, not InvalidNetworkInterface.InUse.
		return invalidValue("Network interface '%s' is currently in use.", id)
	}
	ch.remove(id)
	return nil
}
