package ec2

type xmlState struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

var stateCodes = map[string]int{"pending": 0, stateRunning: 16, "shutting-down": 32, stateTerminated: 48}

func stateOf(name string) xmlState { return xmlState{stateCodes[name], name} }

type xmlInstance struct {
	ID          string               `xml:"instanceId"`
	State       xmlState             `xml:"instanceState"`
	PrivateDNS  string               `xml:"privateDnsName"`
	Type        string               `xml:"instanceType"`
	Launched    string               `xml:"launchTime"`
	Zone        string               `xml:"placement>availabilityZone"`
	SubnetID    string               `xml:"subnetId,omitempty"`
	VPCID       string               `xml:"vpcId,omitempty"`
	PrivateIP   string               `xml:"privateIpAddress,omitempty"`
	PublicIP    string               `xml:"ipAddress,omitempty"`
	SourceCheck bool                 `xml:"sourceDestCheck"`
	Groups      xmlSet[xmlGroupRef]  `xml:"groupSet"`
	ENIs        xmlSet[xmlInterface] `xml:"networkInterfaceSet"`
	Tags        xmlSet[xmlTag]       `xml:"tagSet"`
}

type xmlReservation struct {
	ID        string              `xml:"reservationId"`
	OwnerID   string              `xml:"ownerId"`
	Groups    xmlSet[xmlGroupRef] `xml:"groupSet"`
	Instances xmlSet[xmlInstance] `xml:"instancesSet"`
}

type describeInstancesReply struct {
	reply
	Reservations xmlSet[xmlReservation] `xml:"reservationSet"`
	Next         string                 `xml:"nextToken,omitempty"`
}

// xmlInstance shows an instance with its ENIs; state must be held.
func (c *Cloud) xmlInstance(i *Instance) xmlInstance {
	x := xmlInstance{
		ID: i.ID, State: stateOf(i.State), Type: i.Type, Launched: timestamp(i.Launched), Zone: i.Zone, Tags: xmlTags(i.Tags),
	}
	if i.State == stateTerminated {
		return x
	}
	x.SubnetID, x.VPCID = i.SubnetID, i.VPCID
	if i.PublicIP.IsValid() {
		x.PublicIP = i.PublicIP.String()
	}
	for _, e := range c.attachedTo(i.ID) {
		shown := c.xmlInterface(e)
		shown.Attachment.InstanceID, shown.Attachment.InstanceOwnerID = "", ""
		x.ENIs.Items = append(x.ENIs.Items, shown)
		if e.Attachment.Device == 0 && e.Attachment.Card == 0 {
			x.PrivateIP, x.SourceCheck, x.Groups = shown.PrivateIP, e.SourceDestCheck, shown.Groups
			x.PrivateDNS = privateName(e.Primary.String(), c.opts.Region)
		}
	}
	return x
}

// xmlReservation shows an instance in a reservation of its own.
func (c *Cloud) xmlReservation(i *Instance) xmlReservation {
	return xmlReservation{
		ID: "r-" + i.ID[len("i-"):], OwnerID: c.opts.AccountID,
		Instances: xmlSet[xmlInstance]{Items: []xmlInstance{c.xmlInstance(i)}},
	}
}

func (c *Cloud) describeInstances(q *call) (response, error) {
	ids, filters, pg := q.list("InstanceId"), q.filters(), q.paging("InstanceId", maxResults)
	_ = q.boolean("IncludeManagedResources")
	if err := q.ready(); err != nil {
		return nil, err
	}
	c.state.RLock()
	defer c.state.RUnlock()
	by := fields[*Instance]{
		"instance-id":                            one(func(i *Instance) string { return i.ID }),
		"instance-type":                          one(func(i *Instance) string { return i.Type }),
		"instance-state-name":                    one(func(i *Instance) string { return i.State }),
		"instance-state-code":                    one(func(i *Instance) string { return decimal(stateCodes[i.State]) }),
		"vpc-id":                                 one(func(i *Instance) string { return i.VPCID }),
		"subnet-id":                              one(func(i *Instance) string { return i.SubnetID }),
		"availability-zone":                      one(func(i *Instance) string { return i.Zone }),
		"private-ip-address":                     c.ofENIs(func(e *ENI) string { return e.Primary.String() }, true),
		"private-dns-name":                       c.ofENIs(func(e *ENI) string { return privateName(e.Primary.String(), c.opts.Region) }, true),
		"network-interface.network-interface-id": c.ofENIs(func(e *ENI) string { return e.ID }, false),
		"network-interface.subnet-id":            c.ofENIs(func(e *ENI) string { return e.SubnetID }, false),
	}
	found, err := described[Instance]{kindInstance, c.instances, func(i *Instance) map[string]string { return i.Tags }, by}.find(ids, filters)
	if err != nil {
		return nil, err
	}
	shown, next := cut(pg, found, func(i *Instance) string { return i.ID })
	return &describeInstancesReply{Reservations: setOf(shown, c.xmlReservation), Next: next}, nil
}

// ofENIs gives a field of the instance's ENIs, or only of the primary one.
func (c *Cloud) ofENIs(get func(*ENI) string, primary bool) func(*Instance) []string {
	return func(i *Instance) []string {
		var values []string
		for _, e := range c.attachedTo(i.ID) {
			if !primary || e.Attachment.Device == 0 && e.Attachment.Card == 0 {
				values = append(values, get(e))
			}
		}
		return values
	}
}

type runInstancesReply struct {
	reply
	xmlReservation
}

// runInstances starts instances. What is installed on them is not the lab's matter: the image, its key and its user
// data are accepted and do nothing.
func (c *Cloud) runInstances(q *call) (response, error) {
	for _, name := range []string{"ImageId", "KeyName", "UserData"} {
		_ = q.text(name)
	}
	q.required("ImageId")
	q.required("MinCount")
	spec := InstanceSpec{
		Type: q.required("InstanceType"), SubnetID: q.text("SubnetId"), SecurityGroups: q.list("SecurityGroupId"),
		Tags: q.tagSpecification("instance", "network-interface"),
	}
	spec.PrivateIP, _ = q.privateAddresses()
	primary := newENI{tags: q.eniTags()}
	q.primaryInterface(&spec, &primary)
	if spec.SubnetID == "" {
		q.fail(missing("subnetId"))
	}
	_ = q.integer("MinCount", 1, 1000)
	count, token := max(1, q.integer("MaxCount", 1, 1000)), q.text("ClientToken")
	if err := q.ready(); err != nil {
		return nil, err
	}
	var made []*Instance
	err := c.change(func(ch *change) error {
		_, err := ch.once(token, q, func() (first string, err error) {
			for range count {
				i, err := ch.run(spec, primary)
				if err != nil {
					return "", err
				}
				made = append(made, i)
			}
			return made[0].ID, nil
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	if made == nil {
		return nil, errorf("IdempotentInstanceTerminated", "The instances of the client token '%s' were started before", token)
	}
	c.state.RLock()
	defer c.state.RUnlock()
	return &runInstancesReply{xmlReservation: xmlReservation{
		ID: "r-" + made[0].ID[len("i-"):], OwnerID: c.opts.AccountID, Instances: setOf(made, c.xmlInstance),
	}}, nil
}

// eniTags are the tags that RunInstances gives to the ENIs it makes.
func (p *params) eniTags() map[string]string {
	for _, g := range p.groups("TagSpecification") {
		if g.text("ResourceType") == "network-interface" {
			return g.tags()
		}
	}
	return nil
}

// primaryInterface reads NetworkInterface.1, which may describe the primary ENI in place of the call's own parameters.
func (p *params) primaryInterface(spec *InstanceSpec, primary *newENI) {
	for n, g := range p.groups("NetworkInterface") {
		if n > 0 || g.integer("DeviceIndex", 0, maxDeviceIndex) != 0 {
			p.fail(errorf("UnsupportedOperation", "Instances start with their primary network interface only"))
		}
		if spec.SubnetID != "" || len(spec.SecurityGroups) > 0 {
			p.fail(invalidCombination("Network interfaces and an instance-level subnet ID or security groups may not be specified on the same request"))
		}
		spec.SubnetID, spec.SecurityGroups = g.text("SubnetId"), g.list("SecurityGroupId")
		spec.PrivateIP, primary.v4.addrs = g.privateAddresses()
		spec.PublicIP = g.boolean("AssociatePublicIpAddress")
		w4 := g.want4(g.prefixSpecs)
		w4.addrs = primary.v4.addrs
		primary.v4, primary.v6, primary.description = w4, g.want6(g.addrSpecs, g.prefixSpecs), g.text("Description")
	}
}

type xmlStateChange struct {
	ID       string   `xml:"instanceId"`
	Current  xmlState `xml:"currentState"`
	Previous xmlState `xml:"previousState"`
}

type terminateReply struct {
	reply
	Instances xmlSet[xmlStateChange] `xml:"instancesSet"`
}

func (c *Cloud) terminateInstances(q *call) (response, error) {
	ids := q.list("InstanceId")
	if len(ids) == 0 {
		q.fail(missing("InstanceId"))
	}
	_, _ = q.boolean("Force"), q.boolean("SkipOsShutdown")
	if err := q.ready(); err != nil {
		return nil, err
	}
	answer := &terminateReply{}
	err := c.change(func(ch *change) error {
		for _, id := range ids {
			was, err := ch.terminate(id)
			if err != nil {
				return err
			}
			answer.Instances.Items = append(answer.Instances.Items, xmlStateChange{id, stateOf(stateTerminated), stateOf(was)})
		}
		return nil
	})
	return answer, err
}
