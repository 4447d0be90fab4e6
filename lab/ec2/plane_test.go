package ec2_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/lab/ec2"
)

// network is a Plane that keeps what it was told to carry, and can be told to fail or to be slow.
type network struct {
	cloud   func() *ec2.Cloud
	mu      sync.Mutex
	carried map[string]ec2.ENI
	calls   []string
	fail    map[string]error // by call
	busy    chan struct{}    // a Sync says here that it has begun, and again to be let go
	within  bool
}

func newNetwork() *network { return &network{carried: map[string]ec2.ENI{}, fail: map[string]error{}} }

func (n *network) enter(call string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.within {
		return errors.New("called twice at a time")
	}
	n.within = true
	n.calls = append(n.calls, call)
	return n.fail[call]
}

// failAt makes a call fail, or no longer if err is nil.
func (n *network) failAt(call string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail[call] = err
}

func (n *network) leave() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.within = false
}

func (n *network) Sync(e ec2.ENI) error {
	defer n.leave()
	state := "available"
	if e.Attachment != nil {
		state = e.Attachment.State
		if c := n.cloud(); c != nil {
			c.Instance(e.Attachment.InstanceID) // a Plane may read the cloud
		}
	}
	if err := n.enter("sync " + state); err != nil {
		return err
	}
	if n.busy != nil {
		n.busy <- struct{}{}
		n.busy <- struct{}{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.carried[e.ID] = e
	return nil
}

func (n *network) Remove(id string) error {
	defer n.leave()
	if err := n.enter("remove"); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.carried, id)
	return nil
}

func (n *network) SyncVPC(v ec2.VPC, subnets []ec2.Subnet) error {
	defer n.leave()
	return n.enter(fmt.Sprintf("vpc %d ranges %d subnets", len(v.CIDRs), len(subnets)))
}

func newLabWithNetwork(t *testing.T) (*lab, *network) {
	n := newNetwork()
	var cloud *ec2.Cloud
	n.cloud = func() *ec2.Cloud { return cloud }
	l := newLab(t, func(o *ec2.Options) { o.Plane = n })
	cloud = l.Cloud
	n.calls = nil
	return l, n
}

func TestPlaneSeesEveryStep(t *testing.T) {
	t.Parallel()
	l, n := newLabWithNetwork(t)
	eni := *l.create(1).NetworkInterfaceId
	attachment := l.attach(eni, 1)
	l.clock.Advance(attachDelay)
	wantEqual(t, "status", string(l.describe(eni).Attachment.Status), "attached") // the call carries out what is due
	must(l.client.DetachNetworkInterface(l.ctx, &sdk.DetachNetworkInterfaceInput{AttachmentId: &attachment}))(t)
	l.clock.Advance(detachDelay)
	must(l.client.DeleteNetworkInterface(l.ctx, &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: &eni}))(t)
	l.addSubnet("10.0.2.0/24", "us-west-2a")
	n.mu.Lock()
	defer n.mu.Unlock()
	want := []string{"sync available", "sync attaching", "sync attached", "sync detaching", "sync available", "remove", "vpc 1 ranges 2 subnets"}
	if !slices.Equal(n.calls, want) {
		t.Errorf("calls %q, want %q", n.calls, want)
	}
	wantEqual(t, "carried in the end", len(n.carried), 1)
}

func TestPlaneRefuses(t *testing.T) {
	t.Parallel()
	l, n := newLabWithNetwork(t)
	free := l.FreeAddresses(l.subnet.ID)
	n.failAt("sync available", errors.New("no room"))
	wantCode(t, l.tryCreate(func(*sdk.CreateNetworkInterfaceInput) {}), "InternalError")
	wantEqual(t, "ENIs", len(l.ENIs()), 1)
	wantEqual(t, "free addresses", l.FreeAddresses(l.subnet.ID), free)
	n.mu.Lock()
	wantEqual(t, "put back", n.calls[len(n.calls)-1], "remove")
	n.mu.Unlock()

	n.failAt("sync available", nil)
	eni := *l.create(0).NetworkInterfaceId
	n.failAt("remove", errors.New("stuck"))
	_, err := l.client.DeleteNetworkInterface(l.ctx, &sdk.DeleteNetworkInterfaceInput{NetworkInterfaceId: &eni})
	wantCode(t, err, "InternalError")
	wantEqual(t, "still there", string(l.describe(eni).Status), "available")
	n.mu.Lock()
	defer n.mu.Unlock()
	wantEqual(t, "carried", len(n.carried), 2)
}

func TestPlaneRefusesARange(t *testing.T) {
	t.Parallel()
	l, n := newLabWithNetwork(t)
	n.failAt("vpc 2 ranges 1 subnets", errors.New("overlaps"))
	err := l.AddVPCCIDR(l.vpc.ID, netip.MustParsePrefix("100.64.0.0/16"))
	var e *ec2.Error
	if !errors.As(err, &e) || e.Code != "InternalError" {
		t.Errorf("got %v", err)
	}
	v, _ := l.VPC(l.vpc.ID)
	wantEqual(t, "ranges", len(v.CIDRs), 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	wantEqual(t, "put back", n.calls[len(n.calls)-1], "vpc 1 ranges 1 subnets")
}

func TestPlaneArrivesLater(t *testing.T) {
	t.Parallel()
	l, n := newLabWithNetwork(t)
	eni := *l.create(0).NetworkInterfaceId
	l.attach(eni, 1)
	n.failAt("sync attached", errors.New("not yet"))
	l.clock.Advance(attachDelay)
	wantEqual(t, "status", string(l.describe(eni).Attachment.Status), "attaching")
	n.failAt("sync attached", nil)
	l.clock.Advance(time.Second)
	wantEqual(t, "status", string(l.describe(eni).Attachment.Status), "attached")
}

// TestSlowPlane: while the network is busy with one change, others can look.
func TestSlowPlane(t *testing.T) {
	t.Parallel()
	l, n := newLabWithNetwork(t)
	n.busy = make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := l.client.AssignPrivateIpAddresses(l.ctx, &sdk.AssignPrivateIpAddressesInput{
			NetworkInterfaceId: l.primary(), SecondaryPrivateIpAddressCount: aws.Int32(1),
		})
		done <- err
	}()
	<-n.busy
	wantEqual(t, "addresses", len(l.ENIs()[0].Secondary), 0)
	wantEqual(t, "addresses, over HTTP", len(l.describe(*l.primary()).PrivateIpAddresses), 1)
	<-n.busy
	wantCode(t, <-done, "ok")
	wantEqual(t, "addresses", len(l.ENIs()[0].Secondary), 1)
}
