package ec2

import (
	"slices"
	"strings"
)

const (
	maxTags     = 50
	maxTagKey   = 128
	maxTagValue = 256
)

// tags reads Tag.1.Key, Tag.1.Value and so on.
func (p *params) tags() map[string]string {
	tags := map[string]string{}
	for _, g := range p.groups("Tag") {
		k, v := g.required("Key"), g.text("Value")
		if _, dup := tags[k]; dup {
			p.fail(invalidValue("Duplicate tag key '%s' specified.", k))
		}
		tags[k] = v
	}
	if err := checkTags(tags); err != nil {
		p.fail(err)
	}
	return tags
}

// tagSpecification reads the tags of the specification for one kind of resource; there may be no other ones.
func (p *params) tagSpecification(kinds ...string) map[string]string {
	var tags map[string]string
	for _, g := range p.groups("TagSpecification") {
		kind := g.required("ResourceType")
		if !slices.Contains(kinds, kind) {
			p.fail(invalidValue("'%s' is not a valid taggable resource type for this operation.", kind))
		}
		t := g.tags()
		if kind == kinds[0] {
			tags = t
		}
	}
	return tags
}

func checkTags(tags map[string]string) *Error {
	for _, k := range sortedKeys(tags) {
		switch {
		case len(k) > maxTagKey, len(tags[k]) > maxTagValue:
			return invalidValue("Tag key exceeds %d or tag value %d characters: '%s'", maxTagKey, maxTagValue, k)
		case strings.HasPrefix(strings.ToLower(k), "aws:"):
			return invalidValue("Value ( %s ) for parameter key is invalid. Tag keys starting with 'aws:' are reserved for internal use", k)
		}
	}
	if len(tags) > maxTags {
		return errorf("TagLimitExceeded", "The maximum number of Tags for a resource has been reached.")
	}
	return nil
}

// tagged gives the tags of a resource to modify.
func (ch *change) tagged(id string) (map[string]string, error) {
	prefix, _, _ := strings.Cut(id, "-")
	switch prefix {
	case kindENI.prefix:
		if _, ok := ch.eni(id); !ok {
			return nil, kindENI.notFound(id)
		}
		return ch.edit(id).Tags, nil
	case kindInstance.prefix:
		return tagsOf(ch.c.instances, ch.instances, (*Instance).clone, func(i *Instance) map[string]string { return i.Tags }, kindInstance, id)
	case kindSubnet.prefix:
		return tagsOf(ch.c.subnets, ch.subnets, (*Subnet).clone, func(s *Subnet) map[string]string { return s.Tags }, kindSubnet, id)
	case kindVPC.prefix:
		return tagsOf(ch.c.vpcs, ch.vpcs, (*VPC).clone, func(v *VPC) map[string]string { return v.Tags }, kindVPC, id)
	case kindGroup.prefix:
		return tagsOf(ch.c.groups, ch.groups, (*SecurityGroup).clone, func(g *SecurityGroup) map[string]string { return g.Tags }, kindGroup, id)
	}
	return nil, errorf("InvalidID", "The ID '%s' is not valid", id)
}

// tagsOf stages a copy of the resource and gives its tags.
func tagsOf[T any](from, staged map[string]*T, copyOf func(*T) T, tags func(*T) map[string]string, k kind, id string) (map[string]string, error) {
	old, ok := from[id]
	if !ok {
		return nil, k.notFound(id)
	}
	if _, ok := staged[id]; !ok {
		staged[id] = ref(copyOf(old))
	}
	return tags(staged[id]), nil
}

func (c *Cloud) createTags(q *call) (response, error) {
	ids, tags := q.resources(), q.tags()
	if len(tags) == 0 {
		q.fail(missing("tagSet"))
	}
	if err := q.ready(); err != nil {
		return nil, err
	}
	return &done{Return: true}, c.change(func(ch *change) error {
		for _, id := range ids {
			have, err := ch.tagged(id)
			if err != nil {
				return err
			}
			for k, v := range tags {
				have[k] = v
			}
			if err := checkTags(have); err != nil {
				return err
			}
		}
		return nil
	})
}

// deleteTags removes tags by key, or only if they have the given value; all of them if none is named.
func (c *Cloud) deleteTags(q *call) (response, error) {
	type condition struct {
		value string
		given bool
	}
	ids, gone := q.resources(), map[string]condition{}
	for _, g := range q.groups("Tag") {
		v, given := g.get("Value")
		gone[g.required("Key")] = condition{v, given}
	}
	if err := q.ready(); err != nil {
		return nil, err
	}
	return &done{Return: true}, c.change(func(ch *change) error {
		for _, id := range ids {
			have, err := ch.tagged(id)
			if err != nil {
				return err
			}
			for k, v := range have {
				if on, named := gone[k]; len(gone) == 0 || named && (!on.given || on.value == v) {
					delete(have, k)
				}
			}
		}
		return nil
	})
}

func (p *params) resources() []string {
	ids := p.list("ResourceId")
	if len(ids) == 0 {
		p.fail(missing("resourceIdSet"))
	}
	return ids
}

type xmlTagDescription struct {
	ResourceID   string `xml:"resourceId"`
	ResourceType string `xml:"resourceType"`
	Key          string `xml:"key"`
	Value        string `xml:"value"`
}

type describeTagsReply struct {
	reply
	Tags xmlSet[xmlTagDescription] `xml:"tagSet"`
	Next string                    `xml:"nextToken,omitempty"`
}

var tagFields = fields[xmlTagDescription]{
	"key":           one(func(t xmlTagDescription) string { return t.Key }),
	"value":         one(func(t xmlTagDescription) string { return t.Value }),
	"resource-id":   one(func(t xmlTagDescription) string { return t.ResourceID }),
	"resource-type": one(func(t xmlTagDescription) string { return t.ResourceType }),
}

func (c *Cloud) describeTags(q *call) (response, error) {
	filters, pg := q.filters(), q.paging("", maxResults)
	if err := q.ready(); err != nil {
		return nil, err
	}
	if err := checkFilters(filters, tagFields); err != nil {
		return nil, err
	}
	c.state.RLock()
	defer c.state.RUnlock()
	var found []xmlTagDescription
	for _, t := range c.allTags() {
		ok, err := match(t, map[string]string{t.Key: t.Value}, filters, tagFields)
		if err != nil {
			return nil, err
		}
		if ok {
			found = append(found, t)
		}
	}
	id := func(t xmlTagDescription) string { return t.ResourceID + "/" + t.Key }
	slices.SortFunc(found, func(a, b xmlTagDescription) int { return strings.Compare(id(a), id(b)) })
	shown, next := cut(pg, found, id)
	return &describeTagsReply{Tags: setOf(shown, func(t xmlTagDescription) xmlTagDescription { return t }), Next: next}, nil
}

func (c *Cloud) allTags() []xmlTagDescription {
	var all []xmlTagDescription
	add := func(id, kind string, tags map[string]string) {
		for k, v := range tags {
			all = append(all, xmlTagDescription{id, kind, k, v})
		}
	}
	for _, e := range c.enis {
		add(e.ID, "network-interface", e.Tags)
	}
	for _, i := range c.instances {
		add(i.ID, "instance", i.Tags)
	}
	for _, s := range c.subnets {
		add(s.ID, "subnet", s.Tags)
	}
	for _, v := range c.vpcs {
		add(v.ID, "vpc", v.Tags)
	}
	for _, g := range c.groups {
		add(g.ID, "security-group", g.Tags)
	}
	return all
}
