package awsutils

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/smithy-go/middleware"
	"github.com/jonboulle/clockwork"
	"golang.org/x/sync/errgroup"
)

const (
	// imdsCallTimeout bounds one read with all its attempts. IMDS answers in about a millisecond.
	imdsCallTimeout = 15 * time.Second
	// imdsParallel is the number of reads under way at a time. IMDS drops packets of callers above 1024 per second.
	imdsParallel = 8
)

// IMDS reads the instance metadata service. It is safe for concurrent use and caches nothing but the session token and
// the MAC of the primary ENI, which never changes.
//
// Its answers may be late by seconds and are not a snapshot: an ENI can come or go between two reads.
type IMDS struct {
	client *imds.Client

	mu         sync.Mutex
	primaryMAC string // guarded by mu
}

// IMDSOptions say how to reach IMDS. The zero value is right on an instance.
type IMDSOptions struct {
	// Endpoint is http://169.254.169.254 or AWS_EC2_METADATA_SERVICE_ENDPOINT when empty.
	Endpoint string
	// HTTPTimeout bounds one attempt; 0 means DefaultHTTPTimeout.
	HTTPTimeout time.Duration
	// HTTPClient is one of its own, without a proxy, when nil.
	HTTPClient imds.HTTPClient
	// Observe, if set, is told of every read after it has ended.
	Observe func(Call)
	Clock   clockwork.Clock // nil: the real one
}

// NewIMDS returns a client. It makes no call.
func NewIMDS(o IMDSOptions) *IMDS {
	if o.HTTPTimeout == 0 {
		o.HTTPTimeout = DefaultHTTPTimeout
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	if o.HTTPClient == nil {
		// The address is link-local: a proxy from the environment could only reach somebody else's metadata.
		o.HTTPClient = &http.Client{
			Timeout:   o.HTTPTimeout,
			Transport: &http.Transport{MaxIdleConnsPerHost: imdsParallel, IdleConnTimeout: time.Minute},
		}
	}
	observe := &observer{service: imds.ServiceID, timeout: imdsCallTimeout, observe: o.Observe, clock: o.Clock, waits: realWaits{o.Clock}}
	return &IMDS{client: imds.New(imds.Options{
		Endpoint:   o.Endpoint,
		HTTPClient: o.HTTPClient,
		APIOptions: []func(*middleware.Stack) error{observe.add},
	})}
}

// Identity returns who this instance is.
func (i *IMDS) Identity(ctx context.Context) (Identity, error) {
	region, err := i.client.GetRegion(ctx, &imds.GetRegionInput{})
	if err != nil {
		return Identity{}, fmt.Errorf("imds region: %w", err)
	}
	id := Identity{Region: region.Region}
	if id.PrimaryMAC, err = i.mac(ctx); err != nil {
		return Identity{}, err
	}
	var ip string
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(imdsParallel)
	for path, to := range map[string]*string{
		"placement/availability-zone":        &id.Zone,
		"instance-id":                        &id.InstanceID,
		"instance-type":                      &id.InstanceType,
		"local-ipv4":                         &ip,
		ofMAC(id.PrimaryMAC, "vpc-id"):       &id.VPCID,
		ofMAC(id.PrimaryMAC, "subnet-id"):    &id.SubnetID,
		ofMAC(id.PrimaryMAC, "interface-id"): &id.PrimaryENI,
	} {
		group.Go(func() (err error) {
			*to, err = i.required(ctx, path)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return Identity{}, err
	}
	if id.PrimaryIP, err = parseIPv4(ip); err != nil {
		return Identity{}, fmt.Errorf("imds local-ipv4: %w", err)
	}
	return id, nil
}

// NodeIPv6 returns the instance's own IPv6 address; the zero Addr if it has none.
func (i *IMDS) NodeIPv6(ctx context.Context) (netip.Addr, error) {
	text, err := i.optional(ctx, "ipv6")
	if err != nil || text == "" {
		return netip.Addr{}, err
	}
	addr, err := netip.ParseAddr(text)
	if err == nil && (!addr.Is6() || !addr.IsGlobalUnicast() || addr.Zone() != "") {
		err = fmt.Errorf("%s is no address of an instance", addr)
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("imds ipv6: %w", err)
	}
	return addr, nil
}

// VPCCIDRs returns the IPv4 ranges of the instance's VPC, in the order in which AWS lists them.
func (i *IMDS) VPCCIDRs(ctx context.Context) ([]netip.Prefix, error) {
	mac, err := i.mac(ctx)
	if err != nil {
		return nil, err
	}
	text, err := i.required(ctx, ofMAC(mac, "vpc-ipv4-cidr-blocks"))
	if err != nil {
		return nil, err
	}
	cidrs, err := parseAll(text, parseIPv4Range)
	if err != nil {
		return nil, fmt.Errorf("imds vpc-ipv4-cidr-blocks: %w", err)
	}
	return cidrs, nil
}

// SecurityGroups returns the ids of the primary ENI's security groups, sorted.
func (i *IMDS) SecurityGroups(ctx context.Context) ([]string, error) {
	mac, err := i.mac(ctx)
	if err != nil {
		return nil, err
	}
	text, err := i.required(ctx, ofMAC(mac, "security-group-ids"))
	if err != nil {
		return nil, err
	}
	groups := strings.Fields(text)
	slices.Sort(groups)
	return groups, nil
}

// ENIs returns the attached ENIs, ordered by card and device. They have no tags, type, description and attachment id:
// only EC2 knows these. An ENI that goes away in the middle makes the walk fail, with class NotFound.
func (i *IMDS) ENIs(ctx context.Context) ([]ENI, error) {
	primary, err := i.mac(ctx)
	if err != nil {
		return nil, err
	}
	list, err := i.required(ctx, "network/interfaces/macs/")
	if err != nil {
		return nil, err
	}
	macs := strings.Fields(list)
	for n, mac := range macs {
		macs[n] = strings.TrimSuffix(mac, "/")
	}
	enis := make([]ENI, len(macs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(imdsParallel)
	for n, mac := range macs {
		group.Go(func() (err error) {
			enis[n], err = i.eni(ctx, mac, strings.EqualFold(mac, primary))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := distinct(enis); err != nil {
		return nil, fmt.Errorf("imds network/interfaces: %w", err)
	}
	sortENIs(enis)
	return enis, nil
}

// distinct fails if two ENIs are said to be, or to have, the same: there is no telling which of the answers is right.
func distinct(enis []ENI) error {
	seen := map[string]bool{}
	for _, e := range enis {
		things := []string{e.ID, e.MAC.String()}
		if e.Primary.IsValid() {
			things = append(things, e.Primary.String())
		}
		for _, ip := range e.Secondary {
			things = append(things, ip.String())
		}
		for _, p := range e.Prefixes {
			things = append(things, p.String())
		}
		for _, t := range things {
			if seen[t] {
				return fmt.Errorf("%s is there twice", t)
			}
			seen[t] = true
		}
	}
	return nil
}

// eni reads one ENI, a path at a time.
func (i *IMDS) eni(ctx context.Context, mac string, primary bool) (ENI, error) {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return ENI{}, fmt.Errorf("imds macs: %w", err)
	}
	r := reader{ctx: ctx, imds: i, mac: mac}
	eni := ENI{
		MAC:      hw,
		Device:   r.number(r.required("device-number")),
		SubnetID: r.required("subnet-id"),
		// Absent on card 0 of most types.
		Card:   r.number(cmp.Or(r.optional("network-card"), "0")),
		Status: "in-use",
	}
	// An efa-only ENI, and one of an IPv6-only subnet, has none of the following.
	addrs := all(&r, "local-ipv4s", parseIPv4)
	if cidrs := all(&r, "subnet-ipv4-cidr-block", parseIPv4Range); len(cidrs) > 0 {
		eni.SubnetCIDR = cidrs[0]
	}
	eni.Prefixes = all(&r, "ipv4-prefix", parseIPv4Range)
	// Last, because it is always there: its absence tells an ENI that went away meanwhile from one without addresses.
	eni.ID = r.required("interface-id")
	if r.err != nil {
		return ENI{}, r.err
	}
	if len(addrs) > 0 {
		eni.Primary, eni.Secondary = addrs[0], append(eni.Secondary, addrs[1:]...)
	}
	slices.SortFunc(eni.Secondary, netip.Addr.Compare)
	slices.SortFunc(eni.Prefixes, netip.Prefix.Compare)
	if primary {
		// IMDS has been seen to give another device number to the instance's own ENI.
		eni.Device = 0
	}
	return eni, nil
}

// mac returns the MAC of the primary ENI.
func (i *IMDS) mac(ctx context.Context) (string, error) {
	i.mu.Lock()
	known := i.primaryMAC
	i.mu.Unlock()
	if known != "" {
		return known, nil
	}
	mac, err := i.required(ctx, "mac")
	if err != nil {
		return "", err
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return "", fmt.Errorf("imds mac: %w", err)
	}
	mac = hw.String()
	i.mu.Lock()
	i.primaryMAC = mac
	i.mu.Unlock()
	return mac, nil
}

// required reads a path that is always there, and never empty.
func (i *IMDS) required(ctx context.Context, path string) (string, error) {
	text, err := i.get(ctx, path)
	if err == nil && text == "" {
		err = fmt.Errorf("imds %s: the answer is empty", path)
	}
	return text, err
}

// get reads a path.
func (i *IMDS) get(ctx context.Context, path string) (string, error) {
	out, err := i.client.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
	if err != nil {
		return "", fmt.Errorf("imds %s: %w", path, err)
	}
	defer out.Content.Close()
	text, err := io.ReadAll(out.Content)
	if err != nil {
		return "", fmt.Errorf("imds %s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// optional reads a path that may be missing; missing is empty.
func (i *IMDS) optional(ctx context.Context, path string) (string, error) {
	text, err := i.get(ctx, path)
	if err != nil && Classify(err) == NotFound {
		return "", nil
	}
	return text, err
}

// reader reads the paths of one ENI and keeps the first error.
type reader struct {
	ctx  context.Context
	imds *IMDS
	mac  string
	err  error
}

func (r *reader) read(from func(context.Context, string) (string, error), field string) string {
	if r.err != nil {
		return ""
	}
	text, err := from(r.ctx, ofMAC(r.mac, field))
	r.err = err
	return text
}

func (r *reader) required(field string) string { return r.read(r.imds.required, field) }
func (r *reader) optional(field string) string { return r.read(r.imds.optional, field) }

func (r *reader) number(text string) int {
	if r.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		r.err = fmt.Errorf("imds %s: %w", r.mac, err)
	}
	return int(n)
}

// all reads an optional list.
func all[T any](r *reader, field string, parse func(string) (T, error)) []T {
	values, err := parseAll(r.optional(field), parse)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("imds %s: %w", ofMAC(r.mac, field), err)
	}
	return values
}

func parseAll[T any](text string, parse func(string) (T, error)) ([]T, error) {
	var values []T
	for _, field := range strings.Fields(text) {
		v, err := parse(field)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

func parseIPv4(text string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(text)
	if err == nil && !ip.Is4() {
		err = fmt.Errorf("%q is no IPv4 address", text)
	}
	return ip, err
}

func parseIPv4Range(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err == nil && (!p.Addr().Is4() || p != p.Masked()) {
		err = fmt.Errorf("%q is no IPv4 range", text)
	}
	return p, err
}

func ofMAC(mac, field string) string { return "network/interfaces/macs/" + mac + "/" + field }
