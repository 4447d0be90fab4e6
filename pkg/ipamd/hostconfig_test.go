package ipamd

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestHostIsRepairedAtAPace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1))
		<-r.Ready()
		time.Sleep(time.Minute)
		applies := func() uint64 { return r.View().Counters.Applies }
		before := applies()
		r.HostChanged()
		time.Sleep(time.Millisecond)
		if n := applies() - before; n != 1 {
			t.Errorf("a change of the host made %d applies, want 1 at once", n)
		}
		// Somebody undoes all that is done, every 10 ms for 5 s.
		before = applies()
		for range 500 {
			r.HostChanged()
			time.Sleep(10 * time.Millisecond)
		}
		if n := applies() - before; n < 5 || n > 11 {
			t.Errorf("%d applies in 5 s, want about 2 a second", n)
		}
		time.Sleep(time.Minute)
		before = applies()
		time.Sleep(time.Hour)
		if n := applies() - before; n != 0 {
			t.Errorf("%d applies after the host was left alone", n)
		}
		r.stop()
	})
}

func TestVPCRangesReachTheHostAndTheReplies(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, warmENI(1), func(o *Options, _ *rig) {
			o.Settings.Host.ExcludeSNATCIDRs = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}
		})
		<-r.Ready()
		time.Sleep(time.Second)
		added := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("100.64.0.0/16")}
		r.SetVPCCIDRs(added)
		time.Sleep(time.Second)
		if got := r.host.config().VPCCIDRs; !slices.Equal(got, added) {
			t.Errorf("host has %v", got)
		}
		want := append(slices.Clone(added), netip.MustParsePrefix("192.168.0.0/16"))
		if got := r.mustAdd(1).NoSNAT; !slices.Equal(got, want) {
			t.Errorf("reply has %v, want %v", got, want)
		}
		r.stop()
	})
}
