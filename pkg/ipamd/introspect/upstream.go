package introspect

import (
	"net"
	"net/netip"
	"strconv"
	"time"

	"vpccni/pkg/config"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/datastore"
)

// The types of this file are upstream's, member for member; their names are read by other people's scripts.

type cardJSON struct {
	TotalIPs    int
	AssignedIPs int
	ENIs        map[string]eniJSON
}

type eniJSON struct {
	ID                  string
	IsPrimary           bool
	IsTrunk             bool
	IsEFA               bool
	DeviceNumber        int
	AvailableIPv4Cidrs  map[string]cidrJSON
	IPv6Cidrs           map[string]cidrJSON
	IsExcludedForPodIPs bool
	RouteTableID        int
	SubnetID            string
}

type cidrJSON struct {
	Cidr          net.IPNet // its mask is written in base64
	IPAddresses   map[string]addressJSON
	IsPrefix      bool
	AddressFamily string // always empty
}

type addressJSON struct {
	Address        string
	IPAMKey        keyJSON
	IPAMMetadata   metadataJSON
	AssignedTime   time.Time
	UnassignedTime time.Time
}

type keyJSON struct {
	NetworkName string `json:"networkName"`
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

type metadataJSON struct {
	Namespace  string `json:"k8sPodNamespace,omitempty"`
	Pod        string `json:"k8sPodName,omitempty"`
	Interfaces int    `json:"interfacesCount,omitempty"`
}

// shower knows what may be shown.
type shower struct {
	private  bool
	versions func() versionsJSON
}

// key leaves out of a sandbox's key what a DEL would need.
func (s shower) key(a datastore.Allocation) keyJSON {
	if s.private {
		return keyJSON{a.NetworkName, a.ContainerID, a.IfName}
	}
	return keyJSON{NetworkName: a.NetworkName}
}

// enis is /v1/enis: the managed ENIs, by network card.
func (s shower) enis(v ipamd.View) map[string]cardJSON {
	cards := map[string]cardJSON{}
	for _, e := range v.ENIs {
		if !e.Managed {
			continue
		}
		name := strconv.Itoa(e.Card)
		card, ok := cards[name]
		if !ok {
			card.ENIs = map[string]eniJSON{}
		}
		card.TotalIPs += e.Total
		card.AssignedIPs += e.Assigned
		card.ENIs[e.ID] = s.eni(e)
		cards[name] = card
	}
	return cards
}

func (s shower) eni(e ipamd.ENIView) eniJSON {
	out := eniJSON{
		ID:                 e.ID,
		IsPrimary:          e.Primary,
		IsTrunk:            e.Trunk,
		IsEFA:              e.EFA,
		DeviceNumber:       e.Device,
		AvailableIPv4Cidrs: map[string]cidrJSON{},
		IPv6Cidrs:          map[string]cidrJSON{},
		RouteTableID:       e.Table,
		SubnetID:           e.SubnetID,
	}
	for _, b := range e.Pool {
		family := out.AvailableIPv4Cidrs
		if b.CIDR.Addr().Is6() {
			family = out.IPv6Cidrs
		}
		family[b.CIDR.String()] = s.cidr(b)
	}
	return out
}

func (s shower) cidr(b datastore.Block) cidrJSON {
	bits := b.CIDR.Addr().BitLen()
	out := cidrJSON{
		Cidr:        net.IPNet{IP: b.CIDR.Addr().AsSlice(), Mask: net.CIDRMask(b.CIDR.Bits(), bits)},
		IPAddresses: map[string]addressJSON{},
		IsPrefix:    b.CIDR.Bits() < bits,
	}
	for _, a := range b.Addresses {
		if a.Holder == nil && a.Released.IsZero() {
			continue // only addresses that a pod has or had are listed
		}
		entry := addressJSON{Address: a.Address.String(), UnassignedTime: a.Released}
		if h := a.Holder; h != nil {
			entry.IPAMKey = s.key(*h)
			entry.IPAMMetadata = metadataJSON{h.Namespace, h.Pod, max(h.Interfaces, 1)}
			entry.AssignedTime = h.Time
		}
		out.IPAddresses[a.Address.String()] = entry
	}
	return out
}

type networkSettingsJSON struct {
	ExternalServiceCIDRs []netip.Prefix `json:"AWS_EXTERNAL_SERVICE_CIDRS"` // null if none
	NodePort             bool           `json:"AWS_VPC_CNI_NODE_PORT_SUPPORT"`
	MTU                  int            `json:"AWS_VPC_ENI_MTU"`
	ConnMark             uint32         `json:"AWS_VPC_K8S_CNI_CONNMARK"`
	ExcludeSNATCIDRs     []netip.Prefix `json:"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"` // null if none
	ExternalSNAT         bool           `json:"AWS_VPC_K8S_CNI_EXTERNALSNAT"`
	RandomizeSNAT        int            `json:"AWS_VPC_K8S_CNI_RANDOMIZESNAT"`
	VethPrefix           string         `json:"AWS_VPC_K8S_CNI_VETHPREFIX"`
}

// randomizeSNAT has upstream's numbers.
var randomizeSNAT = map[config.SNATRandom]int{
	config.SNATRandomNone: 0, config.SNATRandomHash: 1, config.SNATRandomFully: 2,
}

func networkSettings(c config.Config) networkSettingsJSON {
	return networkSettingsJSON{
		ExternalServiceCIDRs: c.ExternalServiceCIDRs,
		NodePort:             c.NodePort,
		MTU:                  c.MTU,
		ConnMark:             c.PrimaryMark,
		ExcludeSNATCIDRs:     c.ExcludeSNATCIDRs,
		ExternalSNAT:         c.ExternalSNAT,
		RandomizeSNAT:        randomizeSNAT[c.SNATRandom],
		VethPrefix:           c.VethPrefix,
	}
}

type ipamdSettingsJSON struct {
	ManageENIsNonSchedulable bool `json:"AWS_MANAGE_ENIS_NON_SCHEDULABLE"`
	CustomNetworking         bool `json:"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"`
	SubnetDiscovery          bool `json:"ENABLE_SUBNET_DISCOVERY"`
	WarmENITarget            int  `json:"WARM_ENI_TARGET"`
	WarmIPTarget             int  `json:"WARM_IP_TARGET"`
}

func ipamdSettings(c config.Config) ipamdSettingsJSON {
	return ipamdSettingsJSON{
		ManageENIsNonSchedulable: c.ManageENIsWhenNonSchedulable,
		CustomNetworking:         c.CustomNetworking,
		SubnetDiscovery:          c.SubnetDiscovery,
		WarmENITarget:            c.WarmENITarget,
		WarmIPTarget:             c.WarmIPTarget,
	}
}
