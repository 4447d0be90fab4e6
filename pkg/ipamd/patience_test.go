package ipamd

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/ipamd/warmpool"
)

// operator changes the cloud as somebody else.
func (r *rig) operator(change func(c *cloud)) {
	r.cloud.mu.Lock()
	defer r.cloud.mu.Unlock()
	change(r.cloud)
}

// give puts n addresses on an ENI.
func (c *cloud) give(eni string, n int) {
	for range n {
		ip, _ := c.takeIP()
		c.enis[eni].Secondary = append(c.enis[eni].Secondary, ip)
	}
}

// In IMDS-only mode EC2 is never called: somebody else attaches, and pods get it.
func TestIMDSOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var imds *teller
		r := newRig(t, warmpool.Targets{WarmENI: 1}, withIMDS(&imds), func(o *Options, r *rig) {
			o.Settings.IMDSOnly = true
			o.EC2 = nil
			r.cloud.give(testPrimary, 2)
		})
		<-r.Ready()
		if _, errs, took := r.burst(0, 2); errs != nil || took > 3*time.Second {
			t.Fatal(errs, took)
		}
		// The third pod waits until somebody brings an address.
		go func() {
			time.Sleep(20 * time.Second)
			r.operator(func(c *cloud) { c.give(testPrimary, 1) })
		}()
		if _, errs, took := r.burst(2, 1); errs != nil || took > 35*time.Second {
			t.Errorf("%v, waited %s", errs, took)
		}
		var eni string
		r.operator(func(c *cloud) {
			c.made++
			eni = "eni-theirs"
			ip, _ := c.takeIP()
			c.enis[eni] = &awsutils.ENI{ID: eni, MAC: macOf(9), SubnetID: testSubnet, Primary: ip, Type: "interface",
				Status: "in-use", AttachmentID: "att-9", InstanceID: testInstance, Device: 1}
			c.linkAt[eni] = time.Now()
			c.give(eni, 3)
		})
		if replies, errs, _ := r.burst(3, 3); errs != nil || replies[0].Device != 1 {
			t.Errorf("%v, %v", replies, errs)
		}
		if n := r.cloud.total(); n != 0 {
			t.Errorf("%d calls to EC2: %v", n, r.cloud.log)
		}
		r.stop()
		// With a journal it serves at once.
		start := time.Now()
		r.boot(warmpool.Targets{WarmENI: 1}, withIMDS(&imds), func(o *Options, _ *rig) { o.Settings.IMDSOnly = true })
		<-r.Ready()
		if took := time.Since(start); took > 20*time.Millisecond {
			t.Errorf("serves after %s", took)
		}
		r.stop()
	})
}

// IMDS has to say it three times over a minute that something is gone; until then it is only handed out no more. What a
// pod holds is reported and stays.
func TestIMDSOnlyIsPatient(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var imds *teller
		var notices []string
		r := newRig(t, warmpool.Targets{}, withIMDS(&imds), func(o *Options, r *rig) {
			o.Settings.IMDSOnly = true
			r.cloud.give(testPrimary, 4)
			o.Notify = func(n Notice) { notices = append(notices, n.Reason) }
		})
		<-r.Ready()
		held := r.mustAdd(0).Address
		var free netip.Addr
		for _, b := range r.View().ENIs[0].Pool {
			if b.CIDR.Addr() != held {
				free = b.CIDR.Addr()
			}
		}
		pool := func() int { return r.View().Totals.Total }
		time.Sleep(10 * time.Minute)
		// A hiccup: nothing goes.
		lies := 0
		imds.say(func(truth []awsutils.ENI, _ time.Time) ([]awsutils.ENI, error) {
			if lies++; lies < goneReads {
				truth[0].Secondary = nil
			}
			return truth, nil
		})
		time.Sleep(5 * time.Minute)
		if v := r.View(); v.Totals.Total != 4 || v.Totals.Free != 3 || len(notices) != 0 {
			t.Errorf("after a hiccup: %+v, notices %v", v.Totals, notices)
		}
		imds.say(func(truth []awsutils.ENI, now time.Time) ([]awsutils.ENI, error) {
			truth, err := omit(held)(truth, now)
			truth, _ = omit(free)(truth, now)
			return truth, err
		})
		time.Sleep(66 * time.Second) // one read at least
		if n := pool(); n != 4 {
			t.Errorf("%d addresses after a minute: it was too soon", n)
		}
		time.Sleep(2 * time.Minute)
		if v := r.View(); v.Totals.Total != 3 || v.Totals.Assigned != 1 {
			t.Errorf("%+v: the free address goes, the pod's stays", v.Totals)
		}
		if !slices.Equal(notices, []string{"AddressLost"}) {
			t.Errorf("notices %v", notices)
		}
		imds.say(nil)
		time.Sleep(3 * time.Minute)
		if v := r.View(); v.Totals.Total != 4 || v.Totals.Quarantined != 0 || v.Totals.Free != 3 {
			t.Errorf("when it is back: %+v", v.Totals)
		}
		r.stop()
	})
}

// Without provisioning the pool neither grows nor shrinks, and EC2 is only read.
func TestNoProvisioning(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var imds *teller
		r := newRig(t, warmENI(2), withIMDS(&imds), func(o *Options, r *rig) {
			o.Settings.NoProvisioning = true
			r.cloud.give(testPrimary, 1)
		})
		<-r.Ready()
		r.mustAdd(0)
		go func() {
			time.Sleep(15 * time.Second)
			r.operator(func(c *cloud) { c.give(testPrimary, 1) })
		}()
		r.mustAdd(1)
		r.mustDel(0)
		r.mustDel(1)
		time.Sleep(time.Hour)
		r.cloud.mu.Lock()
		for name, n := range r.cloud.counts {
			if name != "DescribeENIs" && n > 0 || n > 4 {
				t.Errorf("%s: %d calls", name, n)
			}
		}
		r.cloud.mu.Unlock()
		if v := r.View(); v.Totals.Total != 2 {
			t.Errorf("%+v", v.Totals)
		}
		r.stop()
	})
}
