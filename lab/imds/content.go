package imds

import (
	"encoding/json"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"

	"vpccni/lab/ec2"
)

const (
	metadata = "meta-data/"
	imageID  = "ami-0a1b2c3d4e5f60789"
)

// tree makes the metadata of an instance from the cloud as it is now; false if it is not running.
func (s *Server) tree(instanceID string) (tree, bool) {
	instance, ok := s.cloud.Instance(instanceID)
	if !ok || instance.State == "shutting-down" || instance.State == "terminated" {
		return nil, false
	}
	b := builder{
		Server:   s,
		tree:     tree{},
		instance: instance,
		region:   strings.TrimRight(instance.Zone, "abcdefghijklmnopqrstuvwxyz"),
	}
	for _, eni := range s.cloud.ENIsOf(instanceID) {
		// IMDS learns of an ENI when it is attached, and forgets it when it begins to be detached.
		if eni.Attachment == nil || eni.Attachment.State != "attached" {
			continue
		}
		b.eni(eni)
		if eni.Attachment.Device == 0 && eni.Attachment.Card == 0 {
			b.primary = eni
		}
	}
	b.top()
	b.iam()
	b.identity()
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(b.tree, s.notices[instanceID])
	return b.tree, true
}

// builder fills a tree.
type builder struct {
	*Server
	tree     tree
	instance ec2.Instance
	primary  ec2.ENI
	region   string
}

func (b *builder) set(name, value string) { b.tree[metadata+name] = value }

// some sets a value that is absent when there is none.
func (b *builder) some(name string, values ...string) {
	if text := strings.Join(values, "\n"); text != "" {
		b.set(name, text)
	}
}

func (b *builder) top() {
	b.set("ami-id", imageID)
	b.set("instance-id", b.instance.ID)
	b.set("instance-life-cycle", "on-demand")
	b.set("instance-type", b.instance.Type)
	b.set("placement/availability-zone", b.instance.Zone)
	b.set("placement/region", b.region)
	b.set("services/domain", "amazonaws.com")
	b.set("services/partition", "aws")
	if !b.primary.Primary.IsValid() {
		return // not yet attached
	}
	b.set("mac", b.primary.MAC.String())
	b.set("local-ipv4", b.primary.Primary.String())
	b.set("hostname", b.hostname(b.primary.Primary))
	b.set("local-hostname", b.hostname(b.primary.Primary))
	b.some("security-groups", b.groupNames(b.primary)...)
	if len(b.primary.IPv6) > 0 {
		b.set("ipv6", b.primary.IPv6[0].String())
	}
	if b.instance.PublicIP.IsValid() {
		b.set("public-ipv4", b.instance.PublicIP.String())
	}
}

func (b *builder) eni(e ec2.ENI) {
	dir := "network/interfaces/macs/" + e.MAC.String() + "/"
	b.set(dir+"device-number", strconv.Itoa(e.Attachment.Device))
	b.set(dir+"interface-id", e.ID)
	b.set(dir+"mac", e.MAC.String())
	b.set(dir+"owner-id", b.opts.AccountID)
	b.set(dir+"subnet-id", e.SubnetID)
	b.set(dir+"vpc-id", e.VPCID)
	b.some(dir+"security-group-ids", e.Groups...)
	b.some(dir+"security-groups", b.groupNames(e)...)
	if e.Attachment.Card > 0 || severalCards(b.instance.Type) {
		b.set(dir+"network-card", strconv.Itoa(e.Attachment.Card))
	}
	if e.Primary.IsValid() {
		b.set(dir+"local-hostname", b.hostname(e.Primary))
		b.some(dir+"local-ipv4s", texts(append([]netip.Addr{e.Primary}, e.Secondary...))...)
	}
	b.some(dir+"ipv4-prefix", texts(e.Prefixes)...)
	b.some(dir+"ipv6s", texts(e.IPv6)...)
	b.some(dir+"ipv6-prefix", texts(e.IPv6Prefixes)...)
	if e.PublicIP.IsValid() {
		b.set(dir+"public-ipv4s", e.PublicIP.String())
		b.set(dir+"ipv4-associations/"+e.PublicIP.String(), e.Primary.String())
	}
	var v6 []netip.Prefix
	if subnet, ok := b.cloud.Subnet(e.SubnetID); ok {
		if subnet.CIDR.IsValid() {
			b.set(dir+"subnet-ipv4-cidr-block", subnet.CIDR.String())
		}
		if subnet.IPv6.IsValid() {
			b.set(dir+"subnet-ipv6-cidr-blocks", subnet.IPv6.String())
			// AWS gives a VPC a /56 and each subnet a /64 of it.
			v6 = append(v6, netip.PrefixFrom(subnet.IPv6.Addr(), 56).Masked())
		}
	}
	b.some(dir+"vpc-ipv6-cidr-blocks", texts(v6)...)
	if v, ok := b.cloud.VPC(e.VPCID); ok && len(v.CIDRs) > 0 {
		b.set(dir+"vpc-ipv4-cidr-block", v.CIDRs[0].String())
		b.some(dir+"vpc-ipv4-cidr-blocks", texts(v.CIDRs)...)
	}
}

func (b *builder) iam() {
	cr := b.cloud.Credentials(b.instance.ID)
	updated := b.clock.Now().UTC().Format(time.RFC3339)
	b.set("iam/info", document(struct {
		Code, LastUpdated, InstanceProfileArn, InstanceProfileId string
	}{
		"Success", updated,
		"arn:aws:iam::" + b.opts.AccountID + ":instance-profile/" + b.opts.Role, "AIPAVPCLABNODEPROFILE",
	}))
	b.set("iam/security-credentials/"+b.opts.Role, document(struct {
		Code, LastUpdated, Type, AccessKeyId, SecretAccessKey, Token, Expiration string
	}{
		"Success", updated, "AWS-HMAC", cr.AccessKeyID, cr.SecretAccessKey, cr.SessionToken,
		cr.Expiration.UTC().Format(time.RFC3339),
	}))
}

func (b *builder) identity() {
	var ip string
	if b.primary.Primary.IsValid() {
		ip = b.primary.Primary.String()
	}
	b.tree["dynamic/instance-identity/document"] = document(map[string]any{
		"accountId":               b.opts.AccountID,
		"architecture":            architecture(b.instance.Type),
		"availabilityZone":        b.instance.Zone,
		"billingProducts":         nil,
		"devpayProductCodes":      nil,
		"imageId":                 imageID,
		"instanceId":              b.instance.ID,
		"instanceType":            b.instance.Type,
		"kernelId":                nil,
		"marketplaceProductCodes": nil,
		"pendingTime":             b.instance.Launched.UTC().Format(time.RFC3339),
		"privateIp":               ip,
		"ramdiskId":               nil,
		"region":                  b.region,
		"version":                 "2017-09-30",
	})
}

func (b *builder) groupNames(e ec2.ENI) []string {
	var found []string
	for _, id := range e.Groups {
		if group, ok := b.cloud.SecurityGroup(id); ok {
			found = append(found, group.Name)
		}
	}
	return found
}

// hostname is the private DNS name that AWS derives from an address.
func (b *builder) hostname(addr netip.Addr) string {
	domain := b.region + ".compute.internal"
	if b.region == "us-east-1" {
		domain = "ec2.internal"
	}
	return "ip-" + strings.ReplaceAll(addr.String(), ".", "-") + "." + domain
}

// architecture tells Graviton types, which have a g behind the generation (t4g, c7gn, a1 being the exception), from
// the others.
func architecture(instanceType string) string {
	family, _, _ := strings.Cut(instanceType, ".")
	digit := strings.IndexAny(family, "0123456789")
	if family == "a1" || digit >= 0 && strings.Contains(family[digit:], "g") {
		return "arm64"
	}
	return "x86_64"
}

func severalCards(instanceType string) bool {
	limits, ok := vpc.Limits[instanceType]
	return ok && len(limits.NetworkCards) > 1
}

// document is a JSON document as IMDS writes it.
func document(v any) string {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error() // only strings and nils go in
	}
	return string(text)
}

func texts[T interface{ String() string }](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}
