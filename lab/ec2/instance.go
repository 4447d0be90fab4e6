package ec2

import (
	"maps"
	"net/netip"
)

// States of instances.
const (
	stateRunning    = "running"
	stateTerminated = "terminated"
)

// RunInstance starts an instance. Its primary ENI is attached at once, at device 0 of card 0, and goes with it.
func (c *Cloud) RunInstance(spec InstanceSpec) (Instance, error) {
	var i *Instance
	err := c.change(func(ch *change) (err error) {
		i, err = ch.run(spec, newENI{v6: want{count: spec.IPv6Addresses}})
		return err
	})
	if err != nil {
		return Instance{}, err
	}
	return i.clone(), nil
}

// run starts an instance; what spec says of the primary ENI goes before what primary says.
func (ch *change) run(spec InstanceSpec, primary newENI) (*Instance, error) {
	c := ch.c
	if _, ok := limitsOf(spec.Type); !ok {
		return nil, invalidValue("Invalid value '%s' for InstanceType.", spec.Type)
	}
	s, ok := ch.subnet(spec.SubnetID)
	if !ok {
		return nil, kindSubnet.notFound(spec.SubnetID)
	}
	i := &Instance{
		ID: c.source.id("i"), Type: spec.Type, VPCID: s.VPCID, SubnetID: s.ID, Zone: s.Zone,
		State: stateRunning, Launched: ch.now, Tags: maps.Clone(spec.Tags),
	}
	if i.Tags == nil {
		i.Tags = map[string]string{}
	}
	if spec.PublicIP {
		var err error
		if i.PublicIP, err = ch.publicAddress(s); err != nil {
			return nil, err
		}
	}
	primary.subnetID, primary.groups, primary.primary = s.ID, spec.SecurityGroups, spec.PrivateIP
	e, err := ch.createENI(primary)
	if err != nil {
		return nil, err
	}
	if err := fits(e, i.Type); err != nil {
		return nil, err
	}
	e.PublicIP = i.PublicIP
	ch.instances[i.ID] = i
	ch.startAttaching(e, Attachment{ID: c.source.id("eni-attach"), InstanceID: i.ID, DeleteOnTermination: true}, 0)
	return i, nil
}

// publicAddress hands out the next address of the public range.
func (ch *change) publicAddress(s *Subnet) (netip.Addr, error) {
	if !s.Public {
		return netip.Addr{}, invalidValue("The subnet '%s' is not public: it has no route to an internet gateway", s.ID)
	}
	next := ch.c.public.Next()
	if !ch.c.opts.PublicRange.Contains(next.Next()) {
		return netip.Addr{}, errorf("InsufficientAddressCapacity", "There are no public addresses left")
	}
	ch.c.public = next
	return next, nil
}

// TerminateInstance ends an instance. Its ENIs go with it or, without DeleteOnTermination, become available.
func (c *Cloud) TerminateInstance(id string) error {
	return c.change(func(ch *change) error {
		_, err := ch.terminate(id)
		return err
	})
}

// terminate ends an instance and gives the state that it was in.
func (ch *change) terminate(id string) (was string, err error) {
	old, ok := ch.instance(id)
	if !ok {
		return "", kindInstance.notFound(id)
	}
	if old.State == stateTerminated {
		return stateTerminated, nil
	}
	i := ref(old.clone())
	i.State, i.PublicIP = stateTerminated, netip.Addr{}
	ch.instances[id] = i
	for _, e := range ch.c.attachedTo(id) {
		if e.Attachment.DeleteOnTermination {
			ch.remove(e.ID)
			continue
		}
		e = ch.edit(e.ID)
		e.PublicIP = netip.Addr{}
		ch.startDetaching(e, 0)
	}
	return old.State, nil
}
