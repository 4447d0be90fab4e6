package ec2_test

import (
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/amazon-vpc-resource-controller-k8s/pkg/aws/vpc"
	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/jonboulle/clockwork"

	"vpccni/lab/ec2"
)

// randomly does something to the lab that a CNI or a person might do. What EC2 refuses, it refuses.
func (l *lab) randomly(rng *rand.Rand) error {
	enis := l.ENIs()
	e := enis[rng.IntN(len(enis))]
	in := &sdk.CreateNetworkInterfaceInput{SubnetId: &l.subnet.ID}
	var err error
	switch rng.IntN(10) {
	case 0:
		in.SecondaryPrivateIpAddressCount = aws.Int32(rng.Int32N(6))
		_, err = l.client.CreateNetworkInterface(l.ctx, in)
	case 1:
		in.Ipv4PrefixCount, in.Ipv6PrefixCount = aws.Int32(1), aws.Int32(1)
		_, err = l.client.CreateNetworkInterface(l.ctx, in)
	case 2, 3:
		err = l.tryAttach(e.ID, l.Instances()[rng.IntN(len(l.Instances()))].ID, rng.Int32N(3), 0)
	case 4:
		if e.Attachment != nil {
			err = l.tryDetach(e.Attachment.ID, rng.IntN(4) == 0)
		}
	case 5:
		_, err = l.client.DeleteNetworkInterface(l.ctx, &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: &e.ID})
	case 6:
		_, err = l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
			NetworkInterfaceId: &e.ID, SecondaryPrivateIpAddressCount: aws.Int32(1 + rng.Int32N(3)),
		})
	case 7:
		_, err = l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{NetworkInterfaceId: &e.ID, Ipv4PrefixCount: aws.Int32(1)})
	case 8:
		o := enis[rng.IntN(len(enis))]
		if len(o.Secondary) > 0 {
			_, err = l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
				NetworkInterfaceId: &e.ID, PrivateIpAddresses: []string{o.Secondary[0].String()}, AllowReassignment: aws.Bool(true),
			})
		}
	case 9:
		in := &sdk.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &e.ID}
		for _, a := range e.Secondary {
			in.PrivateIpAddresses = append(in.PrivateIpAddresses, a.String())
		}
		for _, p := range e.Prefixes {
			in.Ipv4Prefixes = append(in.Ipv4Prefixes, p.String())
		}
		_, err = l.client.UnassignPrivateIpAddresses(l.ctx, in)
	}
	return err
}

// invariants are what holds whatever was done.
func (l *lab) invariants() {
	l.t.Helper()
	holders := map[netip.Addr]string{}
	enis := l.ENIs()
	for _, e := range enis {
		claim := func(p netip.Prefix) {
			for a := p.Addr(); p.Contains(a); a = a.Next() {
				if o := holders[a]; o != "" || !l.subnet.CIDR.Contains(a) {
					l.t.Errorf("%s of %s is %q's as well, or outside the subnet", a, e.ID, o)
				}
				holders[a] = e.ID
			}
		}
		for _, a := range append([]netip.Addr{e.Primary}, e.Secondary...) {
			claim(netip.PrefixFrom(a, 32))
		}
		for _, p := range e.Prefixes {
			claim(p)
		}
		if (e.Attachment == nil) != (e.Status == "available") {
			l.t.Errorf("%s is %s with attachment %+v", e.ID, e.Status, e.Attachment)
		}
		if e.Attachment == nil {
			continue
		}
		if slots := 1 + len(e.Secondary) + len(e.Prefixes); slots > vpc.Limits["t3.medium"].IPv4PerInterface {
			l.t.Errorf("%s has %d addresses", e.ID, slots)
		}
	}
	if free := l.FreeAddresses(l.subnet.ID); free != 251-len(holders) {
		l.t.Errorf("%d addresses are free and %d held", free, len(holders))
	}
	for a, id := range holders {
		i, ok := l.InstanceByAddress(a)
		e := enis[slices.IndexFunc(enis, func(e ec2.ENI) bool { return e.ID == id })]
		if ok != (e.Attachment != nil) || ok && i.ID != e.Attachment.InstanceID {
			l.t.Errorf("%s is found on %q", a, i.ID)
		}
	}
	for _, i := range l.Instances() {
		attached := l.ENIsOf(i.ID)
		places := map[int]bool{}
		for _, e := range attached {
			places[e.Attachment.Device] = true
		}
		if len(attached) > 3 || len(places) != len(attached) {
			l.t.Errorf("%s has %d ENIs in %d places", i.ID, len(attached), len(places))
		}
	}
}

// rest waits until no attachment or detachment is under way on the real clock.
func (l *lab) rest() {
	l.t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 30_000 {
		if !slices.ContainsFunc(l.ENIs(), func(e ec2.ENI) bool { return e.Attachment != nil && e.Attachment.State != "attached" }) {
			return
		}
		<-tick.C
	}
	l.t.Fatal("ENIs stay on their way")
}

func TestInvariants(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		l := newLab(t, func(o *ec2.Options) { o.Seed = seed })
		l.client = l.clientOf(l.OperatorCredentials(), func(o *sdk.Options) { o.HTTPClient = &http.Client{Transport: l.Transport()} })
		l.run("t3.medium")
		rng := rand.New(rand.NewPCG(seed, 1))
		for n := range 200 {
			_ = l.randomly(rng)
			l.clock.Advance(time.Duration(rng.IntN(4)) * time.Second)
			if n%40 == 0 {
				l.invariants()
			}
		}
		l.invariants()
		for k, n := range l.Counts() {
			if k.Outcome == "InternalError" || k.Outcome == "UnknownParameter" {
				t.Errorf("seed %d: %d × %v", seed, n, k)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(o *ec2.Options) {
		o.Clock, o.AttachDelay, o.DetachDelay = clockwork.NewRealClock(), 2*time.Millisecond, time.Millisecond
		o.Plane = &network{cloud: func() *ec2.Cloud { return nil }, carried: map[string]ec2.ENI{}, fail: map[string]error{}}
	})
	l.client = l.clientOf(l.OperatorCredentials(), func(o *sdk.Options) { o.HTTPClient = &http.Client{Transport: l.Transport()} })
	l.run("t3.medium")
	var wg sync.WaitGroup
	for worker := range uint64(8) {
		rng := rand.New(rand.NewPCG(worker, 2))
		wg.Go(func() {
			for range 60 {
				_ = l.randomly(rng)
			}
		})
	}
	wg.Wait()
	l.rest()
	l.invariants()
	for k, n := range l.Counts() {
		if k.Outcome == "InternalError" {
			t.Errorf("%d × %v: the Plane was called twice at a time", n, k)
		}
	}
}

func BenchmarkAPI(b *testing.B) {
	c := ec2.New(ec2.Options{})
	v, err := c.CreateVPC(netip.MustParsePrefix("10.0.0.0/16"))
	if err != nil {
		b.Fatal(err)
	}
	s, err := c.CreateSubnet(ec2.Subnet{VPCID: v.ID, CIDR: v.CIDRs[0]})
	if err != nil {
		b.Fatal(err)
	}
	for range 2000 {
		if _, err := c.RunInstance(ec2.InstanceSpec{Type: "m5.large", SubnetID: s.ID}); err != nil {
			b.Fatal(err)
		}
	}
	eni := c.ENIs()[0].ID
	l := &lab{Cloud: c}
	url := "http://ec2.us-west-2.amazonaws.com"
	l.url = url
	client := l.clientOf(c.OperatorCredentials(), func(o *sdk.Options) { o.HTTPClient = &http.Client{Transport: c.Transport()} })
	b.Run("describe one of 2000 ENIs", func(b *testing.B) {
		for b.Loop() {
			if _, err := client.DescribeNetworkInterfaces(b.Context(), &sdk.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eni}}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("assign and unassign", func(b *testing.B) {
		for b.Loop() {
			out, err := client.AssignPrivateIpAddresses(b.Context(), &sdk.AssignPrivateIpAddressesInput{NetworkInterfaceId: &eni, SecondaryPrivateIpAddressCount: aws.Int32(1)})
			if err != nil {
				b.Fatal(err)
			}
			_, err = client.UnassignPrivateIpAddresses(b.Context(), &sdk.UnassignPrivateIpAddressesInput{
				NetworkInterfaceId: &eni, PrivateIpAddresses: []string{*out.AssignedPrivateIpAddresses[0].PrivateIpAddress},
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
