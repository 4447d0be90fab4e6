package ipamd

import (
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"

	"vpccni/pkg/ipamd/checkpoint"
	"vpccni/pkg/networkutils/hostnet"
)

// announcements remembers what neighbours were told to be on which ENI.
type announcements map[string][]netip.Prefix

// announce has the neighbours of an ENI told what came to it since the last time: EC2 has confirmed it, and the host is
// ready for it. A new ENI's own address is said with the first of them. What the last life had is not said again.
func (c *controller) announce(list []hostnet.ENI, notReady map[string]error) {
	said := announcements{}
	if !c.synced() { // what is not in the list may only not be known yet
		maps.Copy(said, c.announced)
	}
	for _, x := range list {
		old, known := c.announced[x.ID]
		if notReady[x.ID] != nil {
			said[x.ID] = old
			continue
		}
		var fresh []netip.Prefix
		if !known && !x.Primary { // that one's address is older than this process
			fresh = append(fresh, netip.PrefixFrom(x.Address, x.Address.BitLen()))
		}
		for _, p := range x.Pool {
			if !slices.Contains(old, p) {
				fresh = append(fresh, p)
			}
		}
		said[x.ID] = x.Pool
		if !c.synced() {
			said[x.ID] = append(slices.Clone(old), fresh...)
		}
		if len(fresh) > 0 {
			c.emit(effAnnounce{eni: x.ID, mac: x.MAC, blocks: fresh})
		}
	}
	c.announced = said
}

// announcedBefore takes what the journal has for said.
func announcedBefore(j checkpoint.Journal, instance string) announcements {
	said := announcements{}
	for _, e := range j.ENIs {
		if j.InstanceID == instance && !j.Stale {
			said[e.ID] = e.Pool
		}
	}
	return said
}

// wasAnnounced hears how it went. Neighbours that were not told learn in their own time.
func (c *controller) wasAnnounced(ev evAnnounced) {
	if ev.err != nil {
		c.log(slog.LevelDebug, "neighbours not told of addresses", "eni", ev.eni, "error", ev.err)
	}
}

// effAnnounce tells the neighbours of an ENI what is on it; it ends in evAnnounced.
type effAnnounce struct {
	eni    string
	mac    net.HardwareAddr
	blocks []netip.Prefix
}

// evAnnounced is the end of an effAnnounce.
type evAnnounced struct {
	eni string
	err error
}

func (effAnnounce) isEffect() {}
func (evAnnounced) isEvent()  {}
