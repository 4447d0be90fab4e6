package ec2

type attachReply struct {
	reply
	AttachmentID string `xml:"attachmentId"`
	Card         int    `xml:"networkCardIndex"`
}

const maxDeviceIndex = 255

func (c *Cloud) attachNetworkInterface(q *call) (response, error) {
	eniID, instanceID := q.id("NetworkInterfaceId", kindENI), q.id("InstanceId", kindInstance)
	q.required("DeviceIndex")
	device, card := q.integer("DeviceIndex", 0, maxDeviceIndex), q.integer("NetworkCardIndex", 0, maxDeviceIndex)
	if err := q.ready(); err != nil {
		return nil, err
	}
	answer := &attachReply{Card: card}
	err := c.change(func(ch *change) error {
		e, err := ch.attach(eniID, instanceID, device, card)
		if err != nil {
			return err
		}
		answer.AttachmentID = e.Attachment.ID
		return nil
	})
	return answer, err
}

func (c *Cloud) detachNetworkInterface(q *call) (response, error) {
	id, force := q.id("AttachmentId", kindAttachment), q.boolean("Force")
	if err := q.ready(); err != nil {
		return nil, err
	}
	return &done{Return: true}, c.change(func(ch *change) error { return ch.detach(id, force) })
}
